"""The library killed, or told of an error, at any step of any change: old or new, never half."""

import errno
import os
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from tests import faults
from tests.conformance.doors import Layers
from tests.crashes import CHANGES, WITH_OPTIONS, Case, marks_of, seen, shown_by_all
from tests.mounts import private
from tests.privilege import NO_INDEX, NO_REDIRECTS, machine_only
from unionfs import LayerStack, UnionFS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@pytest.fixture(scope="module", autouse=True)
def own_mounts() -> Iterator[None]:
    with private():
        yield


_ALWAYS = ("write", "truncate", "unlink-lower", "create-over-whiteout", "rename-lower", "exchange")
"""The others are left to `make crashes`."""


def _steps(case: Case, log: Path) -> list[faults.Step]:
    layers = case.layers()
    assert faults.run(partial(case.run, layers), *faults.watching(log)) == 0
    return faults.steps_in(log)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *(pytest.param("", name, marks=marks_of(name)) for name in CHANGES),
        *(
            pytest.param(
                options, name, marks=machine_only(NO_INDEX if "index" in options else NO_REDIRECTS)
            )
            for options, name in WITH_OPTIONS
        ),
    ],
)
def test_killed_at_every_step(tmp_path: Path, options: str, name: str) -> None:
    change = WITH_OPTIONS[options, name] if options else CHANGES[name]
    case = Case(tmp_path / "union", change, options)
    states = case.states()
    for step in _steps(case, tmp_path / "log"):
        layers = case.layers()
        end = faults.run(partial(case.run, layers), *faults.failing(step, "signal=KILL"))
        assert end == faults.KILLED
        assert shown_by_all(layers) in states, f"killed at {step}"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            change, marks=marks_of(change) + ([] if change in _ALWAYS else [pytest.mark.thorough])
        )
        for change in CHANGES
    ],
)
def test_told_of_an_error_at_every_step(tmp_path: Path, change: str) -> None:
    """The caller is told too, unless the union can do without; and it goes on serving."""
    case = Case(tmp_path / "union", CHANGES[change])
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

    numbers = cycle(("EIO", "ENOSPC", "EDQUOT", "EROFS"))
    for step, name in zip(_steps(case, tmp_path / "log"), numbers, strict=False):
        layers = case.layers()
        end = faults.run(partial(work, layers), *faults.failing(step, f"error={name}"))
        assert end in (0, getattr(errno, name)), f"{name} at {step}"
        half = _listed(f"{layers.work}/work")
        assert half == [] or step[0] in ("unlinkat", "rmdir", "unlink"), f"left by {step}: {half}"
        assert shown_by_all(layers) in (states if end else states[-1:]), f"{name} at {step}"


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []
