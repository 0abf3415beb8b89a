"""Changes of a small union, and what may be seen when one was cut short: the old tree or the new.

The kernel's own mount is the judge, and the library must show the same. Each try has layers of its
own, made anew. Cost: 20 ms a try.
"""

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import pytest

from tests.conformance.doors import RENAME_EXCHANGE, Door, Layers, kernel, library
from tests.privilege import NO_REDIRECTS, machine_only
from tests.tree import (
    MARKS,
    Seen,
    Tree,
    View,
    build,
    directory,
    file,
    hard_link,
    opaque,
    snapshot,
    sparse,
    symlink,
    there,
    whiteout,
)
from unionfs import LayerStack, UnionFS, fsck
from unionfs.options import parse

LOWER: Tree = {
    "file": file(b"lower file", 0o640, 1, 2, {"user.mine": b"value"}),
    "sparse": sparse(1 << 20, (1 << 19, b"in the middle")),
    "link": symlink("file"),
    "d": directory(0o750, 3, 4),
    "d/inner": file(b"inner"),
    "d/deep/deeper/file": file(b"deep"),
    "empty": directory(),
    "hidden": file(b"hidden"),
    "hidden-too": file(),
    "linked": file(b"of several names", 0o640, 1, 2),
    "linked-too": hard_link("linked"),
    "d/linked-too": hard_link("linked"),
    "copied": file(b"data below"),
}
UPPER: Tree = {
    "mine": file(b"of upper"),
    "d": directory(0o750, 3, 4),
    "d/mine": file(b"mine"),
    "hidden": whiteout(),
    "hidden-too": whiteout(),
    "emptied": directory(),
    "emptied/gone": whiteout(),
    "new": opaque(),
}


def write(door: Door, path: str, data: bytes = b"NEW", flags: int = os.O_RDWR) -> None:
    """Write data, if any, to a file that is opened with flags."""
    with open(door.os_open(path, flags, 0o644), "wb", buffering=0) as stream:
        if data:
            stream.write(data)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
Change = Callable[[Door], object]
CHANGES: dict[str, Change] = {
    "copy-up": lambda door: write(door, "file", b""),
    "write": lambda door: write(door, "d/deep/deeper/file"),
    "write-sparse": lambda door: write(door, "sparse"),
    "chmod": lambda door: door.chmod("d/inner", 0o600),
    "chown": lambda door: door.chown("link", 5, 6, follow_symlinks=False),
    "setxattr": lambda door: door.setxattr("d/deep", "user.new", b"value"),
    "truncate": lambda door: door.truncate("file", 3),
    "unlink-lower": lambda door: door.unlink("d/inner"),
    "unlink-upper": lambda door: door.unlink("d/mine"),
    "rmdir-lower": lambda door: door.rmdir("empty"),
    "rmdir-with-whiteouts": lambda door: door.rmdir("emptied"),
    "create": lambda door: write(door, "d/deep/created", b"", _NEW),
    "create-over-whiteout": lambda door: write(door, "hidden", b"", _NEW),
    "mkdir-over-whiteout": lambda door: door.mkdir("hidden"),
    "symlink-over-whiteout": lambda door: door.symlink("file", "hidden"),
    "link-lower": lambda door: door.link("d/inner", "d/linked"),
    "rename-lower": lambda door: door.rename("file", "d/deep/renamed"),
    "rename-over-whiteout": lambda door: door.rename("file", "hidden"),
    "rename-lower-directory": lambda door: door.rename("d/deep", "moved"),
    "rename-over-emptied": lambda door: door.rename("d", "emptied"),
    "exchange": lambda door: door.rename("d", "file", RENAME_EXCHANGE),
}


_APART = ("rename-over-emptied", "exchange")
"""They rename a lower directory with a linked file: copied up whole, that is one of its own."""


def marks_of(change: str) -> list[pytest.MarkDecorator]:
    """What to mark the tests of a change with."""
    return [machine_only(NO_REDIRECTS)] if change in _APART else []


WITH_OPTIONS: dict[tuple[str, str], Change] = {
    ("index=on", "write"): lambda door: write(door, "linked-too"),
    ("index=on", "unlink"): lambda door: door.unlink("linked-too"),
    ("index=on", "rename"): lambda door: door.rename("linked", "d/z"),
    ("index=on", "link"): lambda door: door.link("d/linked-too", "z"),
    ("metacopy=on", "chmod"): lambda door: door.chmod("file", 0o600),
    ("metacopy=on", "rename"): lambda door: door.rename("file", "d/z"),
    ("metacopy=on", "link"): lambda door: door.link("file", "d/z"),
    ("metacopy=on", "fill"): lambda door: write(door, "copied", b""),
}


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One change, on layers made anew for each try. options: what these are mounted with."""

    folder: Path
    change: Change
    options: str = ""

    def layers(self) -> Layers:
        """As they are before the change."""
        shutil.rmtree(self.folder, ignore_errors=True)
        layers = Layers(self.folder, more=self.options)
        layers.make()
        build(layers.lower[1], {"emptied/gone": file()})
        build(layers.lower[0], LOWER)
        build(layers.upper, UPPER)
        if "metacopy" in self.options:
            copy = replace(sparse(len(b"data below")), xattrs={MARKS + "metacopy": b""})
            build(layers.upper, {"copied": copy})
        return layers

    def run(self, layers: Layers) -> None:
        """By the library."""
        with library(layers) as door:
            self.change(door)

    def states(self) -> tuple[dict[str, object], ...]:
        """What may be seen: the old tree; the new one with times of the old; the new one.

        A copy of metadata alone is given its data in place, so the new times show before.
        """
        layers = self.layers()
        old = shown(layers)
        self.run(layers)
        new = shown(layers)
        states = both_times(old, new)
        return tuple(states) if self.options else (*states[:2], new)


def both_times(old: dict[str, object], new: dict[str, object]) -> list[dict[str, object]]:
    """Both trees, each with its own times and those of the other; new last."""
    return [old, _with_times(new, old), _with_times(old, new), new]


def _with_times(tree: dict[str, object], times: dict[str, object]) -> dict[str, object]:
    return {
        path: replace(what, mtime=other.mtime)
        if isinstance(what, Seen) and isinstance(other := times.get(path), Seen)
        else what
        for path, what in tree.items()
    }


def seen(view: View) -> dict[str, object]:
    """A tree, but for times and links of directories: a parent's copy-up shows there first."""
    return {
        path: replace(what, mtime=0, nlink=0)
        if isinstance(what, Seen) and what.kind == "directory"
        else what
        for path, what in there(snapshot(view)).items()
    }


def shown(layers: Layers) -> dict[str, object]:
    """By the kernel."""
    with kernel(layers) as door:
        return seen(door)


def shown_by_all(layers: Layers, tolerated: Collection[str] = ("leftover",)) -> dict[str, object]:
    """By the kernel and the library. Nothing is left but in work, until the next writer.

    tolerated: the kinds of what `fsck` may find.
    """
    options = parse(layers.more).options
    with LayerStack(layers.lower, layers.upper, layers.work, options=options) as stack:
        faults = [found for found in fsck.check(stack) if found.kind not in tolerated]
        assert not faults, str(faults)
        tree = seen(UnionFS(stack))
        stack.claim()
        assert os.listdir(f"{layers.work}/work") == []
    assert tree == shown(layers)
    return tree
