"""The mount program killed, or told of an error, at any step of what a client asks for."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import faults
from tests.conformance.doors import Folder, Layers, fuse
from tests.crashes import CHANGES, Case, marks_of, seen, shown_by_all

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


def _some(*always: str) -> list[Any]:
    """Each try starts a mount program, so the other changes are left to `make crashes`."""
    return [
        pytest.param(
            name, marks=marks_of(name) + ([] if name in always else [pytest.mark.thorough])
        )
        for name in CHANGES
    ]


def _change(case: Case, layers: Layers, *options: str) -> bool:
    """Do it by the mount, whose program is traced with these options; whether it was killed."""
    with fuse(layers) as door:
        assert isinstance(door, Folder) and door.program is not None
        with faults.traced(door.program.pid, *options), suppress(OSError):
            case.change(door)
        return not door.alive()


@pytest.mark.parametrize("name", _some("write", "rmdir-with-whiteouts", "rename-lower-directory"))
def test_killed_at_every_step(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path / "union", CHANGES[name])
    states = case.states()
    log = tmp_path / "log"
    assert not _change(case, case.layers(), *faults.watching(log))
    killed = 0
    for step in faults.steps_in(log):
        layers = case.layers()
        killed += _change(case, layers, *faults.failing(step, "signal=KILL"))
        assert shown_by_all(layers) in states, f"killed at {step}"
    assert killed


@pytest.mark.parametrize("name", _some("rename-over-emptied", "rename-lower-directory"))
def test_told_of_an_error_at_every_step(tmp_path: Path, name: str) -> None:
    """The client is told too, unless the union can do without; what the mount shows is true."""
    case = Case(tmp_path / "union", CHANGES[name])
    states = case.states()
    log = tmp_path / "log"
    assert not _change(case, case.layers(), *faults.watching(log))
    for step in faults.steps_in(log):
        layers = case.layers()
        told = False
        with fuse(layers) as door:
            assert isinstance(door, Folder) and door.program is not None
            with faults.traced(door.program.pid, *faults.failing(step, "error=EIO")):
                try:
                    case.change(door)
                except OSError:
                    told = True
            tree = seen(door)
        assert tree in (states if told else states[1:]), f"an error at {step}"
        assert shown_by_all(layers) == tree, f"an error at {step}"
        assert layers.complaints() == []
