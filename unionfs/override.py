"""Owner, group and mode kept in an attribute, for users who may not give files away.

With the option `xattr_permissions`, a file or directory of upper belongs on disk to whoever serves
the union, who can always read and write it; whom it belongs to in the union, and its mode, are text
in one attribute: `UID:GID:MODE`, and maybe `:TYPE`. A layer is of this kind where its root has the
attribute; so fuse-overlayfs and containers/storage read what we write, and we what they do. Other
kinds of files can have no such attribute, and belong to whom they belong on disk.

Rules: fuse-overlayfs(1), and its write_permission_xattr and override_mode. Cost: a getxattr(2) for
each status.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Final

from unionfs import system

PRIVILEGED: Final = "security.fuseoverlayfs.override_stat"
USER: Final = "user.fuseoverlayfs.override_stat"
CONTAINERS: Final = "user.containers.override_stat"
NAMES: Final = (PRIVILEGED, USER, CONTAINERS)
_TEXT: Final = re.compile(rb"(\d+):(\d+):([0-7]+)(:.*)?\0?")
_OWN: Final = 0o700
"""Whoever serves the union may do all with a file or directory."""


def attribute_of(root: int) -> str | None:
    """The attribute by which the files of a layer have other owners; None where they have not."""
    return next((name for name in NAMES if system.get_xattr(root, "", name) is not None), None)


def attribute_for(root: int, mode: int) -> str:
    """The attribute for an upper, by the option's value: 1 or 2."""
    if mode == 1:
        return PRIVILEGED
    return CONTAINERS if attribute_of(root) == CONTAINERS else USER


def has(status: os.stat_result) -> bool:
    """Whether a file is of a kind that can have the attribute."""
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def applied(dir_fd: int, path: str, name: str, status: os.stat_result) -> os.stat_result:
    """The status of a file with the owner, group and mode that its attribute tells.

    Raises OSError EINVAL for a corrupt attribute.
    """
    value = system.get_xattr(dir_fd, path, name) if has(status) else None
    if value is None:
        return status
    match = _TEXT.fullmatch(value)
    if match is None:
        raise OSError(errno.EINVAL, f"corrupt attribute {name}; remove it", path)
    mode = stat.S_IFMT(status.st_mode) | stat.S_IMODE(int(match[3], 8))
    fields = (mode, *status[1:4], int(match[1]), int(match[2]), *status[6:10])
    return os.stat_result(fields, system.precise(status))


def put(dir_fd: int, path: str, name: str, uid: int, gid: int, mode: int) -> None:
    """Write down owner, group and mode of a file or directory."""
    text = f"{uid}:{gid}:{stat.S_IMODE(mode):o}"
    system.set_xattr(dir_fd, path, name, text.encode())


def change(
    dir_fd: int,
    path: str,
    name: str,
    status: os.stat_result,
    *,
    uid: int = -1,
    gid: int = -1,
    mode: int | None = None,
) -> None:
    """The same for what changes; status: that of the union. -1 and None keep what it has.

    A new owner takes the set-id bits off, as chown(2) does.
    """
    kept = status.st_mode
    if mode is None and stat.S_ISREG(kept):
        kept &= ~(stat.S_ISUID | (stat.S_ISGID if kept & stat.S_IXGRP else 0))
    put(
        dir_fd,
        path,
        name,
        status.st_uid if uid == -1 else uid,
        status.st_gid if gid == -1 else gid,
        kept if mode is None else mode,
    )


def on_disk(mode: int) -> int:
    """The mode that a file gets on disk whose mode in the union is another one."""
    return mode & 0o777 | _OWN
