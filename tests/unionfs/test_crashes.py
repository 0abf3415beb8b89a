"""A process that dies, or is told of an error, at any step of any change: old or new, never half.

The kernel's own mount is the judge: what it shows of the layers afterwards is the tree from before
the change or the one from after it, and the library shows the same.
"""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import pytest

from tests import faults
from tests.conformance.doors import Layers, kernel
from tests.tree import (
    Seen,
    Tree,
    View,
    build,
    directory,
    file,
    opaque,
    snapshot,
    sparse,
    symlink,
    there,
    whiteout,
)
from unionfs import LayerStack, UnionFS
from unionfs.system import RENAME_EXCHANGE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

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


def _write(union: UnionFS, path: str) -> None:
    with union.open(path, "r+b") as stream:
        stream.write(b"NEW")


Change = Callable[[UnionFS], object]
CHANGES: dict[str, Change] = {
    "copy-up": lambda union: union.copy_up("file"),
    "write": lambda union: _write(union, "d/deep/deeper/file"),
    "write-sparse": lambda union: _write(union, "sparse"),
    "chmod": lambda union: union.chmod("d/inner", 0o600),
    "chown": lambda union: union.chown("link", 5, 6, follow_symlinks=False),
    "setxattr": lambda union: union.setxattr("d/deep", "user.new", b"value"),
    "truncate": lambda union: union.truncate("file", 3),
    "unlink-lower": lambda union: union.unlink("d/inner"),
    "unlink-upper": lambda union: union.unlink("d/mine"),
    "rmdir-lower": lambda union: union.rmdir("empty"),
    "rmdir-with-whiteouts": lambda union: union.rmdir("emptied"),
    "create": lambda union: union.write_bytes("d/deep/created", b""),
    "create-over-whiteout": lambda union: union.write_bytes("hidden", b""),
    "mkdir-over-whiteout": lambda union: union.mkdir("hidden"),
    "symlink-over-whiteout": lambda union: union.symlink("file", "hidden"),
    "link-lower": lambda union: union.link("d/inner", "d/linked"),
    "rename-lower": lambda union: union.rename("file", "d/deep/renamed"),
    "rename-over-whiteout": lambda union: union.rename("file", "hidden"),
    "rename-lower-directory": lambda union: union.rename("d/deep", "moved"),
    "rename-over-emptied": lambda union: union.rename("d", "emptied"),
    "exchange": lambda union: union.rename("d", "file", RENAME_EXCHANGE),
}


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One change, on layers made anew for each try."""

    folder: Path
    change: Change

    def layers(self) -> Layers:
        shutil.rmtree(self.folder, ignore_errors=True)
        layers = Layers(self.folder)
        layers.make()
        build(layers.lower[1], {"emptied/gone": file()})
        build(layers.lower[0], LOWER)
        build(layers.upper, UPPER)
        return layers

    def run(self, layers: Layers) -> None:
        with LayerStack(layers.lower, layers.upper, layers.work) as stack:
            self.change(UnionFS(stack))


def _seen(view: View) -> dict[str, object]:
    """A tree, but for times and links of directories: a parent's copy-up shows there first."""
    return {
        path: replace(what, mtime=0, nlink=0)
        if isinstance(what, Seen) and what.kind == "directory"
        else what
        for path, what in there(snapshot(view)).items()
    }


def _shown(layers: Layers) -> dict[str, object]:
    with kernel(layers) as door:
        return _seen(door)


def _shown_by_all(layers: Layers) -> dict[str, object]:
    """After which a writer has found work as it may be, and left it clear."""
    with LayerStack(layers.lower, layers.upper, layers.work) as stack:
        seen = _seen(UnionFS(stack))
        stack.claim()
        assert os.listdir(f"{layers.work}/work") == []
    assert seen == _shown(layers)
    return seen


def _steps(case: Case, log: Path) -> list[faults.Step]:
    layers = case.layers()
    assert faults.run(partial(case.run, layers), *faults.watching(log)) == 0
    return faults.steps_in(log)


def _states(case: Case) -> tuple[dict[str, object], ...]:
    """What may be seen: the tree from before; the new one, with times from before; the new one."""
    layers = case.layers()
    old = _shown(layers)
    case.run(layers)
    new = _shown(layers)
    early = {
        path: replace(what, mtime=before.mtime)
        if isinstance(what, Seen) and isinstance(before := old.get(path), Seen)
        else what
        for path, what in new.items()
    }
    return old, early, new


@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_every_step(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path / "union", CHANGES[name])
    states = _states(case)
    for step in _steps(case, tmp_path / "log"):
        layers = case.layers()
        end = faults.run(partial(case.run, layers), *faults.failing(step, "signal=KILL"))
        assert end == faults.KILLED
        assert _shown_by_all(layers) in states, f"killed at {step}"


@pytest.mark.parametrize("name", CHANGES)
def test_told_of_an_error_at_every_step(tmp_path: Path, name: str) -> None:
    """The caller is told too, unless the union can do without; and it goes on serving."""
    case = Case(tmp_path / "union", CHANGES[name])
    states = _states(case)

    def work(layers: Layers) -> None:
        with LayerStack(layers.lower, layers.upper, layers.work) as stack:
            union = UnionFS(stack)
            error = None
            try:
                case.change(union)
            except OSError as raised:
                error = raised
            seen = _seen(UnionFS(stack))
            assert seen in states if error else seen == states[-1]
            if error:
                raise error

    for step in _steps(case, tmp_path / "log"):
        layers = case.layers()
        end = faults.run(partial(work, layers), *faults.failing(step, "error=EIO"))
        assert end in (0, errno.EIO), f"an error at {step}"
        half = _listed(f"{layers.work}/work")
        assert half == [] or step[0] in ("unlinkat", "rmdir", "unlink"), f"left by {step}: {half}"
        assert _shown_by_all(layers) in (states if end else states[-1:]), f"an error at {step}"


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []
