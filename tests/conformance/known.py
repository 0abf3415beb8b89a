"""Where a door differs from the kernel on purpose or by necessity, and why.

Each is expected to fail, strictly: a difference that is gone must leave the table.
"""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Known:
    """Scenarios that these doors cannot play as the kernel does, for one reason."""

    scenarios: frozenset[str]
    doors: frozenset[str]
    reason: str


_FUSE = frozenset({"fuse", "fuse-pure"})

KNOWN_DIFFERENCES: tuple[Known, ...] = (
    Known(
        frozenset({"open-tmpfile"}),
        _FUSE,
        "pyfuse3 has no tmpfile operation: the kernel answers EOPNOTSUPP by itself",
    ),
)
