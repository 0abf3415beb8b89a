"""The system calls that mount and unmount, which Python lacks.

The new calls work on two descriptors: a filesystem context, which is configured step by step and
says what it dislikes, and a mount that is attached nowhere until `move_mount`; closing them undoes
everything. Errors are OSError without a path.

Rules: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), mount(2), umount2(2); linux/mount.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Final

# These system calls have the same number on every architecture.
OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432

OPEN_TREE_CLONE: Final = 1
_CLOEXEC: Final = 1
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_SET_FD: Final = 5
_CREATE: Final = 6
_FROM_EMPTY_PATH: Final = 0x4
_TO_EMPTY_PATH: Final = 0x40
_CLONE_FS: Final = 0x200
_UMOUNT_NOFOLLOW: Final = 8
_MNT_DETACH: Final = 2

STRING_MAX: Final = 255
"""Bytes that `set_string` takes."""

ATTRIBUTES: Final = {
    "ro": (0x1, 0x1),
    "nosuid": (0x2, 0x2),
    "nodev": (0x4, 0x4),
    "noexec": (0x8, 0x8),
    "noatime": (0x10, 0x400),
    "nodiratime": (0x80, 0x800),
    "nosymfollow": (0x200000, 0x100),
}
"""By mount(8)'s name: the flag of fsmount(2) and that of mount(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes | None) -> int:
    words = (
        ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument or 0)
        for argument in arguments
    )
    result: int = getattr(_libc, function)(*words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fsopen(kind: str) -> int:
    """A context for a filesystem of that type."""
    return _call("syscall", _FSOPEN, os.fsencode(kind), _CLOEXEC)


def set_flag(context: int, name: str) -> None:
    """Set a parameter that has no value."""
    _call("syscall", _FSCONFIG, context, _SET_FLAG, os.fsencode(name), None, 0)


def set_string(context: int, name: str, value: str) -> None:
    """Set a parameter; the value is taken as it is, no character is special."""
    text = os.fsencode(value)
    _call("syscall", _FSCONFIG, context, _SET_STRING, os.fsencode(name), text, 0)


def set_parameters(context: int, parameters: Iterable[tuple[str, str | None]]) -> None:
    """Set parameters by name and value, in their order; None for one that has no value."""
    for name, value in parameters:
        if value is None:
            set_flag(context, name)
        else:
            set_string(context, name, value)


def set_fd(context: int, name: str, fd: int) -> None:
    """Set a parameter to what the descriptor has open; it stays the caller's."""
    _call("syscall", _FSCONFIG, context, _SET_FD, os.fsencode(name), None, fd)


def create(context: int) -> None:
    """Make the filesystem that was configured."""
    _call("syscall", _FSCONFIG, context, _CREATE, None, None, 0)


def messages(context: int) -> Iterator[str]:
    """What the kernel has said of the context: "overlay: Bad value for 'xino'"; once each."""
    with contextlib.suppress(OSError):  # ENODATA at the end
        while True:
            # a letter for the severity comes first
            yield os.fsdecode(os.read(context, 8192)).rstrip("\n").partition(" ")[2]


def fsmount(context: int, attributes: set[str]) -> int:
    """A mount of the filesystem; attributes are names of ATTRIBUTES."""
    flags = sum(ATTRIBUTES[name][0] for name in attributes)
    return _call("syscall", _FSMOUNT, context, _CLOEXEC, flags)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a mount to a directory."""
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH
    _call("syscall", _MOVE_MOUNT, mount_fd, b"", target_fd, b"", flags)


def attach(mount_fd: int, target: str) -> None:
    """Attach a mount to the directory target."""
    place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        move_mount(mount_fd, place)
    finally:
        os.close(place)


def open_tree(mount_fd: int, path: str) -> int:
    """A mount of the directory at path in another one, attached nowhere."""
    return _call("syscall", OPEN_TREE, mount_fd, os.fsencode(path), OPEN_TREE_CLONE | os.O_CLOEXEC)


def mount(source: str, target: str, kind: str, attributes: set[str], data: bytes) -> None:
    """mount(2), the only call before Linux 5.2; data is shorter than a page."""
    flags = sum(ATTRIBUTES[name][1] for name in attributes)
    _call("mount", os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, data)


def umount(target: str, *, lazy: bool) -> None:
    """umount2(2); a symlink is not followed."""
    _call("umount2", os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))


def sync(path: str) -> None:
    """syncfs(2): write out what the kernel has cached of the filesystem that path lies on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("syncfs", fd)
    finally:
        os.close(fd)


def own_directory() -> None:
    """Give this thread a current directory that it shares with no other."""
    _call("unshare", _CLONE_FS)
