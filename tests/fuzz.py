"""Random operations for as long as asked: `python -m tests.fuzz MINUTES`.

The machine of tests/conformance/machine.py, with new examples each time, at each door in turn;
now and then what is mounted is unmounted, and the run goes on through another door. A difference
from the kernel is reduced to the shortest run that shows it, printed, and kept by Hypothesis in
.hypothesis/ until it is gone. Cost: about 60 operations a second.
"""

import itertools
import sys
import time

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance.doors import DOORS
from tests.conformance.machine import COMMON, Machine, machine

_SEARCHING = settings(COMMON, max_examples=20, stateful_step_count=60)


def main(minutes: float) -> int:
    """Search; 1 when there was a difference, which stands in the traceback."""
    end = time.monotonic() + minutes * 60
    unions = itertools.cycle(itertools.product(("", "index=on", "metacopy=on"), DOORS))
    while time.monotonic() < end:
        options, door = next(unions)
        others = (door,) if options else tuple(DOORS)
        run_state_machine_as_test(machine(door, options, others), settings=_SEARCHING)
        print(f"{Machine.operations} operations without a difference", flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.fuzz MINUTES")
    sys.exit(main(float(sys.argv[1])))
