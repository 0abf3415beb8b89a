"""A store's directories: where content is made, where it is kept, how it goes.

    blobs/ALGORITHM/DIGITS   content by digest, as in an OCI image layout
    snapshots/ID/fs, work    the files of a layer or a container; work while it may be written
    ingest/NAME              what is being made, locked by whoever makes it
    trash/NAME               what is being removed

Content is made in ingest and renamed to where it belongs; it is removed by a rename into trash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, final

from unionfs.store.digest import parts

BLOBS: Final = "blobs"
SNAPSHOTS: Final = "snapshots"
INGEST: Final = "ingest"
TRASH: Final = "trash"
_PAUSE: Final = 0.05  # seconds


@final
class Folders:
    """The directories below root, made where they are missing, for their owner alone."""

    def __init__(self, root: str) -> None:
        self.root = root
        os.makedirs(root, mode=0o700, exist_ok=True)
        for name in (BLOBS, SNAPSHOTS, INGEST, TRASH):
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{root}/{name}", 0o700)

    def blob(self, digest: str) -> str:
        """Where the content of that digest lies, if it is there."""
        return "/".join((self.root, BLOBS, *parts(digest)))

    def snapshot(self, number: int) -> str:
        """The directory of a snapshot."""
        return f"{self.root}/{SNAPSHOTS}/{number}"

    def files(self, number: int) -> str:
        """A snapshot's own files: a layer, to be stacked."""
        return f"{self.snapshot(number)}/fs"

    def work(self, number: int) -> str:
        """Where the changes of an active snapshot are made."""
        return f"{self.snapshot(number)}/work"

    def ingest(self, name: str) -> str:
        """Where something is made that will be known by another name."""
        return f"{self.root}/{INGEST}/{name}"

    def discard(self, path: str) -> str:
        """Take path out of the way at once; `empty_trash` removes it. It may be gone."""
        place = f"{self.root}/{TRASH}/{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, place)
        return place

    def empty_trash(self) -> None:
        """Remove what was discarded, by whomever."""
        with os.scandir(f"{self.root}/{TRASH}") as entries:
            for entry in [*entries]:
                remove(entry.path)


@contextlib.contextmanager
def claimed(
    path: str, flags: int, *, wait: bool = True, stop: threading.Event | None = None
) -> Iterator[int | None]:
    """The file or directory at path, opened, and nobody else's until the block ends.

    flags: of open(2). None where another has it, unless wait is True, and where it is gone.
    stop: ends the waiting when it is set, by InterruptedError.
    """
    now = fcntl.LOCK_NB if stop or not wait else 0
    while True:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            yield None
            return
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | now)
            except BlockingIOError:
                if not stop or not wait:
                    yield None
                    return
                # a thread's flock(2) cannot be ended from outside, so it is asked for again
                if stop.wait(_PAUSE):
                    raise InterruptedError(errno.EINTR, "stopped", path) from None
                continue
            if _leads_to(path, fd):  # whoever had it may have renamed it
                yield fd
                return
        finally:
            os.close(fd)


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove(path: str) -> None:
    """Remove a file, or a directory with all in it, whatever its modes; it may be gone."""

    def retry(function: Callable[..., Any], name: str, error: tuple[Any, Any, Any]) -> None:
        if isinstance(error[1], FileNotFoundError):
            return
        if not isinstance(error[1], PermissionError):
            raise error[1]
        # an ordinary user's directory that may not be listed or written, as overlayfs' work is
        for directory in (os.path.dirname(name), name):
            if stat.S_ISDIR(os.lstat(directory).st_mode):
                os.chmod(directory, 0o700)
        if function in (os.unlink, os.rmdir):
            function(name)
        else:
            shutil.rmtree(name)

    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(path, onerror=retry)


def flush_directory(path: str) -> None:
    """Have the names in a directory outlive a loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
