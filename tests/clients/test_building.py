"""What we build, others take: podman runs it, skopeo copies it, umoci unpacks it."""

import subprocess
from pathlib import Path

import pytest

from tests.clients.client import Client
from tests.clients.test_layers import comparable, mounted_by_podman, packed, shown
from tests.conformance.doors import Folder
from tests.containers.conftest import busybox_files
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer
from tests.tree import differences, snapshot
from unionfs.build import build
from unionfs.images import library
from unionfs.images.exchange import export_images
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
