"""Blobs and manifests come and go, whatever the network does; the registry is a real one."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.images.server import PASSWORD, USER, Proxy, registry
from unionfs.images.connection import Connection, Patience, RegistryError, _Auth
from unionfs.images.credentials import Login
from unionfs.images.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor
from unionfs.images.reference import Reference
from unionfs.images.registry import Repository

EAGER = Patience(tries=3, pause=0)
LOGIN = Login(USER, PASSWORD)
MIB = 1 << 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def proxy(host: str) -> Proxy:
    return Proxy(host)


@contextmanager
def repository(
    proxy: Proxy, name: str = "app", login: Login | None = None, timeout: float = 60
) -> Iterator[Repository]:
    with proxy.running() as host:
        reference = Reference.parse(f"{host}/{name}")
        with Connection(reference, login, patience=EAGER, timeout=timeout) as connection:
            yield Repository(connection)


def blob(folder: Path, size: int) -> tuple[Path, bytes, Descriptor]:
    """A file of random bytes."""
    data = os.urandom(size)
    (folder / "blob").write_bytes(data)
    return folder / "blob", data, Descriptor.to(data, "application/octet-stream")


def test_a_blob_goes_and_comes(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 3 * MIB)
    moved: list[int] = []
    with repository(proxy) as there:
        assert not there.has_blob(descriptor.digest)
        assert there.send_blob(descriptor, path, moved.append) is None
        assert there.has_blob(descriptor.digest)
        assert b"".join(there.blob(descriptor)) == data
        assert b"".join(there.blob(descriptor, 2 * MIB)) == data[2 * MIB :]
    assert sum(moved) == len(data)
    whole, rest = proxy.of("GET", "blobs")
    assert (whole.sent, rest.sent) == (3 * MIB, MIB)


def test_a_large_blob_goes_in_chunks(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 40 * MIB)
    with repository(proxy) as there:
        there.send_blob(descriptor, path, lambda _: None)
        assert b"".join(there.blob(descriptor)) == data
    assert [each.received for each in proxy.of("PATCH")] == [16 * MIB, 16 * MIB]
    assert [each.received for each in proxy.of("PUT")] == [8 * MIB]


def test_a_download_that_is_cut_goes_on(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 3 * MIB)
    with repository(proxy) as there:
        there.send_blob(descriptor, path, lambda _: None)
        proxy.fault("GET", "blobs", after=MIB)
        proxy.fault("GET", "blobs", after=0)
        proxy.fault("GET", "blobs", after=MIB)
        assert b"".join(there.blob(descriptor)) == data
    first, second, third, last = proxy.of("GET", "blobs")
    assert (first.sent, second.sent, third.sent) == (MIB, 0, MIB)
    assert last.headers["Range"] == f"bytes={2 * MIB}-"
    assert last.sent == MIB


def test_a_server_without_ranges_sends_all_again(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 3 * MIB)
    with repository(proxy) as there:
        there.send_blob(descriptor, path, lambda _: None)
        proxy.fault("GET", "blobs", after=MIB)
        proxy.fault("GET", "blobs", whole=True)
        assert b"".join(there.blob(descriptor)) == data
    assert [each.sent for each in proxy.of("GET", "blobs")] == [MIB, 3 * MIB]


def test_a_login_does_not_follow_to_another_server(host: str, tmp_path: Path) -> None:
    proxy, elsewhere = Proxy(host, tokens=True), Proxy(host)
    path, data, descriptor = blob(tmp_path, MIB)
    with repository(proxy, "app", LOGIN) as there, elsewhere.running() as other:
        there.send_blob(descriptor, path, lambda _: None)
        place = f"http://{other}/v2/app/blobs/{descriptor.digest}"
        proxy.fault("GET", "blobs", status=307, headers={"Location": place})
        assert b"".join(there.blob(descriptor)) == data
    assert "Authorization" in proxy.of("GET", "blobs")[0].headers
    [followed] = elsewhere.of("GET")
    assert (followed.sent, "Authorization" in followed.headers) == (MIB, False)


def test_a_login_is_not_sent_unencrypted() -> None:
    """As where somebody in between could read the page of tokens."""
    root = httpx.URL("https://host.example/v2/")
    flow = _Auth(root, LOGIN).sync_auth_flow(httpx.Request("GET", root))
    next(flow)
    ask = {"WWW-Authenticate": 'Bearer realm="http://host.example/token"'}
    with pytest.raises(RegistryError, match="unencrypted"):
        flow.send(httpx.Response(401, headers=ask))


def test_an_upload_whose_next_chunk_fails_goes_on(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 40 * MIB)
    moved: list[int] = []
    with repository(proxy) as there:
        proxy.fault("PATCH", "", status=500)
        there.send_blob(descriptor, path, moved.append)
        assert b"".join(there.blob(descriptor)) == data
    assert len(proxy.of("POST")) == 1
    assert sum(moved) == len(data)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_upload_that_is_cut_starts_anew(proxy: Proxy, tmp_path: Path, method: str) -> None:
    path, data, descriptor = blob(tmp_path, 17 * MIB)
    moved: list[int] = []
    with repository(proxy) as there:
        proxy.fault(method, "", after=MIB // 2)
        there.send_blob(descriptor, path, moved.append)
        assert b"".join(there.blob(descriptor)) == data
    assert len(proxy.of("POST")) == 2
    assert sum(moved) == len(data)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_that_fails_starts_anew(proxy: Proxy, tmp_path: Path, method: str) -> None:
    path, data, descriptor = blob(tmp_path, 17 * MIB)
    moved: list[int] = []
    with repository(proxy) as there:
        proxy.fault(method, "", status=503)
        there.send_blob(descriptor, path, moved.append)
        assert b"".join(there.blob(descriptor)) == data
    assert sum(moved) == len(data)


def test_a_server_that_stays_down_is_given_up(proxy: Proxy) -> None:
    with repository(proxy) as there:
        proxy.fault("GET", "manifests", status=502, times=99)
        with pytest.raises(RegistryError, match=r"502 .*; gave up after 4 tries"):
            there.manifest("latest")
    assert len(proxy.of("GET", "manifests")) == 4


def test_a_server_that_is_busy_says_for_how_long(proxy: Proxy, tmp_path: Path) -> None:
    _, _, descriptor = blob(tmp_path, 1)
    with repository(proxy) as there:
        proxy.fault("HEAD", "blobs", status=429, headers={"Retry-After": "1"})
        assert not there.has_blob(descriptor.digest)
    assert [each.status for each in proxy.of("HEAD")] == [429, 404]


def test_a_server_that_stalls_is_asked_again(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, 2 * MIB)
    hold = threading.Event()
    with repository(proxy, timeout=0.5) as there:
        there.send_blob(descriptor, path, lambda _: None)
        proxy.fault("GET", "blobs", after=MIB, hold=hold)
        assert b"".join(there.blob(descriptor)) == data
        hold.set()
    ranges = {each.headers.get("Range") for each in proxy.of("GET", "blobs")}
    assert ranges == {None, f"bytes={MIB}-"}


def test_a_blob_longer_than_announced_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    path, _, descriptor = blob(tmp_path, MIB)
    shorter = Descriptor(descriptor.media_type, descriptor.digest, 1000)
    with repository(proxy) as there:
        there.send_blob(descriptor, path, lambda _: None)
        with pytest.raises(RegistryError, match="more than"):
            list(there.blob(shorter))


def test_a_blob_is_mounted_from_another_repository(proxy: Proxy, tmp_path: Path) -> None:
    path, data, descriptor = blob(tmp_path, MIB)
    with repository(proxy, "base") as there:
        there.send_blob(descriptor, path, lambda _: None)
    with repository(proxy, "derived/app") as there:
        mounted = there.send_blob(descriptor, path, lambda _: None, ("none", "base"))
        assert mounted == "base"
        assert b"".join(there.blob(descriptor)) == data
    assert len(proxy.of("PUT")) == 1


def push_image(there: Repository, folder: Path, tag: str) -> tuple[bytes, Descriptor]:
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    (folder / "config").write_bytes(config)
    described = Descriptor.to(config, OCI_CONFIG)
    there.send_blob(described, folder / "config", lambda _: None)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described.data()}
    raw = json.dumps(manifest | {"layers": []}).encode()
    descriptor = Descriptor.to(raw, OCI_MANIFEST)
    there.send_manifest(raw, descriptor, tag)
    return raw, descriptor


def test_a_manifest_goes_and_comes(proxy: Proxy, tmp_path: Path) -> None:
    with repository(proxy) as there:
        sent = push_image(there, tmp_path, "v1")
        assert there.manifest("v1") == sent
        assert there.manifest(sent[1].digest) == sent
        with pytest.raises(FileNotFoundError, match="not on the registry"):
            there.manifest("v2")
        proxy.fault("GET", "manifests", flip=True)
        with pytest.raises(OSError, match="fetch it again"):
            there.manifest("v1")


@pytest.mark.parametrize("login", [LOGIN, Login(identity_token="id")])
def test_tokens_are_fetched_once_and_anew(host: str, tmp_path: Path, login: Login) -> None:
    proxy = Proxy(host, tokens=True)
    path, _, descriptor = blob(tmp_path, MIB)
    with repository(proxy, "guarded", login) as there:
        there.send_blob(descriptor, path, lambda _: None)
        assert there.has_blob(descriptor.digest)
        assert len(proxy.asked) == 1
        assert proxy.tokens is not None
        proxy.tokens.clear()  # as if they had expired
        there.send_blob(descriptor, path, lambda _: None, ("other",))
        proxy.tokens.clear()
        assert there.has_blob(descriptor.digest)
    asked = [" ".join(query["scope"]) for query in proxy.asked]
    guarded = "repository:guarded:pull,push"
    assert asked == [guarded, *[f"{guarded} repository:other:pull"] * 2]


def test_a_token_is_for_all_threads(host: str, tmp_path: Path) -> None:
    proxy = Proxy(host, tokens=True)
    _, _, descriptor = blob(tmp_path, 10)
    with repository(proxy, "guarded", LOGIN) as there:
        threads = [
            threading.Thread(target=there.has_blob, args=(descriptor.digest,)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(proxy.asked) == 1
    assert len(proxy.of("HEAD")) == 8


@pytest.mark.parametrize(
    ("login", "hint"), [(None, "podman login localhost"), (Login("x", "y"), "may not do that")]
)
def test_who_may_not_is_told(host: str, login: Login | None, hint: str) -> None:
    proxy = Proxy(host, tokens=True)
    with (
        repository(proxy, "guarded", login) as there,
        pytest.raises(RegistryError, match=hint) as caught,
    ):
        there.manifest("latest")
    assert caught.value.filename.endswith("/guarded")


def test_a_login_by_name_and_password(tmp_path: Path) -> None:
    with registry(tmp_path / "registry", login=True) as host:
        name = Reference.parse(f"{host}/app")
        with Connection(name, LOGIN, patience=EAGER) as connection:
            push_image(Repository(connection), tmp_path, "v1")
        with Connection(name, patience=EAGER) as connection, pytest.raises(RegistryError):
            Repository(connection).manifest("v1")


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    with registry(tmp_path / "registry", tls=True) as host:
        name = Reference.parse(f"{host}/app")
        authority = tmp_path / "registry/authority"
        with Connection(name, certificates=authority, patience=EAGER) as connection:
            push_image(Repository(connection), tmp_path, "v1")
        with (
            Connection(name, patience=EAGER) as connection,
            pytest.raises(RegistryError, match="not trusted"),
        ):
            Repository(connection).manifest("v1")


def test_nobody_answers() -> None:
    name = Reference.parse("localhost:1/app")
    with (
        Connection(name, patience=EAGER) as connection,
        pytest.raises(RegistryError, match="cannot connect"),
    ):
        Repository(connection).manifest("latest")


def test_a_registry_elsewhere_must_have_tls() -> None:
    """Nothing is sent to a host of the documentation's domain: only the URL is looked at."""
    with Connection(Reference.parse("host.example/app")) as connection:
        assert connection.url("tags/list") == "https://host.example/v2/app/tags/list"
    with Connection(Reference.parse("host.example:80/app"), plain=True) as connection:
        assert connection.url("tags/list") == "http://host.example:80/v2/app/tags/list"
