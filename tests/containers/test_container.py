"""A writable layer over an image: made, mounted, and made an image."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import unionfs
from tests.images.conftest import MakeImage
from unionfs.containers import Containers
from unionfs.images import library
from unionfs.images.documents import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
)
from unionfs.images.reference import Reference
from unionfs.layers import changes
from unionfs.layers.streams import MEDIA_TYPES
from unionfs.store import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


def test_a_container_from_create_to_remove(
    store: Store, containers: Containers, tmp_path: Path
) -> None:
    made = containers.create("box", "mine")
    assert (made.name, made.image, made.target) == ("mine", "box:latest", None)
    assert made.manifest == library.find(store, "box").image().target.digest
    with pytest.raises(AlreadyExists):
        containers.create("box", "mine")

    mount = containers.mount("mine")
    assert mount.target == f"{store.root}/containers/mine/rootfs"
    Path(mount.target, "app").write_text("changed")
    assert containers.list() == [containers.get("mine")]
    assert containers.get("mine").target == mount.target
    (tmp_path / "root").mkdir()
    with pytest.raises(OSError, match="is mounted by the kernel; unmount that first"):
        containers.mount("mine", str(tmp_path / "root"))
    with pytest.raises(FailedPrecondition, match="unmount it, or remove it by force"):
        containers.remove("mine")
    containers.unmount("mine")
    with pytest.raises(FailedPrecondition, match="it is not mounted"):
        containers.unmount("mine")

    with containers.mount("mine", str(tmp_path / "root")):
        assert (tmp_path / "root/app").read_text() == "changed"
    containers.mount("mine")
    containers.remove("mine", force=True)
    assert not [mount for mount in unionfs.list_mounts() if store.root in mount.target]
    with pytest.raises(NotFound):
        containers.get("mine")
    assert os.listdir(f"{store.root}/containers") == []


def test_an_image_without_layers(
    store: Store, containers: Containers, make_image: MakeImage
) -> None:
    make_image(store, "nothing")
    containers.create("nothing", "mine")
    root = Path(containers.mount("mine").target)
    assert os.listdir(root) == []
    (root / "new").touch()
    image = containers.commit("mine", "something")
    assert len(image.manifest.layers) == 1


def test_two_containers_do_not_see_each_other(containers: Containers) -> None:
    for name in ("one", "two"):
        containers.create("box", name)
    roots = [Path(containers.mount(name).target) for name in ("one", "two")]
    (roots[0] / "app").write_text("one")
    (roots[1] / "new").touch()
    assert (roots[1] / "app").read_text() == "program"
    assert not (roots[0] / "new").exists()


def test_names_and_images_that_are_none(store: Store, containers: Containers) -> None:
    for name in ("", "-x", "a/b", "..", "x" * 129):
        with pytest.raises(InvalidArgument, match="not a container's name"):
            containers.create("box", name or " ")
    with pytest.raises(NotFound, match="pull or import it"):
        containers.create("absent")
    store.snapshots.prepare("no-container")
    with pytest.raises(NotFound, match="no such container"):
        containers.get("no-container")
    assert containers.list() == []


def test_a_committed_container_is_an_image(store: Store, containers: Containers) -> None:
    containers.create("box", "mine")
    root = Path(containers.mount("mine").target)
    (root / "app").write_text("second version")
    (root / "home/app/note").unlink()
    image = containers.commit("mine", "box:2", author="me", comment="a new app")
    containers.unmount("mine")

    base = library.find(store, "box").image()
    found = library.find(store, "box:2").image()
    assert found == image
    assert found.manifest.layers[:2] == base.manifest.layers
    assert len(found.manifest.layers) == 3
    assert found.config.settings == base.config.settings
    step = found.config.history[-1]
    assert (step.author, step.comment) == ("me", "a new app")

    store.gc()
    containers.create("box:2", "next")
    root = Path(containers.mount("next").target)
    assert (root / "app").read_text() == "second version"
    assert not (root / "home/app/note").exists()
    with store.snapshots.directories(library.unpack(store, found)).open() as stack:
        assert [(change.kind, change.path) for change in changes(stack)] == [
            ("modified", "/app"),
            ("deleted", "/home/app/note"),
        ]
    assert [*store.verify()] == []


def test_a_container_over_an_image_of_docker(store: Store, containers: Containers) -> None:
    """Its layers are called by Docker's names, which no OCI manifest may have."""
    base = library.find(store, "box").image()
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    config = Descriptor.to(base.config.raw, DOCKER_CONFIG)
    layers = tuple(replace(layer, media_type=kind) for layer in base.manifest.layers)
    manifest = Manifest(media_type=DOCKER_MANIFEST, config=config, layers=layers)
    with store.leases.hold():
        store.blobs.add(manifest.raw)
        store.blobs.refer(Descriptor.to(manifest.raw, "").digest, [base.manifest.config.digest])
        target = Descriptor.to(manifest.raw, DOCKER_MANIFEST)
        library.tag(store, target, Reference.parse("docker-box"))
    containers.create("docker-box", "mine")
    image = containers.commit("mine", "box:2")
    assert image.manifest.media_type == OCI_MANIFEST
    assert {layer.media_type for layer in image.manifest.layers} == {MEDIA_TYPES["gzip"]}


def test_a_container_outlives_its_images_name(store: Store, containers: Containers) -> None:
    containers.create("box", "mine")
    for name in store.names.list():
        store.names.remove(name.name)
    store.gc()
    containers.mount("mine")
    containers.commit("mine", "saved")
    assert len(library.find(store, "saved").image().manifest.layers) == 3
    containers.remove("mine", force=True)
    store.names.remove(store.names.list()[0].name)
    assert store.gc().layers == 2


def test_a_thousand_containers_share_one_image(store: Store, containers: Containers) -> None:
    containers.create("box", "first")
    before = store.usage()
    for count in range(1, 1000):
        containers.create("box", f"c{count}")
    after = store.usage()
    assert len(after.containers) == 1000
    assert after.layers[0].users == 1001  # the image itself too
    assert [share.name for share in after.layers] == [share.name for share in before.layers]
    each = after.containers[0].own
    assert after.total - before.total == 999 * each
    assert each <= 8192  # a directory for changes
    busybox = [
        path for path in Path(store.root, "snapshots").glob("*/fs/bin/busybox") if path.exists()
    ]
    assert len(busybox) == 1
