"""The changes of a top layer: what differs between the union with it and without, in kernel mounts.

Each story is played on a kernel overlayfs mount, which leaves its upper layer. The expectation is
what two snapshots, of that mount and of one of the lower layers alone, differ in.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.doors import Folder
from tests.tree import (
    Seen,
    Snapshot,
    Tree,
    build,
    directory,
    file,
    hard_link,
    opaque,
    redirect,
    snapshot,
    symlink,
    whiteout,
)
from unionfs import LayerStack, mount
from unionfs.layers import Change, changes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

BASE: Tree = {
    "etc/motd": file(b"welcome\n"),
    "etc/hosts": file(b"localhost\n"),
    "usr/bin/tool": file(b"tool", mode=0o755),
    "usr/lib/deep/er/file": file(b"deep"),
    "usr/link": symlink("bin/tool"),
    "srv/a": file(b"a"),
    "srv/b": hard_link("srv/a"),
}


@contextmanager
def mounted(stack: LayerStack, target: Path) -> Iterator[Path]:
    target.mkdir()
    with mount(stack, target, "overlayfs"):
        yield target


def play(folder: Path, story: Callable[[Path], object]) -> tuple[list[Change], list[Change]]:
    """The changes that a story leaves in an upper: as the snapshots show them, and as told."""
    for name in ("base", "middle", "upper", "work"):
        (folder / name).mkdir()
    build(str(folder / "base"), BASE)
    build(str(folder / "middle"), {"etc/hosts": file(b"middle\n"), "srv/c": file(b"c")})
    lower = [folder / "middle", folder / "base"]
    with LayerStack(lower) as stack, mounted(stack, folder / "before") as root:
        before = snapshot(Folder(str(root)))
    with LayerStack(lower, folder / "upper", folder / "work") as stack:
        with mounted(stack, folder / "union") as root:
            story(root)
            after = snapshot(Folder(str(root)))
        return expected(before, after), [*changes(stack)]


def expected(before: Snapshot, after: Snapshot) -> list[Change]:
    """The changes between two snapshots, aspects apart; a deleted directory is one."""
    found = []
    for path in sorted({*before, *after}, key=lambda path: path.split("/")):
        old, new = before.get(path), after.get(path)
        if new is None:
            parent = after.get(os.path.dirname(path) or ".")
            if isinstance(parent, Seen) and parent.kind == "directory":
                found.append(Change(f"/{path}", "deleted"))
        elif old is None:
            found.append(Change(f"/{path}", "added"))
        elif comparable(old) != comparable(new):
            found.append(Change(f"/{path}".removesuffix("."), "modified"))
    return found


def comparable(seen: Seen | str) -> object:
    """What of a file is compared: neither link counts nor a directory's times."""
    assert isinstance(seen, Seen), seen
    time = None if seen.kind == "directory" else seen.mtime
    return seen.kind, seen.mode, seen.owner, seen.size, time, seen.content, seen.rdev, seen.xattrs


def edit(root: Path) -> None:
    (root / "etc/motd").write_text("changed\n")
    (root / "etc/new").touch()
    (root / "opt/sub").mkdir(parents=True)
    (root / "opt/sub/file").write_text("x")


def attributes(root: Path) -> None:
    os.chmod(root / "etc/motd", 0o600)
    os.chown(root / "usr/bin/tool", 1, 2)
    os.utime(root / "srv/a", (1, 1))
    os.setxattr(root / "etc/hosts", "user.note", b"x")
    os.chmod(root / "usr/lib", 0o700)
    os.chmod(root, 0o711)


def remove(root: Path) -> None:
    (root / "etc/motd").unlink()
    (root / "usr/link").unlink()
    (root / "srv/b").unlink()
    shutil.rmtree(root / "usr/lib")


def replace_directory(root: Path) -> None:
    (root / "srv/a").unlink()
    (root / "srv/b").unlink()
    (root / "srv/c").unlink()
    (root / "srv").rmdir()
    (root / "srv").mkdir()
    (root / "srv/b").write_text("another")


def rename_directory(root: Path) -> None:
    (root / "usr").rename(root / "moved")
    (root / "moved/bin/tool").unlink()
    (root / "moved/lib/deep/er/new").touch()


def rename_within(root: Path) -> None:
    (root / "usr/lib/deep").rename(root / "usr/lib/deeper")
    (root / "usr/lib/deep").mkdir()


def exchange_types(root: Path) -> None:
    (root / "etc/motd").unlink()
    (root / "etc/motd").mkdir()
    (root / "etc/motd/in").touch()
    (root / "usr/link").unlink()
    (root / "usr/link").symlink_to("elsewhere")
    (root / "usr/bin/tool").unlink()
    (root / "usr/bin").rmdir()
    (root / "usr/bin").write_text("a file")


def nothing_in_the_end(root: Path) -> None:
    """Copied up, yet as it was; made, and gone again."""
    with open(root / "usr/bin/tool", "r+b"):
        pass
    (root / "etc/brief").touch()
    (root / "etc/brief").unlink()


@pytest.mark.parametrize(
    "story",
    [
        edit,
        attributes,
        remove,
        replace_directory,
        rename_directory,
        rename_within,
        exchange_types,
        nothing_in_the_end,
    ],
)
def test_the_changes_are_what_the_union_shows(
    tmp_path: Path, story: Callable[[Path], object]
) -> None:
    wanted, found = play(tmp_path, story)
    assert [Change(change.path, change.kind) for change in found] == wanted
    assert bool(wanted) == (story is not nothing_in_the_end)


def test_what_differs_of_a_modified_file(tmp_path: Path) -> None:
    _, found = play(tmp_path, attributes)
    assert {change.path: change.aspects for change in found} == {
        "/": ("mode",),
        "/etc/hosts": ("xattrs",),
        "/etc/motd": ("mode",),
        "/srv/a": ("time",),
        "/usr/bin/tool": ("owner",),
        "/usr/lib": ("mode",),
    }


def test_equal_size_and_time_do_not_hide_a_change(tmp_path: Path) -> None:
    def same_size(root: Path) -> None:
        times = os.stat(root / "etc/motd")
        (root / "etc/motd").write_text("WELCOME\n")
        os.utime(root / "etc/motd", ns=(times.st_atime_ns, times.st_mtime_ns))

    assert play(tmp_path, same_size)[1] == [Change("/etc/motd", "modified", ("content",))]


def told(folder: Path, *layers: Tree) -> list[tuple[str, str]]:
    """The changes of the first of some layers."""
    roots = [folder / f"layer{number}" for number in range(len(layers))]
    for root, tree in zip(roots, layers, strict=True):
        build(str(root), tree)
    with LayerStack(roots) as stack:
        return [(change.kind, change.path) for change in changes(stack)]


def test_image_layers_with_aufs_whiteouts(tmp_path: Path) -> None:
    top = {".wh.gone": file(), "dir/.wh..wh..opq": file(), "dir/new": file()}
    below = {"gone/file": file(), "dir/old": file(), "kept": file()}
    assert told(tmp_path, top, below) == [
        ("added", "/dir/new"),
        ("deleted", "/dir/old"),
        ("deleted", "/gone"),
    ]


def test_a_whiteout_over_nothing_and_an_opaque_new_directory(tmp_path: Path) -> None:
    top = {"none": whiteout(), "dir": opaque(), "dir/none": whiteout()}
    assert told(tmp_path, top, {"kept": file()}) == [("added", "/dir")]


def test_a_redirect_of_a_layer_below_is_no_change(tmp_path: Path) -> None:
    middle = {"new": redirect("old"), "old": whiteout()}
    assert told(tmp_path, {"new/added": file()}, middle, {"old/file": file()}) == [
        ("added", "/new/added")
    ]


def test_a_lone_layer_adds_all(tmp_path: Path) -> None:
    assert told(tmp_path, {"dir/file": file(), "gone": whiteout()}) == [
        ("added", "/dir"),
        ("added", "/dir/file"),
    ]


def test_a_directory_comes_before_what_is_in_it_and_that_before_the_next_name(
    tmp_path: Path,
) -> None:
    tree = {"a": directory(), "a-b": file(), "a/b": file()}
    assert [path for _, path in told(tmp_path, tree, {})] == ["/a", "/a/b", "/a-b"]


def test_directories_as_deep_as_paths_are_long(tmp_path: Path) -> None:
    depth = 1500
    for root in ("layer", "empty"):
        (tmp_path / root).mkdir()
    deep = "/".join("d" * depth)
    subprocess.run(["mkdir", "-p", tmp_path / "layer" / deep], check=True)
    try:
        with LayerStack([tmp_path / "layer", tmp_path / "empty"]) as stack:
            assert [*changes(stack)][-1] == Change(f"/{deep}", "added")
    finally:  # pytest's own removal goes less deep
        subprocess.run(["rm", "-r", tmp_path / "layer/d"], check=True)


BRANCHES: list[Tree] = [
    {"app": file(b"two"), "etc/conf": whiteout(), "lib": opaque(), "lib/new": file()},
    {"app": file(b"one"), "etc/own": file(b"own"), "lib/old": file(), "dir/kept": whiteout()},
    {"etc/conf": file(b"c"), "etc/kept": file(), "lib/base": file(), "dir/kept": file()},
]


def test_two_unions_that_share_a_layer(tmp_path: Path) -> None:
    """Expected is what two kernel mounts show."""
    roots = [tmp_path / name for name in ("new", "old", "base")]
    for root, tree in zip(roots, BRANCHES, strict=True):
        build(str(root), tree)
    seen = []
    for number, own in enumerate(roots[:2]):
        with (
            LayerStack([own, roots[2]]) as stack,
            mounted(stack, tmp_path / f"mount{number}") as root,
        ):
            seen.append(snapshot(Folder(str(root))))
    with LayerStack(roots) as stack:
        found = [Change(change.path, change.kind) for change in changes(stack, 1, 1)]
    assert found == expected(seen[1], seen[0])
    assert {change.kind for change in found} == {"added", "modified", "deleted"}
