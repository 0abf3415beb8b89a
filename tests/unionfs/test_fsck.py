"""Faults made on disk are found, and their repair changes nothing that a union shows."""

import errno
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest

from tests.conformance.doors import Layers, kernel, library
from tests.privilege import NO_HANDLES, NO_INDEX, NO_REDIRECTS, NO_TRUSTED, machine_only
from tests.tree import (
    MARKS,
    Tree,
    build,
    directory,
    file,
    opaque,
    redirect,
    snapshot,
    there,
    whiteout,
)
from unionfs import LayerStack, MountOptions, fsck

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes whiteouts and mounts")
pytestmark = needs_root

LOWER: Tree = {
    "file": file(b"1"),
    "dir/inner": file(b"2"),
    "dir/other": file(b"3"),
    "moved/inner": file(b"4"),
}


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    layers = Layers(tmp_path)
    layers.make()
    build(layers.lower[0], LOWER)
    return layers


def check(layers: Layers, *, repair: bool = False) -> list[fsck.Finding]:
    with LayerStack(layers.lower, layers.upper, layers.work) as stack:
        return list(fsck.check(stack, repair=repair))


def found(layers: Layers) -> list[tuple[str, str]]:
    """Kind and path in upper, or in the folder of the union, of each finding."""
    return [
        (
            finding.kind,
            finding.path.removeprefix(f"{layers.upper}/").removeprefix(f"{layers.base}/"),
        )
        for finding in check(layers)
    ]


def seen_alike(layers: Layers) -> dict[str, object]:
    """The tree of a stack, which the kernel and the library read the same."""
    with kernel(layers) as door:
        tree = there(snapshot(door))
    with library(layers) as door:
        assert there(snapshot(door)) == tree
    return tree


def marked(mark: str, value: bytes, prefix: str = MARKS) -> dict[str, bytes]:
    return {prefix + mark: value}


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """An upper with one fault. mountable: whether the whole of it can be read with the fault."""

    kind: str
    path: str
    upper: Tree
    mountable: bool = True


_BEYOND_NAMESPACES = {
    "redirect-to-nothing": NO_REDIRECTS,
    "redirect-to-no-sibling": NO_REDIRECTS,
    "origin-of-noise": NO_HANDLES,
    "mark-of-userxattr": NO_TRUSTED,
}


def names(faults: Mapping[str, Fault]) -> list[object]:
    """Their names, of which some can be made by root of the machine alone."""
    return [
        pytest.param(name, marks=machine_only(_BEYOND_NAMESPACES[name]))
        if name in _BEYOND_NAMESPACES
        else name
        for name in faults
    ]


REPAIRABLE = {
    "whiteout-of-nothing": Fault("stray whiteout", "gone", {"gone": whiteout()}),
    "whiteout-in-opaque": Fault(
        "stray whiteout", "dir/inner", {"dir": opaque(), "dir/inner": whiteout()}, mountable=False
    ),
    "whiteout-file-of-nothing": Fault(
        "stray whiteout",
        "dir/gone",
        {
            "dir": directory(xattrs=marked("opaque", b"x")),
            "dir/gone": file(mode=0, xattrs=marked("whiteout", b"y")),
        },
    ),
    "redirect-to-nothing": Fault(
        "dangling redirect", "dir", {"dir": redirect("/nowhere"), "dir/mine": file()}
    ),
    "redirect-to-no-sibling": Fault("dangling redirect", "new", {"new": redirect("nowhere")}),
    "redirect-out": Fault("corrupt mark", "dir", {"dir": redirect("/a//b")}, mountable=False),
    "opaque-maybe": Fault(
        "corrupt mark", "dir", {"dir": directory(xattrs=marked("opaque", b"maybe"))}
    ),
    "links-without-number": Fault(
        "corrupt mark", "mine", {"mine": file(xattrs=marked("nlink", b"many"))}
    ),
    "origin-of-noise": Fault(
        "broken origin", "dir", {"dir": directory(xattrs=marked("origin", b"\0\xfb" + b"n" * 27))}
    ),
}


@pytest.mark.parametrize("name", names(REPAIRABLE))
def test_a_fault_is_repaired_without_a_change_of_the_tree(layers: Layers, name: str) -> None:
    fault = REPAIRABLE[name]
    build(layers.upper, fault.upper)
    before = seen_alike(layers) if fault.mountable else None
    assert found(layers) == [(fault.kind, fault.path)]
    assert found(layers) == [(fault.kind, fault.path)], "looking repairs nothing"
    (repaired,) = check(layers, repair=True)
    assert repaired.repaired and repaired.remedy
    assert found(layers) == []
    assert before in (None, seen_alike(layers))


def test_a_directory_that_could_not_be_entered_shows_upper_alone(layers: Layers) -> None:
    build(layers.upper, {"dir": redirect("/a//b"), "dir/mine": file(b"kept")})
    with kernel(layers) as door, pytest.raises(OSError, check=lambda e: e.errno == errno.EINVAL):
        door.lstat("dir")
    check(layers, repair=True)
    tree = seen_alike(layers)
    assert [path for path in tree if path.startswith("dir/")] == ["dir/mine"]


REPORTED = {
    "aufs-whiteout": Fault("AUFS name", ".wh.file", {".wh.file": file()}),
    "aufs-opaque": Fault("AUFS name", "dir/.wh..wh..opq", {"dir/.wh..wh..opq": file()}),
    "unannounced-whiteout": Fault(
        "foreign mark", "mine", {"mine": file(xattrs=marked("whiteout", b"y"))}
    ),
    "mark-of-userxattr": Fault(
        "foreign mark", "dir", {"dir": directory(xattrs=marked("opaque", b"y", "user.overlay."))}
    ),
    "mark-of-fuse-overlayfs": Fault(
        "foreign mark",
        "dir",
        {"dir": directory(xattrs=marked("opaque", b"y", "user.fuseoverlayfs."))},
    ),
    "unknown-mark": Fault("foreign mark", "mine", {"mine": file(xattrs=marked("new", b""))}),
    "damaged-metacopy": Fault(
        "corrupt mark", "file", {"file": file(xattrs=marked("metacopy", b"\1\2"))}
    ),
}


@pytest.mark.parametrize("name", names(REPORTED))
def test_what_can_be_meant_in_two_ways_is_left(layers: Layers, name: str) -> None:
    fault = REPORTED[name]
    build(layers.upper, fault.upper)
    (finding,) = check(layers, repair=True)
    assert (finding.kind, finding.path) == (fault.kind, f"{layers.upper}/{fault.path}")
    assert not finding.repaired and finding.remedy is None
    assert found(layers) == [(fault.kind, fault.path)]


@machine_only(NO_REDIRECTS)
def test_data_that_no_layer_has(layers: Layers) -> None:
    """As after a lower file was removed below a copy of its metadata."""
    options = f"{layers.options},metacopy=on,redirect_dir=on"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, layers.target], check=True)
    try:
        os.chmod(f"{layers.target}/file", 0o600)
    finally:
        subprocess.run(["umount", layers.target], check=True)
    assert found(layers) == []
    os.unlink(f"{layers.lower[0]}/file")
    kinds = {kind for kind, path in found(layers) if path == "file"}
    assert "metadata without data" in kinds


@machine_only(NO_HANDLES)
def test_an_origin_that_is_gone(layers: Layers) -> None:
    with kernel(layers) as door:
        door.chmod("file", 0o600)
    assert found(layers) == []
    os.unlink(f"{layers.lower[0]}/file")
    assert found(layers) == [("broken origin", "file")]
    before = seen_alike(layers)
    check(layers, repair=True)
    assert found(layers) == []
    assert seen_alike(layers) == before


def test_what_a_killed_writer_left(layers: Layers) -> None:
    with library(layers) as door:
        door.chmod("file", 0o600)
    build(f"{layers.work}/work", {"#1": file(b"half"), "#2/half": file()})
    assert found(layers) == [("leftover", "workdir/work/#1"), ("leftover", "workdir/work/#2")]
    check(layers, repair=True)
    assert os.listdir(f"{layers.work}/work") == []
    assert found(layers) == []


@machine_only(NO_INDEX)
def test_a_copy_in_the_index_that_has_no_name(layers: Layers) -> None:
    """As after its name in upper was removed by hand, and its lower file too."""
    os.link(f"{layers.lower[0]}/file", f"{layers.lower[0]}/linked")
    options = f"{layers.options},index=on"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, layers.target], check=True)
    try:
        os.chmod(f"{layers.target}/file", 0o600)
    finally:
        subprocess.run(["umount", layers.target], check=True)

    def findings(*, repair: bool = False) -> list[fsck.Finding]:
        indexed = MountOptions(index=True)
        with LayerStack(layers.lower, layers.upper, layers.work, options=indexed) as stack:
            return list(fsck.check(stack, repair=repair))

    assert findings() == []
    os.unlink(f"{layers.upper}/file")
    for name in ("file", "linked"):
        os.unlink(f"{layers.lower[0]}/{name}")
    (entry,) = os.listdir(f"{layers.work}/index")
    (found,) = findings(repair=True)
    assert (found.kind, found.path) == ("orphaned index entry", f"{layers.work}/index/{entry}")
    assert found.repaired
    assert findings() == []
    Path(f"{layers.work}/index/noise").touch()
    (found,) = findings(repair=True)
    assert (found.kind, found.remedy) == ("foreign mark", None)


def test_a_volatile_mount_that_did_not_end(layers: Layers) -> None:
    os.makedirs(f"{layers.work}/work/incompat/volatile")
    assert found(layers) == [("volatile", "workdir/work/incompat/volatile")]
    check(layers, repair=True)
    assert os.path.isdir(f"{layers.work}/work/incompat/volatile")


@pytest.mark.parametrize(
    "write", [pytest.param("kernel", marks=machine_only(NO_REDIRECTS)), "library"]
)
def test_what_unions_leave_is_sound(layers: Layers, write: str) -> None:
    """Every mark that a union makes, those of a union in it too."""
    door_of = {"kernel": kernel, "library": library}[write]
    with door_of(layers) as door:
        door.chmod("file", 0o600)
        door.rename("moved", "renamed")
        door.rename("dir", "renamed/dir")
        door.mkdir("dir")
        door.unlink("renamed/dir/inner")
        door.unlink("file")
        door.setxattr("dir", MARKS + "opaque", b"y")
        door.setxattr("renamed", MARKS + "overlay.redirect", b"/../..")
    assert found(layers) == []


@machine_only(NO_REDIRECTS)
def test_lower_layers_are_checked_and_left(layers: Layers) -> None:
    """Each against those below it."""
    build(layers.lower[1], {"file": whiteout(), "dir": redirect("/nowhere"), ".wh.gone": file()})
    build(layers.lower[2], {"file": file()})
    expected = [
        ("stray whiteout", "lower2/.wh.gone"),
        ("dangling redirect", "lower2/dir"),
    ]
    assert found(layers) == expected
    assert not any(finding.remedy for finding in check(layers, repair=True))
    assert found(layers) == expected
    os.unlink(f"{layers.lower[2]}/file")
    assert found(layers) == [*expected, ("stray whiteout", "lower2/file")]


@pytest.fixture(params=["kernel", "library"])
def used(layers: Layers, request: pytest.FixtureRequest) -> Iterator[Layers]:
    build(layers.upper, {"gone": whiteout()})
    with {"kernel": kernel, "library": library}[request.param](layers) as door:
        door.mkdir("new")
        yield layers


def test_a_union_in_use_is_left_alone(used: Layers) -> None:
    for repair in (False, True):
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EBUSY):
            check(used, repair=repair)
    assert stat.S_ISCHR(os.lstat(f"{used.upper}/gone").st_mode)
