"""How much a benchmark does: the full amounts, and small ones for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

MIB: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Scale:
    """The amounts of work; sizes in bytes, the rest in numbers of files or calls.

    files, data: the files of the tree, and what they hold together. entries: of the large
    directory. created, copied, renamed: the files that one workload makes, copies up, renames.
    large: the file that is copied up. sequential: the file that is read and written as a whole.
    random: calls at random offsets. archived, repository, sources: files of the archive, the git
    repository, the C project. clients: processes at once.
    """

    files: int
    data: int
    entries: int
    created: int
    copied: int
    renamed: int
    large: int
    sequential: int
    random: int
    archived: int
    repository: int
    sources: int
    clients: int


FULL: Final = Scale(
    files=20_000,
    data=300 * MIB,
    entries=10_000,
    created=5_000,
    copied=500,
    renamed=500,
    large=512 * MIB,
    sequential=1024 * MIB,
    random=20_000,
    archived=10_000,
    repository=10_000,
    sources=40,
    clients=4,
)

QUICK: Final = Scale(
    files=800,
    data=8 * MIB,
    entries=500,
    created=100,
    copied=20,
    renamed=20,
    large=8 * MIB,
    sequential=16 * MIB,
    random=500,
    archived=200,
    repository=200,
    sources=3,
    clients=4,
)
