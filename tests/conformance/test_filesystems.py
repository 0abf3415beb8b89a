"""Layers on several filesystems: each file has the number that kernel overlayfs gives it.

By `xino=on` and `auto` a number is one of the whole union, by `off` one of a file's layer; a FUSE
mount has one st_dev, so there it is one of the union always (docs/differences.md).
"""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Door, Layers
from tests.privilege import NO_HANDLES, machine_only
from tests.tree import build, differences, directory, file, hard_link, symlink

LOWER = (
    {"first": file(b"1"), "both/first": file(b"1"), "covered": file(b"1"), "link": symlink("x")},
    {
        "second": file(b"2"),
        "both/second": file(b"2"),
        "covered": file(b"2"),
        "linked": file(b"2"),
        "other": hard_link("linked"),
        "of second/inner": file(b"2"),
    },
    {"third": file(b"3"), "both": directory(), "of third/inner": file(b"3")},
)


@contextmanager
def _apart(folder: Path, xino: str, *, writable: bool) -> Iterator[Layers]:
    """Layers on three filesystems; upper and the first lower one share theirs."""
    layers = Layers(folder, writable=writable, more=f"xino={xino}")
    with ExitStack() as mounted:

        def mount(target: str) -> None:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)
            mounted.callback(subprocess.run, ["umount", "-l", target], check=True)

        mount(str(folder))
        layers.make()
        for lower in layers.lower[1:]:
            mount(lower)
        for root, tree in zip(layers.lower, LOWER, strict=True):
            build(root, tree)
        yield layers


def _numbers(union: Door, *, devices: bool) -> dict[str, object]:
    """The number of each path; devices: of what is no directory, and with those of one st_dev."""
    found = {".": union.lstat(".")}
    paths = ["."]
    while paths:
        path = paths.pop()
        for entry in union.scandir(path):
            below = f"{path}/{entry.name}"
            found[below] = union.lstat(below)
            assert devices or entry.inode() == found[below].st_ino, below
            if _is_dir(found[below]):
                paths.append(below)
    if not devices:
        return {path: (status.st_ino, 0) for path, status in found.items()}
    files = {path: status for path, status in found.items() if not _is_dir(status)}
    return {
        path: (status.st_ino, min(at for at in files if files[at].st_dev == status.st_dev))
        for path, status in files.items()
    }


def _is_dir(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)


def _change(union: Door) -> None:
    for path in ("first", "second", "third", "both", "both/second", "of second/inner", "linked"):
        union.chmod(path, 0o700)
    union.mkdir("of third/new")
    union.rename("third", "of third/moved")


@machine_only(NO_HANDLES)
@pytest.mark.parametrize("xino", ["off", "auto", "on"])
@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("kernel", "fuse-cached")])
def test_numbers_are_the_kernels(door: str, xino: str, tmp_path: Path) -> None:
    """Before a change, after it, and mounted by the kernel then."""
    devices = xino == "off" and door == "library"
    reference = "off" if devices else "on"
    with _apart(tmp_path, xino, writable=True) as layers:
        by_kernel = Layers(layers.base, more=f"xino={reference}")
        with DOORS["kernel"](by_kernel) as union:
            before = _numbers(union, devices=devices)
        with DOORS[door](layers) as union:
            assert not differences(before, _numbers(union, devices=devices))
            _change(union)
            after = _numbers(union, devices=devices)
        with DOORS["kernel"](by_kernel) as union:
            assert not differences(_numbers(union, devices=devices), after)


@machine_only(NO_HANDLES)
@pytest.mark.parametrize("door", ["library", "fuse", "fuse-pure"])
def test_numbers_without_an_upper(door: str, tmp_path: Path) -> None:
    with _apart(tmp_path, "on", writable=False) as layers:
        seen = []
        for opener in (DOORS["kernel"], DOORS[door]):
            with opener(layers) as union:
                seen.append(_numbers(union, devices=False))
        assert not differences(*seen)


def test_numbers_that_leave_no_room(tmp_path: Path) -> None:
    """Of a union that is a layer: its numbers have top bits set. All stay different."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer").mkdir()
    outer = Layers(tmp_path / "outer")
    seen: dict[str, dict[str, object]] = {}
    with ExitStack() as held:
        inner = held.enter_context(_apart(tmp_path / "inner", "on", writable=True))
        held.enter_context(DOORS["kernel"](inner))
        outer.make()
        build(outer.lower[0], {str(number): file() for number in range(30)})
        subprocess.run(["mount", "--bind", inner.target, outer.lower[1]], check=True)
        held.callback(subprocess.run, ["umount", "-l", outer.lower[1]], check=True)
        for door in ("library", "fuse", "fuse-pure"):
            with DOORS[door](outer) as union:
                seen[door] = _numbers(union, devices=False)
    library = seen.pop("library")
    library.pop("./other")  # which is "linked" too
    assert len({*library.values()}) == len(library)
    assert all(library.items() <= others.items() for others in seen.values())
