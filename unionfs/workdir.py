"""The work directory: where an upper's changes are made whole before one rename shows them.

Everything lies in `work/`, as the kernel has it, so that a killed process leaves nothing in the
union: the next writer clears it. One writer holds an upper at a time: a lock on the work
directory keeps out our own kind, the table of mounts tells of the kernel.

Rules: Documentation/filesystems/overlayfs.rst, "Upper and Lower"; fs/overlayfs/super.c,
ovl_workdir_create. Cost: a read of /proc/self/mountinfo at the first write, then none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from unionfs import system

MEMBERS: Final = frozenset({"work", "index", "incompat"})
"""What an overlay mount leaves in a work directory."""


@final
class WorkDir:
    """An upper that is ours to write, until `close`.

    fd: the directory `work/` in the work directory, empty at first.
    """

    def __init__(self, work: str, upper: str) -> None:
        """Claim work for upper.

        Raises OSError EBUSY where another union uses either, and what making files in it raises.
        """
        self._lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._names = itertools.count(1)
        self.fd = -1
        try:
            self._claim(work, upper)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree("work", dir_fd=self._lock)
            os.mkdir("work", 0o700, dir_fd=self._lock)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.fd = os.open("work", flags, dir_fd=self._lock)
        except BaseException:
            self.close()
            raise

    def _claim(self, work: str, upper: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(work, "work is used by another union; unmount that first") from None
        if upper in _uppers_of_the_kernel():
            raise _busy(upper, "upper is mounted by the kernel; unmount that first")

    def new_name(self) -> str:
        """A name in `work/` that nothing has yet."""
        return f"#{next(self._names):x}"

    def discard(self, name: str) -> None:
        """Remove what is called name in `work/`, directories with all in them; it may be gone."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=self.fd)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=self.fd)

    @contextlib.contextmanager
    def draft(self) -> Iterator[str]:
        """A new name; what has it when the block fails is discarded."""
        name = self.new_name()
        try:
            yield name
        except BaseException:
            self.discard(name)
            raise

    def move_in(self, name: str, dir_fd: int, target: str, flags: int = 0) -> None:
        """Rename name out of `work/`, with the flags of `system.rename`."""
        system.rename(self.fd, name, dir_fd, target, flags)

    def close(self) -> None:
        """Let another writer have it."""
        for fd in (self.fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self.fd = self._lock = -1


def _busy(path: str, message: str) -> OSError:
    return OSError(errno.EBUSY, message, path)


def _uppers_of_the_kernel() -> set[str]:
    """The upper directories of the overlay mounts in this mount namespace."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        kind, _, parameters = os.fsdecode(line.partition(b" - ")[2]).split(" ", 2)
        if kind == "overlay":
            found.update(re.findall(r"(?:^|,)upperdir=((?:\\.|[^,])*)", parameters))
    return {unescaped(path) for path in found}


def unescaped(text: str) -> str:
    """A path from a table of mounts: special bytes are a backslash and three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
