"""Where a test may kill this process: steps that a crash must not leave half-made.

UNIONMOUNT_FAULT in the environment names one step; the process that reaches it dies by SIGKILL, so
nothing is cleaned up. Off, as it always is but in tests, a step costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_FATAL: Final = os.environ.get("UNIONMOUNT_FAULT")


def step(name: str) -> None:
    """The step called name is reached."""
    if name == _FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
