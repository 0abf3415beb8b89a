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

from tests import tree
from tests.conformance.doors import Folder
from tests.privilege import NO_REDIRECTS, machine_only
from unionfs import LayerStack, mount
from unionfs.layers import Change, changes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

BASE: tree.Tree = {
    "etc/motd": tree.file(b"welcome\n"),
    "etc/hosts": tree.file(b"localhost\n"),
    "usr/bin/tool": tree.file(b"tool", mode=0o755),
    "usr/lib/deep/er/file": tree.file(b"deep"),
    "usr/link": tree.symlink("bin/tool"),
    "srv/a": tree.file(b"a"),
    "srv/b": tree.hard_link("srv/a"),
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
    tree.build(str(folder / "base"), BASE)
    tree.build(
        str(folder / "middle"), {"etc/hosts": tree.file(b"middle\n"), "srv/c": tree.file(b"c")}
    )
    lower = [folder / "middle", folder / "base"]
    with LayerStack(lower) as stack, mounted(stack, folder / "before") as root:
        before = tree.snapshot(Folder(str(root)))
    with LayerStack(lower, folder / "upper", folder / "work") as stack:
        with mounted(stack, folder / "union") as root:
            story(root)
            after = tree.snapshot(Folder(str(root)))
        return expected(before, after), [*changes(stack)]


def expected(before: tree.Snapshot, after: tree.Snapshot) -> list[Change]:
    """The changes between two snapshots, aspects apart; a deleted directory is one."""
    found = []
    for path in sorted({*before, *after}, key=lambda path: path.split("/")):
        old, new = before.get(path), after.get(path)
        if new is None:
            parent = after.get(os.path.dirname(path) or ".")
            if isinstance(parent, tree.Seen) and parent.kind == "directory":
                found.append(Change(f"/{path}", "deleted"))
        elif old is None:
            found.append(Change(f"/{path}", "added"))
        elif comparable(old) != comparable(new):
            found.append(Change(f"/{path}".removesuffix("."), "modified"))
    return found


def comparable(seen: tree.Seen | str) -> object:
    """What of a file is compared: neither link counts nor a directory's times."""
    assert isinstance(seen, tree.Seen), seen
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
        pytest.param(rename_directory, marks=machine_only(NO_REDIRECTS)),
        pytest.param(rename_within, marks=machine_only(NO_REDIRECTS)),
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


def told(folder: Path, *layers: tree.Tree) -> list[tuple[str, str]]:
    """The changes of the first of some layers."""
    roots = [folder / f"layer{number}" for number in range(len(layers))]
    for root, files in zip(roots, layers, strict=True):
        tree.build(str(root), files)
    with LayerStack(roots) as stack:
        return [(change.kind, change.path) for change in changes(stack)]


def test_image_layers_with_aufs_whiteouts(tmp_path: Path) -> None:
    top = {".wh.gone": tree.file(), "dir/.wh..wh..opq": tree.file(), "dir/new": tree.file()}
    below = {"gone/file": tree.file(), "dir/old": tree.file(), "kept": tree.file()}
    assert told(tmp_path, top, below) == [
        ("added", "/dir/new"),
        ("deleted", "/dir/old"),
        ("deleted", "/gone"),
    ]


def test_a_whiteout_over_nothing_and_an_opaque_new_directory(tmp_path: Path) -> None:
    top = {"none": tree.whiteout(), "dir": tree.opaque(), "dir/none": tree.whiteout()}
    assert told(tmp_path, top, {"kept": tree.file()}) == [("added", "/dir")]


@machine_only(NO_REDIRECTS)
def test_a_redirect_of_a_layer_below_is_no_change(tmp_path: Path) -> None:
    middle = {"new": tree.redirect("old"), "old": tree.whiteout()}
    assert told(tmp_path, {"new/added": tree.file()}, middle, {"old/file": tree.file()}) == [
        ("added", "/new/added")
    ]


def test_a_lone_layer_adds_all(tmp_path: Path) -> None:
    assert told(tmp_path, {"dir/file": tree.file(), "gone": tree.whiteout()}) == [
        ("added", "/dir"),
        ("added", "/dir/file"),
    ]


def test_a_directory_comes_before_what_is_in_it_and_that_before_the_next_name(
    tmp_path: Path,
) -> None:
    files = {"a": tree.directory(), "a-b": tree.file(), "a/b": tree.file()}
    assert [path for _, path in told(tmp_path, files, {})] == ["/a", "/a/b", "/a-b"]


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


BRANCHES: list[tree.Tree] = [
    {
        "app": tree.file(b"two"),
        "etc/conf": tree.whiteout(),
        "lib": tree.opaque(),
        "lib/new": tree.file(),
    },
    {
        "app": tree.file(b"one"),
        "etc/own": tree.file(b"own"),
        "lib/old": tree.file(),
        "dir/kept": tree.whiteout(),
    },
    {
        "etc/conf": tree.file(b"c"),
        "etc/kept": tree.file(),
        "lib/base": tree.file(),
        "dir/kept": tree.file(),
    },
]


def test_two_unions_that_share_a_layer(tmp_path: Path) -> None:
    """Expected is what two kernel mounts show."""
    roots = [tmp_path / name for name in ("new", "old", "base")]
    for root, files in zip(roots, BRANCHES, strict=True):
        tree.build(str(root), files)
    seen = []
    for number, own in enumerate(roots[:2]):
        with (
            LayerStack([own, roots[2]]) as stack,
            mounted(stack, tmp_path / f"mount{number}") as root,
        ):
            seen.append(tree.snapshot(Folder(str(root))))
    with LayerStack(roots) as stack:
        found = [Change(change.path, change.kind) for change in changes(stack, 1, 1)]
    assert found == expected(seen[1], seen[0])
    assert {change.kind for change in found} == {"added", "modified", "deleted"}
