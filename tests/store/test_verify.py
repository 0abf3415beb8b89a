"""Damage on disk is found, named, and where that is safe repaired."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import Store

FILES = {
    "etc": tree.directory(mode=0o700),
    "etc/passwd": tree.file(b"root", xattrs={"user.note": b"kept"}),
    "etc/alias": tree.hard_link("etc/passwd"),
    "link": tree.symlink("etc/passwd"),
    "gone": tree.file(b"gone"),
}


@pytest.fixture
def chain(store: Store, make_layer: MakeLayer) -> str:
    """Two layers, the upper one of which removes a file."""
    base = {"old": tree.file(b"old"), "etc": tree.directory(mode=0o711)}
    layers = [make_layer(base), make_layer({**FILES, "old": tree.whiteout()}, base)]
    store.leases.add(store.leases.create(), *(diff_id for _, diff_id in layers))
    with store.leases.hold():
        chain = [(store.blobs.add(blob).digest, diff_id) for blob, diff_id in layers]
        return store.layers.unpack(chain)


def test_nothing_is_wrong_with_a_new_store(store: Store, chain: str) -> None:
    store.snapshots.prepare("container", chain)
    assert [*store.verify()] == []
    assert os.listdir(f"{store.root}/ingest") == []


def _write(root: Path) -> None:
    path = root / "etc/passwd"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("evil")
    os.utime(path, ns=times)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (_write, "/etc/passwd"),
    "mode": (lambda root: (root / "etc").chmod(0o777), "/etc"),
    "owner": (lambda root: os.chown(root / "link", 5, 5, follow_symlinks=False), "/link"),
    "time": (lambda root: os.utime(root / "gone", (1, 1)), "/gone"),
    "removed": (lambda root: (root / "gone").unlink(), "/gone"),
    "added": (lambda root: (root / "new").touch(), "/new"),
    "xattr": (lambda root: os.setxattr(root / "etc/passwd", "user.note", b"x"), "/etc/passwd"),
    "whiteout": (lambda root: (root / "old").unlink(), "/old"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_layer_that_was_changed(store: Store, chain: str, kind: str) -> None:
    damage, path = DAMAGE[kind]
    root = Path(store.layers.path(chain))
    times = root.stat().st_atime_ns, root.stat().st_mtime_ns
    damage(root)
    os.utime(root, ns=times)
    (fault,) = store.verify()
    assert (fault.kind, fault.name, fault.path) == ("layer", chain, str(root))
    assert f"not what its blob unpacks to: {path}" in fault.message
    assert fault.message.endswith("; repair the store")
    (fault,) = store.verify(repair=True)
    assert fault.repaired
    assert [*store.verify()] == []
    assert os.listdir(f"{store.root}/ingest") == []


def test_a_blob_that_was_changed(store: Store) -> None:
    blob = store.blobs.add(b"content")
    Path(store.blobs.path(blob.digest)).write_bytes(b"c0ntent")
    (fault,) = store.verify()
    assert (fault.kind, fault.name) == ("blob", blob.digest)
    assert "the content is damaged (sha256:" in fault.message
    assert [fault.repaired for fault in store.verify(repair=True)] == [True]
    assert [*store.verify()] == []
    assert blob.digest not in store.blobs
    store.blobs.add(b"content")


def test_a_blob_that_is_gone_and_named(store: Store) -> None:
    blob = store.blobs.add(b"manifest")
    store.names.set("image", blob.digest, "type", blob.size)
    os.unlink(store.blobs.path(blob.digest))
    (fault,) = store.verify(repair=True)
    assert "remove the image image and pull it again" in fault.message
    assert not fault.repaired


def test_a_snapshot_that_is_gone(store: Store) -> None:
    store.snapshots.prepare("container")
    os.rename(f"{store.root}/snapshots/1", f"{store.root}/snapshots/2")
    (fault,) = store.verify()
    assert (fault.kind, fault.name) == ("snapshot", "container")
