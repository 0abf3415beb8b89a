"""References mean what Docker takes them for; skopeo is asked where it can be."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.images.reference import InvalidReference, Reference

SHA = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8

TAGGED = {
    "ubuntu": "docker.io/library/ubuntu",
    "ubuntu:14.04": "docker.io/library/ubuntu:14.04",
    "docker.io/ubuntu": "docker.io/library/ubuntu",
    "index.docker.io/ubuntu:1": "docker.io/library/ubuntu:1",
    "index.docker.io/some/app": "docker.io/some/app",
    "some/app": "docker.io/some/app",
    "some/deep/app:v1": "docker.io/some/deep/app:v1",
    "library/ubuntu": "docker.io/library/ubuntu",
    "localhost/app": "localhost/app",
    "localhost:5000/app": "localhost:5000/app",
    "localhost": "docker.io/library/localhost",
    "localhost:5000": "docker.io/library/localhost:5000",
    "test:5000/app": "test:5000/app",
    "test:5000/app:v1": "test:5000/app:v1",
    "test.com:5000": "docker.io/library/test.com:5000",
    "test.com/app:v1": "test.com/app:v1",
    "test-com:8080/app": "test-com:8080/app",
    "test_com/app": "docker.io/test_com/app",
    "xn--n3h.com/app:xn--n3h.com": "xn--n3h.com/app:xn--n3h.com",
    "192.168.1.1": "docker.io/library/192.168.1.1",
    "192.168.1.1:5000/app:5050": "192.168.1.1:5000/app:5050",
    "app:TAG_1.2-x": "docker.io/library/app:TAG_1.2-x",
    "a__b/c.d-e---f": "docker.io/a__b/c.d-e---f",
    "Registry.example.com/app": "Registry.example.com/app",
    "app:" + "t" * 128: "docker.io/library/app:" + "t" * 128,
    "0/1": "docker.io/0/1",
    SHA: f"docker.io/library/{SHA}",
}
IPV6 = {
    "[2001:db8::1]/app": "[2001:db8::1]/app",
    "[2001:db8::1]:5000/app:v1": "[2001:db8::1]:5000/app:v1",
    "[::1]:5000/some/app": "[::1]:5000/some/app",
}
DIGESTED = {
    f"ubuntu@{SHA}": f"docker.io/library/ubuntu@{SHA}",
    f"test:5000/app:v1@{SHA}": f"test:5000/app:v1@{SHA}",
    f"app:v1@{SHA512}": f"docker.io/library/app:v1@{SHA512}",
    f"[::1]/app@{SHA}": f"[::1]/app@{SHA}",
}
REFUSED = {
    "": "empty",
    "0123456789abcdef" * 4: "write NAME@sha256:",
    "Ubuntu": "try library/ubuntu",
    "test:5000/Upper/lower:v1": "try upper/lower",
    ":justtag": "no name",
    "/app": "no name",
    "app/": "no name",
    "a//b": "no name",
    "app:": "no name",
    "app:-v1": "no name",
    "app:" + "t" * 129: "no name",
    "app:v1:v2": "no name",
    "a___b": "no name",
    "a..b/c": "no name",
    "-app": "no name",
    "app_": "no name",
    "aa/asdf$$^/aa": "no name",
    "-host.com/app": "no name",
    "host.com:port/app": "no name",
    "app v1": "no name",
    "app\n": "no name",
    "äpp": "no name",
    "https://host.com/app": "no name",
}
REFUSED_WITH_DIGEST = {
    f"@{SHA}": "no name",
    f"app@{SHA}:v1": "no name",
    "app@sha256:" + "f" * 34: "not a digest",
    "app@sha256:" + "F" * 64: "not a digest",
    "app@md5:" + "f" * 32: "not a digest",
    "app@sha256:ff": "no name",
}


@pytest.mark.parametrize(("text", "full"), [*TAGGED.items(), *IPV6.items(), *DIGESTED.items()])
def test_a_name_is_completed(text: str, full: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == full
    assert Reference.parse(full) == reference
    assert Reference.parse(reference.familiar) == reference


@pytest.mark.parametrize(
    ("text", "wrong"), [*REFUSED.items(), *REFUSED_WITH_DIGEST.items(), ("[::1]", "no name")]
)
def test_what_is_no_name_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(InvalidReference, match=wrong) as caught:
        Reference.parse(text)
    assert caught.value.filename == text


def test_a_repository_has_at_most_255_characters() -> None:
    longest = "a/" * 127 + "a"
    assert Reference.parse(f"host.com/{longest}:v1").path == longest
    with pytest.raises(InvalidReference, match="255"):
        Reference.parse(f"host.com/{longest}a:v1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("docker.io/library/ubuntu:14.04", "ubuntu:14.04"),
        ("docker.io/some/app", "some/app"),
        ("docker.io/library/deep/er", "library/deep/er"),
        ("localhost:5000/library/app", "localhost:5000/library/app"),
    ],
)
def test_a_name_as_docker_shows_it(text: str, shown: str) -> None:
    assert Reference.parse(text).familiar == shown


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("app", "app:latest"), ("app:v1", "app:v1"), (f"app:v1@{SHA}", f"app@{SHA}")],
)
def test_one_image_is_named_by_tag_or_by_digest(text: str, chosen: str) -> None:
    assert Reference.parse(text).chosen().familiar == chosen


def _written_by_skopeo(folder: Path, text: str) -> str | None:
    """The name that skopeo writes into an archive; None where it refuses the text."""
    archive = folder / "archive.tar"
    archive.unlink(missing_ok=True)
    command = ("skopeo", "copy", f"dir:{folder / 'image'}", f"docker-archive:{archive}:{text}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert "reference" in done.stderr, done.stderr
        return None
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        [name] = json.load(manifest)[0]["RepoTags"]
    return str(name)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the smallest image there is, as skopeo's `dir:` has it."""
    assert shutil.which("skopeo"), "not installed: skopeo; run .ci/setup-clients"
    folder = tmp_path_factory.mktemp("skopeo")
    (folder / "image").mkdir()
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    digest = subprocess.run(["sha256sum"], input=config, capture_output=True, check=True).stdout
    name = digest.split()[0].decode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": f"sha256:{name}",
            "size": len(config),
        },
        "layers": [],
    }
    (folder / "image" / name).write_bytes(config)
    (folder / "image/manifest.json").write_text(json.dumps(manifest))
    (folder / "image/version").write_text("Directory Transport Version: 1.1\n")
    return folder


@pytest.mark.parametrize("text", [*TAGGED, *(text for text in REFUSED if text)])
def test_skopeo_reads_it_the_same(image: Path, text: str) -> None:
    wanted = None if text in REFUSED else str(Reference.parse(text).chosen())
    assert _written_by_skopeo(image, text) == wanted


@pytest.mark.parametrize(
    "digest",
    [
        *(SHA, SHA512, "sha256:ff", "sha256:" + "f" * 34, "sha256:" + "F" * 64),
        *("md5:" + "f" * 32, f"{SHA}:v1", f"{SHA}@{SHA}", "sha256:" + "g" * 64),
    ],
)
def test_skopeo_takes_the_same_digests(digest: str) -> None:
    """It gets as far as the registry, where nobody is, with those that are digests."""
    text = f"localhost:1/app@{digest}"
    command = ("skopeo", "inspect", "--tls-verify=false", f"docker://{text}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = "connection refused" in done.stderr
    if taken:
        assert str(Reference.parse(text)) == text
    else:
        with pytest.raises(InvalidReference):
            Reference.parse(text)
    assert taken == (digest in (SHA, SHA512))


_PARTS = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)


@given(
    domain=st.one_of(
        st.just("localhost"),
        st.from_regex(r"[a-z0-9]{1,9}\.[a-z]{2,3}(:[0-9]{1,5})?", fullmatch=True),
        st.from_regex(r"\[[a-f0-9]{1,4}:[a-f0-9:]{1,9}\](:[0-9]{1,5})?", fullmatch=True),
    ),
    path=st.lists(_PARTS, min_size=1, max_size=4).map("/".join).filter(lambda text: len(text) < 99),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True),
    digest=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__),
)
def test_every_reference_is_read_back(
    domain: str, path: str, tag: str | None, digest: str | None
) -> None:
    made = Reference(domain, path, tag, digest)
    assert Reference.parse(str(made)) == made
    assert Reference.parse(made.familiar) == made


@given(st.text("aZ0._-:/@[]ä ", max_size=24))
def test_any_text_is_a_reference_that_is_read_back_or_refused(text: str) -> None:
    try:
        read = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(read)) == read
