"""The library killed, or told of an error, at any step of any change: old or new, never half."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from tests import faults
from tests.conformance.doors import Layers
from tests.crashes import CHANGES, Case, seen, shown_by_all
from unionfs import LayerStack, UnionFS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


def _steps(case: Case, log: Path) -> list[faults.Step]:
    layers = case.layers()
    assert faults.run(partial(case.run, layers), *faults.watching(log)) == 0
    return faults.steps_in(log)


@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_every_step(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path / "union", CHANGES[name])
    states = case.states()
    for step in _steps(case, tmp_path / "log"):
        layers = case.layers()
        end = faults.run(partial(case.run, layers), *faults.failing(step, "signal=KILL"))
        assert end == faults.KILLED
        assert shown_by_all(layers) in states, f"killed at {step}"


@pytest.mark.parametrize("name", CHANGES)
def test_told_of_an_error_at_every_step(tmp_path: Path, name: str) -> None:
    """The caller is told too, unless the union can do without; and it goes on serving."""
    case = Case(tmp_path / "union", CHANGES[name])
    states = case.states()

    def work(layers: Layers) -> None:
        with LayerStack(layers.lower, layers.upper, layers.work) as stack:
            union = UnionFS(stack)
            error = None
            try:
                case.change(union)
            except OSError as raised:
                error = raised
            tree = seen(UnionFS(stack))
            assert tree in states if error else tree == states[-1]
            if error:
                raise error

    for step in _steps(case, tmp_path / "log"):
        layers = case.layers()
        end = faults.run(partial(work, layers), *faults.failing(step, "error=EIO"))
        assert end in (0, errno.EIO), f"an error at {step}"
        half = _listed(f"{layers.work}/work")
        assert half == [] or step[0] in ("unlinkat", "rmdir", "unlink"), f"left by {step}: {half}"
        assert shown_by_all(layers) in (states if end else states[-1:]), f"an error at {step}"


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []
