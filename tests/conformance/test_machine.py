"""Random operations: the same examples every time, so that a change is judged by itself."""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance.doors import DOORS
from tests.conformance.machine import COMMON, machine
from tests.privilege import IN_USER_NAMESPACE

_REPEATABLE = settings(
    COMMON, max_examples=25, stateful_step_count=25, derandomize=True, database=None
)
# With user. marks the kernel follows no redirects, and renames no directory of a lower layer.
_OPTIONS = ["redirect_dir=nofollow"] if IN_USER_NAMESPACE else ["", "index=on", "metacopy=on"]


@pytest.mark.parametrize(
    ("door", "options"),
    [
        (door, options)
        for door in DOORS
        for options in _OPTIONS
        if not (door == "fuse-cached" and options)  # it would be fuse once more
    ],
)
def test_random_operations(door: str, options: str) -> None:
    """Whatever is done, in whatever order, the door and the kernel agree."""
    run_state_machine_as_test(machine(door, options), settings=_REPEATABLE)
