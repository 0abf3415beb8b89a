"""Layers unpacked once, whoever wants them, and checked against their diff IDs."""

import io
import os
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

import unionfs
from tests import tree
from tests.store.conftest import MakeLayer, mounted
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


def layer_of(store: Store, *members: tarfile.TarInfo) -> tuple[str, str]:
    """A layer with these entries alone, none of the root: its blob in the store, and diff ID."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member)
    blob = store.blobs.add(out.getvalue())
    return blob.digest, blob.digest


def described(mode: int, mtime: int) -> tarfile.TarInfo:
    """An entry of a directory."""
    member = tarfile.TarInfo("opt")
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, mode, mtime
    return member


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_an_equal_layer_is_once_on_disk_over_any_other(
    store: Store, chain: list[tuple[str, str]], make_layer: MakeLayer, tmp_path: Path
) -> None:
    """It stays for as long as one of its snapshots does, in whichever order these go."""
    other, diff_id = make_layer({"etc/old": tree.file(b"other")})
    tops = [store.layers.unpack(chain)]
    tops.append(store.layers.unpack([(store.blobs.add(other).digest, diff_id), chain[1]]))
    tops.append(store.layers.unpack([chain[1]]))
    assert len({store.layers.path(top) for top in tops}) == 1
    assert len({*store.layers.stack(tops[0]), *store.layers.stack(tops[1])}) == 3
    assert len(directories(store)) == 3
    assert [*store.verify()] == []
    size = store.snapshots.usage(tops[0]).size
    assert [share.shared for share in store.usage().layers if share.name in tops] == [size] * 3
    assert store.usage().total == store.usage().blobs + sum(
        {
            store.layers.path(info.name): store.snapshots.usage(info.name).size
            for info in store.snapshots.walk()
        }.values()
    )

    store.snapshots.remove(tops[0])
    store.cleanup()
    store.snapshots.view("view", tops[1])
    with mounted(store.snapshots.mounts("view"), tmp_path / "root") as root:
        assert (root / "app").read_text() == "program"
        assert not (root / "etc/old").exists()
    store.snapshots.remove("view")
    assert store.layers.unpack(chain) == tops[0]
    assert len(directories(store)) == 3
    collected = store.gc()
    assert (collected.layers, directories(store)) == (3, set())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_layer_twice_in_one_chain(
    store: Store, chain: list[tuple[str, str]], tmp_path: Path
) -> None:
    """The kernel mounts no directory twice, and the lower one shows nothing anyway."""
    top = store.layers.unpack([chain[1], chain[0], chain[1]])
    assert store.layers.stack(top) == [
        store.layers.path(top),
        store.layers.path(store.snapshots.stat(top).parent),
    ]
    store.snapshots.prepare("container", top)
    with mounted(store.snapshots.mounts("container"), tmp_path / "root") as root:
        assert sorted(os.listdir(root / "etc")) == ["motd"]
        assert (root / "etc/motd").read_text() == "changed"


def test_what_no_entry_tells_comes_from_below(store: Store) -> None:
    """Where that differs, the layer is unpacked once more; times alone make no difference."""
    app = layer_of(store, tarfile.TarInfo("opt/app"))
    tops: list[str] = []
    for mode, time in ((0o700, 1), (0o700, 2), (0o711, 1)):
        tops.append(store.layers.unpack([layer_of(store, described(mode, time)), app]))
        below, above = (Path(directory, "opt").stat() for directory in store.layers.stack(tops[-1]))
        assert above.st_mode == below.st_mode
    first, second, third = map(store.layers.path, tops)
    assert first == second != third
    assert [*store.verify()] == []
    store.snapshots.remove(tops[0])
    assert [*store.verify()] == []  # by what lies below the second


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path, make_layer: MakeLayer) -> None:
    """Its layers stay; what they lack entries for was not noted, so they are not shared."""
    root = tmp_path / "store"
    blob, diff_id = make_layer(APP)
    base, base_id = make_layer(BASE)
    with Store(root) as store:
        layer = (store.blobs.add(blob).digest, diff_id)
        store.layers.unpack([layer])
    with closing(sqlite3.connect(root / "catalogue.db")) as db, db:
        for statement in (
            "DROP INDEX snapshot_directory",
            "DROP INDEX snapshot_diff_id",
            "ALTER TABLE snapshot DROP COLUMN directory",
            "ALTER TABLE snapshot DROP COLUMN implicit",
            "PRAGMA user_version = 1",
        ):
            db.execute(statement)
    with Store(root) as store:
        assert diff_id in store.layers
        store.layers.unpack([(store.blobs.add(base).digest, base_id), layer])
        assert len(directories(store)) == 3
        assert [*store.verify()] == []
        assert store.gc().layers == 3
