"""Extended attributes of the union: those of the layers, without the marks.

A mark of a union that is itself a layer of another is kept escaped, so that each sees its own.
Rules: fs/overlayfs/xattrs.c; Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts".
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs import fileattr, markers, override, system
from unionfs.copyup import copy_up, writable
from unionfs.resolve import Node, top
from unionfs.stack import LayerStack

ACCESS_ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
"""Which directories alone have."""
ACLS: Final = (ACCESS_ACL, DEFAULT_ACL)
_NO_ACL: Final = (b"", b"\2\0\0\0")
"""Values that say the same as there being none."""
_FREE: Final = "user."
"""The namespace of attributes that only files and directories have (xattr(7))."""
_TRUSTED: Final = "trusted."
"""That of attributes which ask for a capability."""
_SYS_ADMIN: Final = 21


def get(stack: LayerStack, node: Node, name: str, opened: int | None = None) -> bytes:
    """The value of an attribute. opened: a descriptor of the node's file, if it has no name.

    Raises OSError: ENODATA, EOPNOTSUPP.
    """
    _check_shown(stack, name, errno.ENODATA)
    return system.read_xattr(*_where(stack, node, opened), markers.on_disk(stack.prefix, name))


def _check_shown(stack: LayerStack, name: str, number: int) -> None:
    """The attribute that says whom a layer's files belong to is not the union's."""
    if stack.options.xattr_permissions and name in override.NAMES:
        raise OSError(number, os.strerror(number), name)


def _where(stack: LayerStack, node: Node, opened: int | None) -> tuple[int, str]:
    if opened is not None:
        return opened, ""
    place = top(stack, node)
    return place.layer.fd, place.path


def names(stack: LayerStack, node: Node, opened: int | None = None) -> list[str]:
    """The names of all attributes. opened: as for `get`."""
    listed = system.list_xattr(*_where(stack, node, opened))
    shown = (markers.in_union(stack.prefix, name) for name in listed)
    hidden = override.NAMES if stack.options.xattr_permissions else ()
    return [name for name in shown if name is not None and name not in hidden]


def set(stack: LayerStack, node: Node, name: str, value: bytes, flags: int = 0) -> None:
    """Set an attribute; flags: 0, os.XATTR_CREATE or os.XATTR_REPLACE.

    Raises OSError: EROFS, EEXIST, ENODATA, EOPNOTSUPP, ENOSPC, …
    """
    if name in ACLS and value in _NO_ACL:
        remove(stack, node, name)
        return
    writable(stack)
    fileattr.refuse(stack, node, unmapped=errno.EPERM)
    _check_shown(stack, name, errno.EPERM)
    _check_permitted(node, name)
    if name == DEFAULT_ACL and not node.is_dir:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), node.path)
    if not node.upper:  # another name of it may be there: that does (ovl_xattr_set)
        copy_up(stack, node, data=False)
    place = top(stack, node)
    on_disk = markers.on_disk(stack.prefix, name)
    system.set_xattr(place.layer.fd, place.path, on_disk, value, flags)


def remove(stack: LayerStack, node: Node, name: str) -> None:
    """Remove an attribute.

    Raises OSError: EROFS, ENODATA, EOPNOTSUPP. A file without it is not copied up. Of a list that
    upper has nothing is asked, nor of one for new files where there can be none (ovl_set_acl).
    """
    writable(stack)
    fileattr.refuse(stack, node, unmapped=errno.EPERM)
    _check_shown(stack, name, errno.EPERM)
    _check_permitted(node, name)
    if name == DEFAULT_ACL and not node.is_dir:
        return
    if not node.upper:
        get(stack, node, name)
        copy_up(stack, node, data=False)
    place = top(stack, node)
    system.remove_xattr(place.layer.fd, place.path, markers.on_disk(stack.prefix, name))


def _check_permitted(node: Node, name: str) -> None:
    """Raise OSError EPERM for what the kernel refuses to change before it asks for the file."""
    special = name.startswith(_FREE) and node.kind not in (stat.S_IFREG, stat.S_IFDIR)
    if special or (name.startswith(_TRUSTED) and not system.capable(_SYS_ADMIN)):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), node.path)
