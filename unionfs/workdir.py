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
from collections.abc import Iterator
from typing import Final, final

from unionfs import journal, markers, system

MEMBERS: Final = frozenset({"work", "index"})
"""What an overlay mount leaves in a work directory."""
INCOMPATIBLE: Final = "work/incompat"
"""There each feature has a directory with which no later mount may use upper."""
_VOLATILE: Final = f"{INCOMPATIBLE}/volatile"


@final
class WorkDir:
    """An upper that is ours to write, until `close`.

    fd: the directory `work/` in the work directory, empty at first. ordered: whether what is
    written there outlives a loss of power if a later rename out of it does (`journal`).
    """

    def __init__(self, work: str, upper: str, prefix: str, *, volatile: bool = False) -> None:
        """Claim work for upper, whose marks are attributes with that prefix.

        volatile: nothing will be synced, so keep everyone from claiming it again.

        Raises OSError: EBUSY where another union uses either, EINVAL where one was volatile,
        EOPNOTSUPP where the filesystem keeps no such attributes, and what making files in work
        raises.
        """
        self._names = itertools.count(1)
        self._path = work
        self._held = contextlib.ExitStack()
        with contextlib.ExitStack() as held:
            mounts = mount_table()
            hold(work, upper, held, mounts)
            parent = _opened(work, held)
            with contextlib.suppress(FileNotFoundError):
                os.chmod("work", 0o700, dir_fd=parent)  # the kernel leaves it closed
                _check_compatible(work)
                remove_directory("work", parent)
            os.mkdir("work", 0o700, dir_fd=parent)
            self.fd = _opened("work", held, parent)
            try:
                _check_marks(self.fd, prefix, upper)
            except OSError:
                os.rmdir("work", dir_fd=parent)
                raise
            self.ordered = journal.keeps_order(self.fd, mounts)
            if volatile:
                os.makedirs(os.path.join(work, _VOLATILE), 0o700)
                os.close(os.open(os.path.join(work, _VOLATILE, "dirty"), os.O_CREAT, 0))
            self._held = held.pop_all()

    def make(self, name: str) -> str:
        """Make one of the MEMBERS, a directory, where it is missing; its path."""
        path = os.path.join(self._path, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0)
        return path

    def new_name(self) -> str:
        """A name in `work/` that nothing has yet."""
        return f"#{next(self._names):x}"

    def discard(self, name: str) -> None:
        """Remove what is called name in `work/`, directories with all in them; it may be gone.

        No error: what cannot be removed is in nobody's way, and the next writer tries again.
        """
        with contextlib.suppress(OSError):
            try:
                os.unlink(name, dir_fd=self.fd)
            except IsADirectoryError:
                remove_directory(name, self.fd)

    @contextlib.contextmanager
    def draft(self) -> Iterator[str]:
        """A new name; what has it when the block fails is discarded."""
        name = self.new_name()
        with self.discarding(name):
            yield name

    @contextlib.contextmanager
    def discarding(self, name: str) -> Iterator[None]:
        """Discard what has a name when the block fails."""
        try:
            yield
        except BaseException:
            self.discard(name)
            raise

    def move_in(self, name: str, dir_fd: int, target: str, flags: int = 0) -> None:
        """Rename name out of `work/`, with the flags of `system.rename`."""
        system.rename(self.fd, name, dir_fd, target, flags)

    def close(self) -> None:
        """Let another writer have it."""
        self._held.close()
        self.fd = -1


def hold(work: str, upper: str, held: contextlib.ExitStack, mounts: list[str]) -> None:
    """Keep every union, of the kernel's and of our kind, from using either until held is closed.

    mounts: the `mount_table`.

    Raises OSError EBUSY where one does.
    """
    mounted = _directories_of_the_kernel(mounts)
    for role, path in (("work", work), ("upper", upper)):
        try:
            fcntl.flock(_opened(path, held), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, f"{role} is used by another union") from None
        if path in mounted:
            raise _busy(path, f"{role} is mounted by the kernel")


def _opened(path: str, held: contextlib.ExitStack, dir_fd: int | None = None) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    held.callback(os.close, fd)
    return fd


def remove_directory(name: str, dir_fd: int) -> None:
    """Remove a directory with all in it. Raises OSError."""
    with contextlib.suppress(OSError):  # it is empty, unless a writer died
        os.rmdir(name, dir_fd=dir_fd)
        return
    import shutil

    shutil.rmtree(name, dir_fd=dir_fd)


def _check_compatible(work: str) -> None:
    """As ovl_workdir_cleanup_recurse, in its words."""
    directory = os.path.join(work, INCOMPATIBLE)
    with contextlib.suppress(FileNotFoundError):
        os.chmod(directory, 0o700)
        for feature in os.listdir(directory):
            message = f"overlay with incompat feature {feature!r} cannot be mounted"
            remedy = (
                "use a new upper and work; or remove this, if the machine has not crashed since"
            )
            raise OSError(errno.EINVAL, f"{message}; {remedy}", f"{directory}/{feature}")


def _busy(path: str, message: str) -> OSError:
    return OSError(errno.EBUSY, f"{message}; unmount that first", path)


def _check_marks(work_fd: int, prefix: str, upper: str) -> None:
    """Leave a mark in `work/`, as ovl_make_workdir does; the caller removes it with that."""
    try:
        system.set_xattr(work_fd, "", prefix + markers.OPAQUE, b"n")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        kept = prefix.partition(".")[0]
        message = f"upper's filesystem has no {kept}. attributes; use ext4, xfs, btrfs or tmpfs"
        raise OSError(errno.EOPNOTSUPP, message, upper) from None


def _directories_of_the_kernel(mounts: list[str]) -> set[str]:
    """The upper and work directories of the overlay mounts among those."""
    found = set()
    for line in mounts:
        kind, _, parameters = line.partition(" - ")[2].split(" ", 2)
        if kind == "overlay":
            found.update(re.findall(r"(?:^|,)(?:upper|work)dir=((?:\\.|[^,])*)", parameters))
    return {unescaped(path) for path in found}


def mount_table() -> list[str]:
    """The lines of /proc/self/mountinfo."""
    with open("/proc/self/mountinfo", "rb") as table:
        return [os.fsdecode(line) for line in table.read().splitlines()]


def unescaped(text: str) -> str:
    """A path from a table of mounts: special bytes are a backslash and three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
