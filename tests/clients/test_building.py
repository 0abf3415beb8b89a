"""What we build, others take: podman runs it, skopeo copies it, umoci unpacks it."""

import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clients.client import BASE, Client
from tests.clients.test_layers import comparable, mounted_by_podman, packed, shown
from tests.conformance.doors import Folder
from tests.containers.conftest import busybox_files
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer
from tests.tree import Seen, Snapshot, differences, snapshot
from unionfs.build import BuildOptions, build
from unionfs.images import library
from unionfs.images.exchange import export_images, import_images
from unionfs.images.reference import Reference
from unionfs.store import Store

pytestmark = pytest.mark.parametrize("store", ["rootful"], indirect=True)

__all__ = ["make_image", "make_layer"]

_DOCKERFILE = """
FROM box
MAINTAINER Somebody <somebody@example.org>
ADD packed.tar /
ADD one two /srv/
RUN ln -s /srv/one /srv/link && rm /home/app/note && chown 7:8 /srv/two
EXPOSE 80
EXPOSE 443
USER app
ENV GREETING=hello
CMD echo "$GREETING $(cat /srv/link)"
"""


def test_what_we_build_is_run_copied_and_unpacked(
    client: Client, make_image: MakeImage, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "one").write_text("one\n")
    (context / "two").write_text("two\n")
    packed(context / "packed.tar")
    with Store(tmp_path / "ours") as ours:
        make_image(ours, "box", busybox_files())
        image = build(ours, context, _DOCKERFILE, [Reference.parse("localhost/app:v1")])
        export_images(ours, ["localhost/app:v1"], str(tmp_path / "layout"), folder=True)
        archive = client.home / f"{tmp_path.name}.tar"
        export_images(ours, ["localhost/app:v1"], str(archive))
        layers = ours.layers.stack(library.unpack(ours, image))
        tree = shown([Path(layer) for layer in layers], tmp_path)

    client.podman("load", "--quiet", "--input", archive)
    assert differences(tree, mounted_by_podman(client, "localhost/app:v1")) == []
    assert client.podman("run", "--rm", "localhost/app:v1") == "hello one\n"

    source = f"oci:{tmp_path}/layout:v1"
    subprocess.run(["skopeo", "copy", "--quiet", source, f"oci:{tmp_path}/copy:v1"], check=True)
    root = tmp_path / "root"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{tmp_path}/copy:v1", root], check=True)
    assert differences(tree, comparable(snapshot(Folder(str(root))))) == []


_SAME = f"""
ARG TAG=latest
FROM {BASE}:$TAG AS made
RUN mkdir /out && echo made > /out/file && chmod 600 /out/file
FROM {BASE}
LABEL one=1 two="two words"
ARG VERSION=1
ENV NAME="app $VERSION" PATH=/bin
WORKDIR /work/dir
COPY --chown=7:8 --chmod=640 src /tree
COPY src/*.py src/deep/link one /some/
COPY src/deep new/
COPY --from=made /out /out
ADD packed.tar.gz /opt/
ADD one two /srv/
RUN --mount=type=cache,target=/cache --mount=type=bind,source=src,target=/mnt/src \\
    --mount=type=secret,id=token --mount=type=tmpfs,target=/mem \\
    cp /mnt/src/main.py /copied && echo $NAME > /data/kept && rm /data/deleted && \\
    cat /run/secrets/token > /cache/token && chmod 4711 /copied
USER 7:8
RUN echo mine > /tmp/mine
EXPOSE 80 443/udp
VOLUME /volume
STOPSIGNAL SIGINT
ENTRYPOINT ["cat"]
CMD ["/data/kept"]
"""


def test_our_builds_are_buildahs(client: Client, tmp_path: Path) -> None:
    """The same Dockerfile gives the same files, and the same settings, but for RUN's times."""
    context = client.home / tmp_path.name
    (context / "src/deep").mkdir(parents=True)
    for name in ("one", "two", "src/main.py", "src/deep/data", "token"):
        (context / name).write_text(f"{name}\n")
    (context / "src/deep/link").symlink_to("data")
    (context / "src/deep").chmod(0o750)
    (context / "Dockerfile").write_text(_SAME)
    packed(context / "packed.tar")
    (context / "packed.tar.gz").write_bytes(gzip.compress((context / "packed.tar").read_bytes()))

    base, archive = (client.home / f"{tmp_path.name}.{name}.tar" for name in ("base", "ours"))
    client.podman("save", "--quiet", "--format=oci-archive", f"--output={base}", BASE)
    with Store(tmp_path / "ours") as ours:
        import_images(ours, str(base), Reference.parse(BASE))
        options = BuildOptions(secrets={"token": b"token\n"}, arguments={"VERSION": "2"})
        name = Reference.parse("localhost/ours")
        image = build(ours, context, _SAME, [name], options=options)
        layers = ours.layers.stack(library.unpack(ours, image))
        tree = shown([Path(layer) for layer in layers], tmp_path)
        export_images(ours, [str(name)], str(archive))

    secret = f"--secret=id=token,src={context}/token"
    client.build("theirs", context, "chroot", "--build-arg=VERSION=2", secret)
    client.podman("load", "--quiet", "--input", archive)

    theirs = mounted_by_podman(client, "theirs")
    assert {*theirs} - {*tree} == _LEFT_BY_BUILDAH
    for path in _LEFT_BY_BUILDAH:
        del theirs[path]
    assert differences(without_times(theirs), without_times(tree)) == []
    assert settings(client, "localhost/ours") == settings(client, "localhost/theirs")


def without_times(tree: Snapshot) -> Snapshot:
    """A tree without the times of what RUN has made or changed, and of directories."""
    return {
        path: replace(seen, mtime=0)
        if isinstance(seen, Seen) and (seen.kind == "directory" or path in _BY_RUN)
        else seen
        for path, seen in tree.items()
    }


_LEFT_BY_BUILDAH = {"etc/hostname", "etc/hosts", "etc/resolv.conf", "mnt", "run/secrets"}
"""Where it mounted something for RUN."""

_BY_RUN = ("out/file", "copied", "data/kept", "tmp/mine")


def settings(client: Client, image: str) -> dict[str, Any]:
    """What podman tells of an image's settings; buildah adds its version, and orders variables."""
    [told] = json.loads(client.podman("image", "inspect", image))
    found: dict[str, Any] = told["Config"]
    found["Labels"].pop("io.buildah.version", None)
    found["Env"].sort()
    return found
