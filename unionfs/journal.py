"""Whether a filesystem's journal alone keeps a copy-up whole when the power goes.

A copy has to be on disk before the name that shows it. Where one journal holds all changes in their
order, and has the disk keep what was written before, it is enough that the data is written: what
tells where it lies precedes the rename. So a copy-up need not wait for the journal, as fsync(2)
does. True of ext4 with its journal on the same disk (fs/jbd2/commit.c: each commit flushes the disk
first; fs/ext4/page-io.c: extents are noted before a page counts as written) and of xfs
(fs/xfs/xfs_aops.c, xfs_end_ioend; fs/xfs/xfs_log_cil.c). Not of btrfs, which notes extents later.

Cost: a few files of /proc and /sys, once a writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

_APART: Final = frozenset({"logdev", "rtdev"})
"""Options of xfs by which data and log lie on different disks."""


def keeps_order(fd: int, mounts: Iterable[str]) -> bool:
    """Whether data that is written before a rename outlives a loss of power if the rename does.

    fd: of a file there. mounts: the lines of /proc/self/mountinfo. False where nothing tells.
    """
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts:
        if line.split(" ", 3)[2] == number:
            kind, _, options = line.partition(" - ")[2].split(" ", 2)
            if kind == "xfs":
                return _APART.isdisjoint(option.partition("=")[0] for option in options.split(","))
            return kind == "ext4" and _has_journal_inside(number)
    return False


def _has_journal_inside(number: str) -> bool:
    """Of a mounted ext4: whether inode 8 is its journal (fs/ext4/ext4.h, EXT4_JOURNAL_INO)."""
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError:
        return False
    return os.path.exists(f"/proc/fs/jbd2/{name}-8")
