"""What can go wrong in a store: containerd's kinds of errors, each an OSError with its errno.

Rule: containerd's errdefs, which its snapshotters promise (core/snapshots/snapshotter.go).
"""

from __future__ import annotations

import errno
from typing import final


class StoreError(OSError):
    """A store that cannot do what was asked; the message says what to do."""


@final
class NotFound(StoreError, FileNotFoundError):
    """There is nothing of that name (ENOENT)."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.ENOENT, message, name)


@final
class AlreadyExists(StoreError, FileExistsError):
    """There is something of that name (EEXIST)."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.EEXIST, message, name)


@final
class FailedPrecondition(StoreError):
    """It is not in the state that this needs (EBUSY)."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.EBUSY, message, name)


@final
class InvalidArgument(StoreError):
    """What was asked for cannot be (EINVAL)."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.EINVAL, message, name)


@final
class Corrupt(StoreError):
    """The bytes are not those that their digest names (EBADMSG)."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(errno.EBADMSG, message, name)
