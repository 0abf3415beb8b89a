"""Images built from Dockerfiles: what is in them, and what is not done again."""

import gzip
import io
import json
import lzma
import os
import signal
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND
from unionfs import LayerStack, UnionFS, list_mounts
from unionfs.build import BuildError, BuildOptions, Step, build
from unionfs.containers import Containers
from unionfs.images import library
from unionfs.images.library import Image
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and runs")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "src/deep").mkdir(parents=True)
    (folder / "src/main.py").write_text("main")
    (folder / "src/deep/data.txt").write_text("data")
    (folder / "src/deep/link").symlink_to("data.txt")
    (folder / "one.conf").write_text("one")
    (folder / "two.conf").write_text("two")
    (folder / "secret").write_text("secret")
    (folder / "out").symlink_to("/etc")
    os.chmod(folder / "one.conf", 0o640)
    os.utime(folder / "one.conf", ns=(10**18, 10**18 + 7))
    return folder


def packed(**files: bytes) -> bytes:
    """A tar of some files, and a hard link to each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"opt/{name}")
            member.size, member.mode, member.uid = len(data), 0o750, 5
            tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo(f"opt/{name}+")
            link.type, link.linkname = tarfile.LNKTYPE, member.name
            tar.addfile(link)
    return out.getvalue()


class Built:
    """An image, to look into."""

    def __init__(self, store: Store, image: Image) -> None:
        self.image = image
        self.settings = image.config.settings
        chain = library.unpack(store, image)
        self.stack = LayerStack(store.layers.stack(chain), options=store.options)
        self.files = UnionFS(self.stack)

    def text(self, path: str) -> str:
        return self.files.read_text(path)

    def all(self, top: str = "/") -> set[str]:
        """The paths of all files that are no directories."""
        return {os.path.join(at, name) for at, _, names in self.files.walk(top) for name in names}


def built(store: Store, context: Path, text: str, **options: Any) -> Built:
    return Built(store, build(store, context, text, options=BuildOptions(**options)))


def test_the_shape_that_everybody_writes(store: Store, context: Path) -> None:
    """A base, a maintainer, an archive at the root, two files, a command, two ports, a start."""
    (context / "app.tar.gz").write_bytes(gzip.compress(packed(app=b"#!/bin/sh\necho started\n")))
    made = built(
        store,
        context,
        """
        FROM box
        MAINTAINER Somebody <somebody@example.org>
        ADD app.tar.gz /
        ADD one.conf two.conf /etc/app/
        RUN ln -s /etc/app/one.conf /etc/current
        EXPOSE 80
        EXPOSE 443/udp
        CMD ["/opt/app"]
        """,
    )
    assert made.image.config.author == "Somebody <somebody@example.org>"
    assert made.settings.exposed_ports == ("80/tcp", "443/udp")
    assert made.settings.cmd == ("/opt/app",)
    assert made.text("/etc/current") == "one"
    status = made.files.stat("/opt/app")
    assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_nlink) == (5, 0o750, 2)
    assert made.files.stat("/etc/app/one.conf").st_mtime_ns == 10**18 + 7
    assert [step.empty_layer for step in made.image.config.history[-7:]] == [
        *(True, False, False, False),
        *(True, True, True),
    ]


def test_it_runs(store: Store, context: Path, tmp_path: Path) -> None:
    text = 'FROM box\nRUN echo printed\nENV WHO=world\nCMD echo "hello $WHO"\n'
    (context / "Dockerfile").write_text(text)

    def unionmount(*arguments: str) -> str:
        command = [*COMMAND, *arguments]
        env = os.environ | {"UNIONMOUNT_STORE": store.root}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    told = json.loads(unionmount("build", "--json", "-t", "app:1", str(context)))
    assert told["names"] == ["docker.io/library/app:1"]
    assert unionmount("run", "--rm", "app:1") == "hello world\n"


def test_what_copy_copies(store: Store, context: Path) -> None:
    made = built(
        store,
        context,
        """
        FROM scratch
        COPY src /tree
        COPY src/*.py src/deep/link /some/
        COPY --chown=7:8 --chmod=4711 one.conf named
        WORKDIR /work/dir
        COPY --chown=9 two.conf .
        COPY ["one.conf", "with space"]
        """,
    )
    assert made.all() == {
        *("/tree/main.py", "/tree/deep/data.txt", "/tree/deep/link"),
        *("/some/main.py", "/some/link", "/named"),
        *("/work/dir/two.conf", "/work/dir/with space"),
    }
    assert made.files.readlink("/tree/deep/link") == "data.txt"
    assert made.text("/some/link") == "data", "a link that is named is followed"
    status = made.files.stat("/named")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o4711)
    two = made.files.stat("/work/dir/two.conf")
    assert (two.st_uid, two.st_gid) == (9, 9)
    assert made.settings.working_dir == "/work/dir"


def test_nothing_outside_the_context_is_copied(store: Store, context: Path) -> None:
    for text in ("out/passwd", "../../etc/passwd"):
        with pytest.raises(BuildError, match="no such file to copy"):
            built(store, context, f"FROM scratch\nCOPY {text} /\n")
    made = built(store, context, "FROM box\nRUN ln -s / /l\nCOPY one.conf /l/../../new/\n")
    assert made.text("/new/one.conf") == "one"


def test_ignored_files_are_not_there(store: Store, context: Path) -> None:
    (context / ".dockerignore").write_text("secret\nsrc/deep/*\n!src/deep/data.txt\nout\n")
    made = built(store, context, "FROM scratch\nCOPY . /\n")
    assert made.all() == {
        *("/src/main.py", "/src/deep/data.txt", "/one.conf", "/two.conf", "/.dockerignore"),
    }
    with pytest.raises(BuildError, match="dockerignore"):
        built(store, context, "FROM scratch\nCOPY secret /\n")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_add_unpacks_whatever_the_compression(store: Store, context: Path, pack: Any) -> None:
    (context / "packed").write_bytes(pack(packed(a=b"a")))
    made = built(store, context, "FROM scratch\nADD packed one.conf /in/\nCOPY packed /\n")
    assert made.all() == {"/in/opt/a", "/in/opt/a+", "/in/one.conf", "/packed"}


def test_stages(store: Store, context: Path) -> None:
    text = """
        ARG BASE=box
        FROM $BASE AS builder
        RUN mkdir /made && echo made > /made/file
        FROM scratch AS unneeded
        RUN false
        FROM builder AS further
        RUN echo more > /made/more
        FROM scratch
        COPY --from=further /made /here
        COPY --from=0 /made/file /zero
        COPY --from=box /app /
        """
    seen: list[Step] = []
    image = build(store, context, text, watch=seen.append)
    assert Built(store, image).all() == {"/here/file", "/here/more", "/zero", "/app"}
    assert "RUN false" not in {step.text for step in seen}
    assert [step.number for step in seen if not step.done] == [*range(1, 9)]
    assert {step.count for step in seen} == {8}
    target = built(store, context, text, target="builder")
    assert target.text("/made/file") == "made\n"


def test_variables(store: Store, context: Path) -> None:
    made = built(
        store,
        context,
        """
        FROM box
        ARG VERSION=1
        ARG OTHER
        ENV PATH=/bin NAME="app $VERSION" OTHER=from-env
        RUN echo "$NAME/$VERSION/$OTHER" > /told
        LABEL version=$VERSION
        USER app
        RUN id -u > /tmp/id
        """,
        arguments={"VERSION": "2", "OTHER": "given"},
    )
    assert made.text("/told") == "app 2/2/from-env\n"
    assert made.text("/tmp/id") == "7\n"
    assert made.settings.labels == {"version": "2"}
    assert made.settings.user == "app"
    with pytest.raises(BuildError, match="no ARG declares the build argument TYPO"):
        built(store, context, "FROM box\n", arguments={"TYPO": "1"})


def test_settings(store: Store, context: Path) -> None:
    text = """
        FROM scratch
        CMD ["of the base"]
        VOLUME /data ["/not json"
        STOPSIGNAL SIGINT
        HEALTHCHECK --interval=1m30s --retries=3 CMD check it
        SHELL ["/bin/ash", "-ec"]
        ENTRYPOINT start here
        ONBUILD COPY one.conf /triggered
        ONBUILD ENV TRIGGERED=yes
        """
    base = build(store, context, text, [Reference.parse("base")])
    settings = base.config.settings
    assert settings.stop_signal == "SIGINT"
    assert settings.healthcheck == {
        "Test": ["CMD-SHELL", "check it"],
        "Interval": 90 * 10**9,
        "Retries": 3,
    }
    assert settings.entrypoint == ("/bin/ash", "-ec", "start here")
    assert settings.cmd == ("of the base",)
    child = built(store, context, 'FROM base\nENTRYPOINT ["other"]\n')
    assert child.text("/triggered") == "one"
    assert "TRIGGERED=yes" in child.settings.env
    assert (child.settings.on_build, child.settings.cmd) == ((), ())


def test_labels_and_a_platform_that_are_asked_for(store: Store, context: Path) -> None:
    text = """
        ARG TARGETARCH
        FROM box AS box
        FROM scratch
        ARG TARGETPLATFORM
        ARG BUILDPLATFORM
        LABEL on=$TARGETPLATFORM by=$BUILDPLATFORM
        COPY --link one.conf /$TARGETPLATFORM/
        """
    foreign = Platform("linux", "arm64")
    made = built(store, context, text, platform=foreign, labels={"by": "hand", "more": ""})
    assert made.image.platform == foreign
    assert made.settings.labels == {"on": "linux/arm64", "by": "hand", "more": ""}
    assert made.all() == {"/linux/arm64/one.conf"}
    with pytest.raises(BuildError, match="no image for linux/arm64"):
        built(store, context, "FROM box\n", platform=foreign)


def cached(store: Store, context: Path, text: str, **options: Any) -> list[bool]:
    """Which of a build's layers were known."""
    seen: list[Step] = []
    build(store, context, text, options=BuildOptions(**options), watch=seen.append)
    making = ("RUN", "COPY", "ADD")
    return [step.cached for step in seen if step.done and step.text.startswith(making)]


def test_nothing_is_done_twice(store: Store, context: Path) -> None:
    text = "FROM box\nCOPY one.conf /\nRUN echo done > /done\nCOPY src /src\n"
    assert cached(store, context, text) == [False, False, False]
    os.utime(context / "one.conf", (1, 1))
    assert cached(store, context, text) == [True, True, True], "times are no content"
    (context / "src/deep/data.txt").write_text("other")
    assert cached(store, context, text) == [True, True, False]
    os.chmod(context / "one.conf", 0o600)
    assert cached(store, context, text) == [False, False, False]
    assert cached(store, context, text, cached=False) == [False, False, False]
    assert cached(store, context, text.replace("done", "more")) == [True, False, False]
    store.gc()
    assert cached(store, context, text) == [False, False, False], "no image needed them"


def test_equal_builds_give_equal_images(store: Store, context: Path) -> None:
    text = "FROM box\nCOPY src /src\nRUN echo new > /new\nENV A=1\n"
    images = [
        build(store, context, text, options=BuildOptions(cached=False, clamp=10**9))
        for _ in range(2)
    ]
    assert images[0].target == images[1].target
    again = [build(store, context, f"{text}LABEL a=b\nCMD c\n") for _ in range(2)]
    assert again[0].target == again[1].target, "no step was done again"
    assert images[0].config.created == "2001-09-09T01:46:40Z"
    assert again[0].config.created > "2001-09-10"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_ended_leaves_nothing(
    store: Store, context: Path, number: signal.Signals
) -> None:
    """Although the command is the first process of its container, which heeds no signals."""
    (context / "Dockerfile").write_text("FROM box\nRUN echo begun && sleep 1000\n")
    command = [*COMMAND, "build", "--store", store.root, "-t", "new", str(context)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while (line := process.stderr.readline()) != "begun\n":
            assert line
        process.send_signal(number)
        assert process.stderr.read() == "unionmount: interrupted\n"
    assert process.returncode == 128 + number
    assert Containers(store).list() == []
    assert not [mount for mount in list_mounts() if store.root in mount.target]
    assert not os.listdir(f"{store.root}/run")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("FROM missing", 1, "run: unionmount pull missing"),
        ("FROM box\nRUN echo x > /x && false", 2, "ended with 1"),
        ("FROM box\nCOPY nothing /", 2, "no such file to copy"),
        ("FROM box\nCOPY one.conf two.conf /x", 2, "end the destination with /"),
        ("FROM box\nADD http://example.org/x /x", 2, "is not fetched"),
        ("FROM box\nADD --checksum=sha256:ab one.conf /x", 2, "--checksum is for addresses"),
        ("FROM --platform=linux/s390x box", 1, "no image for linux/s390x"),
        ("FROM box\nCOPY --chown=nobody one.conf /", 2, "no such user"),
        ("FROM box\nCOPY one.conf /app/x", 2, "Not a directory"),
        ("FROM box\nCOPY one.conf /bin\nCOPY one.conf /x\nCOPY src /x", 4, "/x"),
        ("FROM box\nEXPOSE 99999", 2, "no port"),
        ("FROM box\nHEALTHCHECK --interval=soon CMD x", 2, "no duration"),
        ("FROM box\nONBUILD FROM box", 2, "ONBUILD takes none"),
        ("FROM box\nSHELL /bin/sh", 2, "JSON"),
    ],
)
def test_what_goes_wrong_names_the_line_and_leaves_nothing(
    store: Store, context: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        build(store, context, text, [Reference.parse("new")])
    assert caught.value.filename == f"Dockerfile:{line}"
    assert Containers(store).list() == []
    assert "docker.io/library/new:latest" not in {row.name for row in store.names}
