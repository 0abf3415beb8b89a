"""A mount whose root is a directory in the filesystem, not the filesystem's own root.

The kernel makes that root before it learns, by INIT, that access control lists are heeded, so of it
alone it never keeps them (fuse_init_inode, ACL_DONT_CACHE): who does not own it would wait for a
GETXATTR at each path. Nobody can reach what is above the directory: it is attached nowhere.

Rules: fsopen(2), open_tree(2); linux/fuse.h. Cost: two requests, answered here.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from typing import Final

from fuse_mount import device
from fuse_mount.terms import IN_HEADER, MAX_WRITE, Terms, agree, reply
from unionfs import mount_api
from unionfs.mounting import FUSE_SUBTREE
from unionfs.options import MountOptions
from unionfs.overlayfs import SOURCE, attributes

ROOT_ID: Final = 2
"""The directory's; csrc/ufs_table.h, UFS_SHOWN_ROOT_ID."""

_MESSAGE_MAX: Final = MAX_WRITE + 8192
_ATTR: Final = struct.Struct("=6Q10I")
_ATTR_OUT: Final = struct.Struct("=QII")
_ENTRY_OUT: Final = struct.Struct("=4QII")
_LOOKUP: Final = 1
_GETATTR: Final = 3
_EVER: Final = 1 << 40  # seconds


def mount(target: str, options: MountOptions, terms: Terms) -> tuple[int, bytes | None] | None:
    """Mount at the directory target; the /dev/fuse descriptor, and INIT for libfuse.

    None, with nothing mounted, where the kernel cannot (before 6.15), or does not let us.
    """
    try:
        connection = device.connect()
        try:
            return connection, _mount(connection, target, options, terms)
        except BaseException:
            os.close(connection)
            raise
    except OSError:
        return None


def _mount(connection: int, target: str, options: MountOptions, terms: Terms) -> bytes | None:
    answering = threading.Thread(target=_answer, args=(connection,))
    whole = _unattached(connection, target, options)
    try:
        request = agree(connection, terms)
        answering.start()
        tree = mount_api.open_tree(whole, FUSE_SUBTREE)
    finally:
        os.close(whole)  # it ends without us, unless tree is open
        if answering.ident is not None:
            answering.join()
    try:
        mount_api.attach(tree, target)
    finally:
        os.close(tree)
    return request


def _unattached(connection: int, target: str, options: MountOptions) -> int:
    """A mount of the whole filesystem."""
    context = mount_api.fsopen("fuse")
    try:
        mount_api.set_string(context, "source", options.fsname or SOURCE)
        mount_api.set_string(context, "subtype", SOURCE)
        parameters = device.parameters(connection, target, options)
        mount_api.set_parameters(context, parameters.items())
        mount_api.create(context)
        return mount_api.fsmount(context, attributes(options))
    finally:
        os.close(context)


def _answer(connection: int) -> None:
    """Let the directory be found."""
    found = False
    while not found:
        try:
            request = os.read(connection, _MESSAGE_MAX)
        except OSError:
            return  # the filesystem has gone
        _, code, unique, node, *_ = IN_HEADER.unpack_from(request)
        error, body = 0, b""
        if code == _LOOKUP:
            found = True
            body = _ENTRY_OUT.pack(ROOT_ID, 0, _EVER, 0, 0, 0) + _directory(ROOT_ID)
        elif code == _GETATTR:
            body = _ATTR_OUT.pack(0, 0, 0) + _directory(node)
        else:
            error = -errno.EIO
        os.write(connection, reply(unique, body, error))


def _directory(number: int) -> bytes:
    """Attributes that are asked for again at once."""
    return _ATTR.pack(
        *(number, 0, 0),
        *(0, 0, 0, 0, 0, 0),
        *(stat.S_IFDIR | 0o755, 1, os.geteuid(), os.getegid()),
        *(0, 0, 0),
    )
