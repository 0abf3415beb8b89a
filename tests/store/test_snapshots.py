"""The contract of containerd's snapshotters, told as its test suite tells it.

Rule: containerd, core/snapshots/testsuite. Snapshots are mounted as a runtime would.
"""

import os
import shutil
import stat
from pathlib import Path

import pytest

import unionfs
from tests.store.conftest import mounted
from unionfs.store import (
    AlreadyExists,
    FailedPrecondition,
    Info,
    InvalidArgument,
    NotFound,
    Snapshots,
    Store,
)
from unionfs.store.catalogue import now

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@pytest.fixture
def snapshots(store: Store) -> Snapshots:
    return store.snapshots


def files(root: Path) -> dict[str, str | None]:
    """Paths below root, with the text of files."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def test_from_prepare_to_commit_to_view(snapshots: Snapshots, tmp_path: Path) -> None:
    with mounted(snapshots.prepare("preparing"), tmp_path / "root") as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        (root / "foo").write_text("foo")
        (root / "a/b/c").mkdir(parents=True)
        first = files(root)
    snapshots.commit("committed", "preparing")
    assert snapshots.stat("committed").kind == "committed"
    assert snapshots.stat("committed").parent == ""
    with pytest.raises(NotFound):
        snapshots.stat("preparing")

    with mounted(snapshots.prepare("next", "committed"), tmp_path / "root") as root:
        assert files(root) == first
        (root / "bar").write_text("bar")
        (root / "foo").write_text("bar")
        (root / "a/b/c").rmdir()
        (root / "a/b").rmdir()
        second = files(root)
    assert snapshots.stat("next").kind == "active"
    assert snapshots.stat("next").parent == "committed"
    snapshots.commit("committed-next", "next")
    assert [info.name for info in snapshots.walk()] == ["committed", "committed-next"]
    assert [*snapshots.walk()] == [snapshots.stat("committed"), snapshots.stat("committed-next")]

    with mounted(snapshots.view("view", "committed-next"), tmp_path / "root") as root:
        assert files(root) == second
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()
    with mounted(snapshots.view("view-of-one", "committed"), tmp_path / "root") as root:
        assert files(root) == first
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()
    for name in ("view", "view-of-one"):
        snapshots.remove(name)
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        snapshots.remove("committed")
    snapshots.remove("committed-next")
    snapshots.remove("committed")
    assert [*snapshots.walk()] == []


def test_layers_below_have_indexes_beside_them(
    snapshots: Snapshots, store: Store, tmp_path: Path
) -> None:
    """Made when one is read without the kernel, never of what may be written, gone with it."""
    with mounted(snapshots.prepare("preparing"), tmp_path / "root") as root:
        (root / "a/b").mkdir(parents=True)
    snapshots.commit("base", "preparing")
    snapshots.prepare("next", "base")

    def kept() -> int:
        return len([*tmp_path.glob("store/snapshots/*/*-*-[tu]*")])

    assert kept() == 0
    with snapshots.directories("next").open() as stack:
        union = unionfs.UnionFS(stack)
        assert union.listdir("a") == ["b"]
        assert kept() == 1
        union.makedirs("a/b/c")
    snapshots.commit("top", "next")
    with snapshots.directories("top").open() as stack:
        assert unionfs.UnionFS(stack).listdir("a/b") == ["c"]
        assert kept() == 2
    snapshots.remove("top")
    store.gc()
    assert kept() == 1


def test_the_kinds_of_errors(snapshots: Snapshots, store: Store) -> None:
    snapshots.prepare("active")
    snapshots.prepare("other")
    snapshots.commit("committed", "other")
    snapshots.view("view", "committed")
    for key in ("active", "view", "committed"):
        for make in (snapshots.prepare, snapshots.view):
            with pytest.raises(AlreadyExists):
                make(key, "committed")
    for parent in ("active", "view"):
        with pytest.raises(InvalidArgument, match="commit it to use it as parent"):
            snapshots.prepare("new", parent)
    with pytest.raises(NotFound):
        snapshots.prepare("new", "absent")
    with pytest.raises(NotFound):
        snapshots.commit("new", "absent")
    with pytest.raises(AlreadyExists):
        snapshots.commit("committed", "active")
    for key in ("view", "committed"):
        with pytest.raises(FailedPrecondition, match="only an active snapshot is committed"):
            snapshots.commit("new", key)
    with pytest.raises(FailedPrecondition, match="it is committed"):
        snapshots.mounts("committed")
    for act in (snapshots.mounts, snapshots.stat, snapshots.usage, snapshots.remove):
        with pytest.raises(NotFound):
            act("absent")
    with pytest.raises(NotFound):
        snapshots.update(Info("absent", "active", "", {}, 0, 0))
    assert isinstance(NotFound("", ""), FileNotFoundError)
    assert {*os.listdir(f"{store.root}/snapshots")} == {"1", "2"}  # a view has no directory


def test_a_key_can_be_used_again(snapshots: Snapshots) -> None:
    snapshots.prepare("committed-a")
    snapshots.commit("committed-1", "committed-a")
    snapshots.prepare("reuse", "committed-1")
    snapshots.remove("reuse")
    snapshots.view("reuse", "committed-1")
    snapshots.remove("reuse")
    snapshots.prepare("reuse")
    snapshots.remove("committed-1")
    snapshots.commit("committed-1", "reuse")


def test_a_view_of_nothing_is_empty(snapshots: Snapshots, tmp_path: Path) -> None:
    with mounted(snapshots.view("view"), tmp_path / "root") as root:
        assert files(root) == {}
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()


def test_labels_are_all_that_can_be_updated(snapshots: Snapshots) -> None:
    before = now()
    snapshots.prepare("c1-a")
    snapshots.commit("c1", "c1-a")
    snapshots.prepare("a1", "c1", {"first": "1"})
    snapshots.view("v1", "c1")
    for name, parent in (("c1", ""), ("a1", "c1"), ("v1", "c1")):
        made = snapshots.stat(name)
        assert before < made.created == made.updated < now()
        wanted = Info(name, "view", "absent", {"l1": "v1", "l2": "v2", "l3": "v3"}, 0, 0)
        updated = snapshots.update(wanted)
        assert (updated.kind, updated.parent) == (made.kind, parent)
        assert updated.created == made.created < updated.updated
        assert updated.labels == {"l1": "v1", "l2": "v2", "l3": "v3"}

        wanted = Info(name, "view", "", {"l1": "new", "l4": "v4"}, 0, 0)
        updated = snapshots.update(wanted, "labels.l1", "labels.l2")
        assert updated.labels == {"l1": "new", "l3": "v3"}
        assert snapshots.update(wanted, "labels").labels == {"l1": "new", "l4": "v4"}
        with pytest.raises(InvalidArgument, match="parent cannot be changed"):
            snapshots.update(wanted, "parent")


@pytest.fixture
def family(snapshots: Snapshots) -> Snapshots:
    root = {"containerd.io/gc.root": "walk"}
    snapshots.prepare("a-np", labels=root)
    snapshots.prepare("p-tmp", labels={"dropped": "yes"})
    snapshots.commit("p", "p-tmp", root)
    snapshots.prepare("a", "p", root)
    snapshots.view("v", "p", root)
    snapshots.prepare("p-wl-tmp")
    snapshots.commit("p-wl", "p-wl-tmp", root | {"l": "1"})
    snapshots.prepare("a-wl", "p-wl", root | {"l": "2"})
    snapshots.view("v-wl", "p-wl", root | {"l": "3"})
    snapshots.prepare("a-np-wl", labels=root | {"l": "2"})
    return snapshots


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (['labels."containerd.io/gc.root"==walk'], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (['kind==active,labels."containerd.io/gc.root"==walk'], "a a-np a-np-wl a-wl"),
        (["kind==view"], "v v-wl"),
        (["kind==committed"], "p p-wl"),
        (["name==p", "name==a-np-wl"], "a-np-wl p"),
        (["name==a-wl,labels.l"], "a-wl"),
        (["parent==p"], "a v"),
        (['parent!=""'], "a a-wl v v-wl"),
        (["labels.l"], "a-np-wl a-wl p-wl v-wl"),
        (["labels.l==2"], "a-np-wl a-wl"),
        (["name~=^a-.*wl$"], "a-np-wl a-wl"),
        (['name~="^v"'], "v v-wl"),
        (["labels.dropped"], ""),
        (["unknown==x"], ""),
    ],
)
def test_a_walk_takes_what_a_filter_matches(
    family: Snapshots, filters: list[str], found: str
) -> None:
    assert " ".join(info.name for info in family.walk(*filters)) == found


@pytest.mark.parametrize("text", ["name=x", "==x", "name==", "name~=(", "a,,b", 'name=="x'])
def test_what_is_no_filter_is_refused(snapshots: Snapshots, text: str) -> None:
    with pytest.raises(InvalidArgument):
        snapshots.walk(text)


def test_a_walk_can_stat(family: Snapshots) -> None:
    for info in family.walk():
        assert family.stat(info.name) == info


def test_changes_of_one_layer_over_another(snapshots: Snapshots, tmp_path: Path) -> None:
    """Modes, owners, removed and renamed directories, files that took another's name."""

    def lower(root: Path) -> None:
        for name in ("dir1", "dir2", "dir3", "gone"):
            (root / name).mkdir(0o700)
            (root / name / "file").write_text(name)
        os.chown(root / "dir1", 1, 1)

    def upper(root: Path) -> None:
        os.chown(root / "dir1", 0, 0)
        os.chown(root / "dir1/file", 1, 1)
        os.chmod(root / "dir2/file", 0o666)
        shutil.move(root / "dir2", root / "renamed")  # the kernel has no redirects with user. marks
        (root / "gone/file").unlink()
        (root / "gone").rmdir()
        (root / "gone").mkdir()
        (root / "gone/new").write_text("new")
        os.rename(root / "dir3/file", root / "moved")
        os.link(root / "moved", root / "linked")

    def look(root: Path) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for name, text in files(root).items():
            status = os.lstat(root / name)
            found.append((name, text, status.st_mode, status.st_uid, status.st_gid))
        return found

    for name, parent, apply in (("one", "", lower), ("two", "one", upper)):
        snapshots.prepare("tmp", parent)
        # mounted by us: containerd's options leave out the redirects that renaming needs
        with snapshots.directories("tmp").open() as stack:
            (tmp_path / "root").mkdir(exist_ok=True)
            with unionfs.mount(stack, tmp_path / "root"):
                apply(tmp_path / "root")
        snapshots.commit(name, "tmp")
    flat = tmp_path / "flat"
    flat.mkdir()
    lower(flat)
    upper(flat)
    with (
        snapshots.directories("two").open() as stack,
        unionfs.mount(stack, tmp_path / "root"),
    ):
        assert look(tmp_path / "root") == look(flat)


def test_usage_counts_own_files_once(snapshots: Snapshots, tmp_path: Path) -> None:
    with mounted(snapshots.prepare("tmp"), tmp_path / "root") as root:
        empty = snapshots.usage("tmp")
        assert empty.inodes == 1
        (root / "data").write_bytes(os.urandom(1 << 20))
        os.link(root / "data", root / "link")
        used = snapshots.usage("tmp")
        assert used.inodes == 2
        assert 1 << 20 <= used.size - empty.size < (1 << 20) + 65536
    snapshots.commit("base", "tmp")
    assert snapshots.usage("base") == used
    snapshots.prepare("next", "base")
    assert snapshots.usage("next").inodes == 1
    snapshots.view("view", "base")
    assert (snapshots.usage("view").size, snapshots.usage("view").inodes) == (0, 0)


def test_a_root_is_like_the_one_below(snapshots: Snapshots, store: Store) -> None:
    snapshots.prepare("tmp")
    upper = snapshots.directories("tmp").upper
    assert upper is not None
    os.chown(upper, 7, 8)
    os.chmod(upper, 0o1777)
    snapshots.commit("base", "tmp")
    snapshots.prepare("next", "base")
    upper = snapshots.directories("next").upper
    assert upper is not None
    status = os.stat(upper)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o1777)


def test_128_layers(snapshots: Snapshots, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()

    def change(root: Path, count: int) -> None:
        (root / "overwritten").write_text(f"{count} was here")
        (root / "added").mkdir(exist_ok=True)
        (root / f"added/file-{count}").write_text("same")
        if (root / "replaced").exists():
            (root / f"replaced/file-{count - 1}").unlink()
            (root / "replaced").rmdir()
        (root / "replaced").mkdir()
        (root / f"replaced/file-{count}").write_text("only me")

    (tmp_path / "root").mkdir()
    parent = ""
    for count in range(128):
        snapshots.prepare("tmp", parent)
        change(flat, count)
        with (
            snapshots.directories("tmp").open() as stack,
            unionfs.mount(stack, tmp_path / "root"),
        ):
            change(tmp_path / "root", count)
        snapshots.commit(parent := f"layer-{count}", "tmp")
    (call,) = snapshots.view("all", parent)
    assert len(call.options[0].split(":")) == 128  # beyond what mount(8) can hand over
    with snapshots.directories("all").open() as stack, unionfs.mount(stack, tmp_path / "root"):
        assert files(tmp_path / "root") == files(flat)


def test_closing_twice(store: Store) -> None:
    store.snapshots.prepare("a")
    store.close()
    store.close()
