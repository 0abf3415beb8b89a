"""Layers unpacked once, whoever wants them, and checked against their diff IDs."""

import os
import threading
from pathlib import Path

import pytest

import unionfs
from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import NotFound, Store
from unionfs.store.digest import chain_id

BASE = {"etc/motd": tree.file(b"welcome"), "etc/old": tree.file(b"old")}
APP = {"etc/motd": tree.file(b"changed"), "etc/old": tree.whiteout(), "app": tree.file(b"program")}


@pytest.fixture
def chain(store: Store, make_layer: MakeLayer) -> list[tuple[str, str]]:
    """An image of two layers, whose blobs are in the store."""
    return [
        (store.blobs.add(blob).digest, diff_id)
        for blob, diff_id in (make_layer(BASE), make_layer(APP, BASE))
    ]


def directories(store: Store) -> set[str]:
    return {*os.listdir(f"{store.root}/snapshots")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_an_image_unpacked(store: Store, chain: list[tuple[str, str]], tmp_path: Path) -> None:
    top = store.layers.unpack(chain)
    assert top == chain_id(diff_id for _, diff_id in chain)
    assert top in store.layers
    assert store.layers.stack(top) == [store.layers.path(top), store.layers.path(chain[0][1])]
    assert store.snapshots.stat(top).parent == chain[0][1]
    assert store.snapshots.usage(top).inodes > 0

    store.snapshots.prepare("container", top)
    (tmp_path / "root").mkdir()
    with (
        store.snapshots.directories("container").open() as stack,
        unionfs.mount(stack, tmp_path / "root") as mount,
    ):
        root = Path(mount.target)
        assert sorted(os.listdir(root / "etc")) == ["motd"]
        assert (root / "etc/motd").read_text() == "changed"
        (root / "app").write_text("mine")
    assert Path(store.layers.path(top), "app").read_text() == "program"


def test_each_layer_is_once_on_disk(
    store: Store, chain: list[tuple[str, str]], make_layer: MakeLayer
) -> None:
    store.layers.unpack(chain)
    before = directories(store)
    assert store.layers.unpack(chain) == store.layers.unpack(chain)
    assert directories(store) == before
    blob, diff_id = make_layer({"other": tree.file(b"other")})
    told: list[str] = []
    other = [chain[0], (store.blobs.add(blob).digest, diff_id)]
    store.layers.unpack(other, unpacked=told.append)
    assert len(directories(store)) == 3
    assert told == [chain[0][1], chain_id([chain[0][1], diff_id])]


def test_a_layer_that_is_not_what_it_says(store: Store, chain: list[tuple[str, str]]) -> None:
    wrong = "sha256:" + "0" * 64
    with pytest.raises(OSError, match=r"the layer is sha256:.*, not sha256:000"):
        store.layers.unpack([chain[0], (chain[1][0], wrong)])
    assert chain[0][1] in store.layers
    assert len(directories(store)) == 1
    with pytest.raises(NotFound, match="no such blob"):
        store.layers.unpack([(wrong, wrong)])
    store.cleanup()
    assert os.listdir(f"{store.root}/ingest") == []


def test_several_who_want_one_layer_unpack_it_once(
    store: Store, chain: list[tuple[str, str]]
) -> None:
    together = threading.Barrier(4)
    found: list[str] = []

    def unpack() -> None:
        with Store(store.root) as other:
            together.wait()
            found.append(other.layers.unpack(chain))

    threads = [threading.Thread(target=unpack) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store.layers.unpack(chain)] * 4
    assert len(directories(store)) == 2
    assert os.listdir(f"{store.root}/ingest") == []
