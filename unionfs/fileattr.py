"""Which files may not be changed: by their flags (chattr(1)), or as nobody's here.

A file of a lower layer has the flags that its filesystem gives it. On a file of upper, immutable
and append-only would be in the way of ourselves, who make directories and links there; so those two
are kept in a mark, and are ours to heed. The others a copy has by itself.

An idmapped mount may have no number for a file's owner or group. The kernel shows the overflow
user's then, and lets nobody write to the file, which would put that user in the owner's place.

Rules: fs/overlayfs/util.c, ovl_copyflags, ovl_check_protattr; copy_up.c, ovl_copy_fileattr. What
the flags forbid is the VFS' to say: fs/namei.c, may_delete and may_open; fs/attr.c, may_setattr;
fs/xattr.c, may_write_xattr. What it does not let owners without a number: the same functions,
and ovl_copy_up_one. Not told of are such owners on a filesystem that is itself read-only.
Cost: one call for each node that is changed, the first time; two more for a copy-up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from unionfs import markers, system
from unionfs.place import Place
from unionfs.resolve import Node, top
from unionfs.stack import LayerStack

# linux/fs.h: FS_SYNC_FL, FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NOATIME_FL
SYNC: Final = 0x08
IMMUTABLE: Final = 0x10
APPEND: Final = 0x20
NOATIME: Final = 0x80
GUARDS: Final = IMMUTABLE | APPEND
_UNMAPPED: Final = 1 << 32
"""Beside the flags in `Node.guard`."""
OVERFLOW_ID: Final = 65534  # DEFAULT_OVERFLOWUID, linux/highuid.h
_COPIED: Final = SYNC | NOATIME
_LETTERS: Final = ((APPEND, b"a"), (IMMUTABLE, b"i"))
_WITHOUT_FLAGS: Final = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)
"""How a filesystem says that its files have none."""


def guard(stack: LayerStack, node: Node) -> int:
    """Which of IMMUTABLE and APPEND a node has."""
    return _guard(stack, node) & GUARDS


def is_unmapped(stack: LayerStack, node: Node) -> bool:
    """Whether the mount that a node lies on has no number for its owner or group."""
    return bool(_guard(stack, node) & _UNMAPPED)


def _guard(stack: LayerStack, node: Node) -> int:
    if node.guard is None:
        place = top(stack, node)
        if node.upper:
            mark = system.get_xattr(place.layer.fd, place.path, stack.prefix + markers.PROTATTR)
            node.guard = sum(flag for flag, letter in _LETTERS if letter in (mark or b""))
        else:
            node.guard = system.guards(place.layer.fd, place.path)
        if stack.idmapped and _belongs_to_none(place):
            node.guard |= _UNMAPPED
    return node.guard


def _belongs_to_none(place: Place) -> bool:
    status = place.status()
    shown = OVERFLOW_ID in (status.st_uid, status.st_gid)
    return shown and system.write_error(place.layer.fd, place.path) == errno.EACCES


def refuse(
    stack: LayerStack, node: Node, flags: int = GUARDS, unmapped: int = errno.EOVERFLOW
) -> None:
    """Raise PermissionError for a node with one of these flags.

    unmapped: the errno for one whose owner has no number.
    """
    held = _guard(stack, node)
    if held & _UNMAPPED:
        message = "its owner is not mapped by the layer's idmapped mount; map it"
        raise OSError(unmapped, message, node.path)
    if held & flags:
        message = "immutable or append-only; see chattr(1)"
        raise PermissionError(errno.EPERM, message, node.path)


def refuse_opening(stack: LayerStack, node: Node, flags: int) -> None:
    """Raise PermissionError where the flags of open(2) write in another way than is permitted."""
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if writes or flags & os.O_TRUNC:
        appends = writes and flags & os.O_APPEND and not flags & os.O_TRUNC
        refuse(stack, node, IMMUTABLE if appends else GUARDS, errno.EACCES)


def refuse_names(stack: LayerStack, directory: Node) -> None:
    """Raise PermissionError where a directory may get no name more."""
    refuse(stack, directory, IMMUTABLE, errno.EACCES)


def refuse_removal(stack: LayerStack, parent: Node, node: Node) -> None:
    """Raise PermissionError where a node may not lose its name in a directory."""
    refuse(stack, node, 0)
    refuse(stack, parent, unmapped=errno.EACCES)
    refuse(stack, node)


def has_flags(node: Node) -> bool:
    """Whether a node is of a kind that has flags."""
    return node.kind in (stat.S_IFREG, stat.S_IFDIR)


def get(stack: LayerStack, node: Node) -> int:
    """The flags of a node: FS_…_FL of linux/fs.h.

    Raises OSError ENOTTY for what has none, EOPNOTSUPP where its filesystem has none.
    """
    if not has_flags(node):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), node.path)
    return _read(top(stack, node)) | guard(stack, node)


@contextlib.contextmanager
def _opened(dir_fd: int, path: str) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = system.open_beneath(dir_fd, path or ".", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(place: Place) -> int:
    with _opened(place.layer.fd, place.path) as fd:
        return system.get_flags(fd)


def _mark(prefix: str, dir_fd: int, path: str, guards: int) -> None:
    """Write down which guards a file of upper has; EPERM where that cannot be kept."""
    name = prefix + markers.PROTATTR
    mark = b"".join(letter for flag, letter in _LETTERS if guards & flag)
    try:
        if mark:
            system.set_xattr(dir_fd, path, name, mark)
        else:
            system.remove_xattr(dir_fd, path, name)
    except OSError as error:
        if mark and error.errno == errno.EOPNOTSUPP:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path) from None
        if mark or error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
            raise


def put(stack: LayerStack, node: Node, flags: int) -> None:
    """Set all flags of a node that upper holds.

    Raises OSError: EPERM, EOPNOTSUPP, …
    """
    place = top(stack, node)
    if (get(stack, node) | flags) & GUARDS:
        _mark(stack.prefix, place.layer.fd, place.path, flags)
        node.guard = flags & GUARDS
    with _opened(place.layer.fd, place.path) as fd:
        system.set_flags(fd, flags & ~GUARDS)


def copy(prefix: str, source: Place, dir_fd: int, draft: str) -> None:
    """Give the copy of a file or directory the flags that the VFS heeds, where upper can."""
    try:
        flags = _read(source)
    except PermissionError:
        flags = system.guards(source.layer.fd, source.path)
    except OSError as error:
        if error.errno in _WITHOUT_FLAGS:
            return
        raise
    try:
        if flags & GUARDS:
            _mark(prefix, dir_fd, draft, flags)
        if flags & _COPIED:
            with _opened(dir_fd, draft) as fd:
                system.set_flags(fd, system.get_flags(fd) | flags & _COPIED)
    except OSError as error:
        if error.errno not in (*_WITHOUT_FLAGS, errno.EPERM):
            raise
