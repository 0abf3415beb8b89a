"""Collection: what nothing leads to goes, and never what an import has recorded."""

import os
import subprocess
import sys

import pytest

from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import NotFound, Store
from unionfs.store.collect import GC_REFERENCE

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def image(store: Store, make_layer: MakeLayer) -> str:
    """An image of two layers by the name of base; the chain ID of its layers."""
    layers = [make_layer({name: tree.file(name.encode())}) for name in ("one", "two")]
    with store.leases.hold():
        blobs = [store.blobs.add(blob).digest for blob, _ in layers]
        manifest = store.blobs.add(b"a manifest")
        store.blobs.refer(manifest.digest, blobs)
        chain = [(blob, layer[1]) for blob, layer in zip(blobs, layers, strict=True)]
        top = store.layers.unpack(chain, image=manifest.digest)
        store.gc()
        store.names.set("base", manifest.digest, MANIFEST, manifest.size)
    return top


def counts(store: Store) -> tuple[int, int]:
    """How many blobs and layers there are, in the catalogue and on disk alike."""
    blobs, snapshots = [*store.blobs], [*store.snapshots.walk()]
    assert len(os.listdir(f"{store.root}/blobs/sha256")) == len(blobs)
    assert len(os.listdir(f"{store.root}/snapshots")) == len(snapshots)
    assert os.listdir(f"{store.root}/trash") == []
    return len(blobs), len(snapshots)


def test_what_a_name_leads_to_stays(store: Store, image: str) -> None:
    assert store.gc().blobs == 0
    assert counts(store) == (3, 2)
    found = store.names.get("base")
    assert [name.name for name in store.names.list()] == ["base"]
    store.names.set("again", found.digest, found.media_type, found.size)
    store.names.remove("base")
    with pytest.raises(NotFound, match="pull or import it"):
        store.names.get("base")
    assert store.gc().blobs == 0

    store.names.remove("again")
    collected = store.gc()
    assert (collected.blobs, collected.layers) == (3, 2)
    assert collected.bytes > 0
    assert counts(store) == (0, 0)


def test_a_snapshot_keeps_the_layers_below_it(store: Store, image: str) -> None:
    manifest = store.names.get("base").digest
    store.snapshots.prepare("container", image, {GC_REFERENCE: manifest})
    store.names.remove("base")
    assert store.gc().layers == 0
    assert counts(store) == (3, 3)
    store.snapshots.update(store.snapshots.stat("container"), f"labels.{GC_REFERENCE}")
    info = store.snapshots.stat("container")
    store.snapshots.update(type(info)(info.name, info.kind, info.parent, {}, 0, 0))
    assert store.gc().blobs == 3
    assert counts(store) == (0, 3)
    store.snapshots.remove("container")
    assert store.gc().layers == 2
    assert counts(store) == (0, 0)


def test_layers_go_with_the_image_that_needs_them(
    store: Store, image: str, make_layer: MakeLayer
) -> None:
    """Though another image has one of them, over another."""
    blob, diff_id = make_layer({"other": tree.file(b"other")})
    with store.leases.hold():
        other = store.blobs.add(blob).digest
        top = next(blob.digest for blob in store.blobs if blob.digest in _layers(store, image))
        manifest = store.blobs.add(b"another manifest")
        store.blobs.refer(manifest.digest, [other, top])
        store.layers.unpack([(other, diff_id)], image=manifest.digest)
        store.names.set("other", manifest.digest, MANIFEST, manifest.size)
    store.names.remove("base")
    assert store.gc().layers == 2
    assert counts(store) == (3, 1)
    assert top in store.blobs


def _layers(store: Store, chain: str) -> set[str]:
    with store._catalogue.read() as db:
        rows = db.execute("SELECT blob FROM snapshot WHERE name = ?", (chain,)).fetchall()
    return {blob for (blob,) in rows}


def test_a_lease_keeps_what_is_added_and_found(store: Store) -> None:
    old = store.blobs.add(b"old").digest
    with Store(store.root) as other, store.leases.hold():
        assert old in store.blobs  # relied on from now on
        new = store.blobs.add(b"new").digest
        other.blobs.add(b"by another, without a lease")
        assert other.gc().blobs == 1
        assert old in store.blobs and new in store.blobs
        (lease,) = other.leases.list()
        assert lease.things == 2
    assert store.gc().blobs == 2


def test_a_lease_that_outlives_its_process(store: Store) -> None:
    blob = store.blobs.add(b"content").digest
    lease = store.leases.create()
    store.leases.add(lease, blob)
    assert store.gc().blobs == 0
    store.leases.remove(lease)
    assert store.gc().blobs == 1
    with pytest.raises(NotFound, match="it may have expired"):
        store.leases.remove(lease)
    with pytest.raises(NotFound):
        store.leases.add(lease, blob)


def test_a_lease_that_expired_keeps_nothing(store: Store) -> None:
    blob = store.blobs.add(b"content").digest
    store.leases.add(store.leases.create(0), blob)
    assert store.leases.list() == []
    assert store.gc().blobs == 1


def test_a_lease_ends_with_its_process(store: Store) -> None:
    script = """if True:
        import os, signal, sys
        from unionfs.store import Store

        with Store(sys.argv[1]) as store, store.leases.hold():
            store.blobs.add(b"content")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", script, store.root], check=False)
    assert len([*store.blobs]) == len(store.leases.list()) == 1
    assert store.gc().blobs == 1
    assert store.leases.list() == []
    assert os.listdir(f"{store.root}/ingest") == []


def test_snapshots_that_a_user_made_stay(store: Store) -> None:
    store.snapshots.prepare("active")
    store.snapshots.prepare("tmp")
    store.snapshots.commit("committed", "tmp")
    assert store.gc().layers == 0
    assert counts_of_snapshots(store) == 2


def counts_of_snapshots(store: Store) -> int:
    return len([*store.snapshots.walk()])


def test_files_that_no_row_names_go(store: Store, image: str) -> None:
    for path in ("snapshots/99/fs", "snapshots/other", "blobs/sha256/x", "ingest/layer-x/fs/y"):
        os.makedirs(f"{store.root}/{path}")
    os.chmod(f"{store.root}/ingest/layer-x/fs", 0)
    store.cleanup()
    assert counts(store) == (3, 2)
    assert os.listdir(f"{store.root}/ingest") == []
