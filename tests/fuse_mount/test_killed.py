"""The mount program killed at any step of what a client asks for: old or new, never half."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests import faults
from tests.conformance.doors import Folder, Layers, fuse
from tests.crashes import CHANGES, Case, shown_by_all

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

# Each try starts a mount program, so the others are left to `make crashes`.
_ALWAYS = ("write", "unlink-lower", "rmdir-with-whiteouts", "rename-lower-directory")


def _change(case: Case, layers: Layers, *options: str) -> bool:
    """Do it by the mount, whose program is traced with these options; whether it was killed."""
    with fuse(layers) as door:
        assert isinstance(door, Folder) and door.program is not None
        with faults.traced(door.program.pid, *options), suppress(OSError):
            case.change(door)
        return not door.alive()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.thorough) for name in CHANGES],
)
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
