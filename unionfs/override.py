"""Owner, group, mode and type kept in an attribute, for users who may not give files away.

With the option `xattr_permissions`, a file or directory of upper belongs on disk to whoever serves
the union, who can always read and write it; whom it belongs to in the union, and its mode, are text
in one attribute: `UID:GID:MODE`, and maybe `:TYPE`. A layer is of this kind where its root has the
attribute; so fuse-overlayfs and containers/storage read what we write, and we what they do. Other
kinds of files can have no such attribute, and belong to whom they belong on disk; but an empty file
may stand in for a device, a pipe or a socket, as its type says. containers/storage unpacks those so
for who may not make devices.

Rules: fuse-overlayfs(1), and its write_permission_xattr and override_mode; containers/storage,
pkg/idtools, FormatContainersOverrideXattrDevice. Cost: a getxattr(2) for each status.
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
NAMES: Final = (PRIVILEGED, CONTAINERS, USER)
"""In the order in which a layer is asked for them."""
_TYPES: Final = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
_WORDS: Final = {kind: word for word, kind in _TYPES.items()}
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_TEXT: Final = re.compile(r"(\d+):(\d+):([0-7]+)(?::([a-z]+)(?:-(\d+)-(\d+))?)?\0?", re.ASCII)
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


def has(dir_fd: int, path: str) -> bool:
    """Whether a file is of a kind on disk that can have the attribute."""
    status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False) if path else os.stat(dir_fd)
    return _may_have(status)


def _may_have(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def stands_in(dir_fd: int, path: str, kind: int) -> bool:
    """Whether a file stands in for one of another kind. kind: that in the union, of S_IFMT."""
    return kind not in (stat.S_IFREG, stat.S_IFDIR) and has(dir_fd, path)


def applied(dir_fd: int, path: str, name: str, status: os.stat_result) -> os.stat_result:
    """The status of a file with the owner, group, mode and type that its attribute tells.

    Raises OSError EINVAL for a corrupt attribute.
    """
    value = system.get_xattr(dir_fd, path, name) if _may_have(status) else None
    if value is None:
        return status
    match = _TEXT.fullmatch(os.fsdecode(value))
    kind, device = stat.S_IFMT(status.st_mode), status.st_rdev
    if match and match[4]:
        told = _TYPES.get(match[4], 0)
        # A file can be told to be of any kind but a directory, and that of none but its own.
        sound = told == kind or (kind == stat.S_IFREG and told != stat.S_IFDIR)
        if not (told and sound and (told in _DEVICES) == bool(match[5])):
            match = None
        elif match[5]:
            device = os.makedev(int(match[5]), int(match[6]))
        kind = told
    if match is None:
        raise OSError(errno.EINVAL, f"corrupt attribute {name}; remove it", path)
    mode = kind | stat.S_IMODE(int(match[3], 8))
    fields = (mode, *status[1:4], int(match[1]), int(match[2]), *status[6:10])
    return os.stat_result(fields, system.precise(status) | {"st_rdev": device})


def put(dir_fd: int, path: str, name: str, status: os.stat_result) -> None:
    """Write down owner, group, mode and type of a file or directory."""
    _write(dir_fd, path, name, status.st_uid, status.st_gid, status.st_mode, status.st_rdev)


def give(dir_fd: int, path: str, name: str, uid: int, gid: int, mode: int) -> None:
    """The same of a new one; mode: with its type."""
    _write(dir_fd, path, name, uid, gid, mode, 0)


def _write(dir_fd: int, path: str, name: str, uid: int, gid: int, mode: int, device: int) -> None:
    kind = stat.S_IFMT(mode)
    word = _WORDS[kind]
    if kind in _DEVICES:
        word += f"-{os.major(device)}-{os.minor(device)}"
    text = f"{uid}:{gid}:{stat.S_IMODE(mode):04o}:{word}"
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
    """Write down what changes; status: that of the union. -1 and None keep what it has.

    A new owner takes the set-id bits off, as chown(2) does.
    """
    kept = status.st_mode
    if mode is not None:
        kept = stat.S_IFMT(kept) | stat.S_IMODE(mode)
    elif not stat.S_ISDIR(kept):
        kept &= ~(stat.S_ISUID | (stat.S_ISGID if kept & stat.S_IXGRP else 0))
    owner = status.st_uid if uid == -1 else uid
    group = status.st_gid if gid == -1 else gid
    _write(dir_fd, path, name, owner, group, kept, status.st_rdev)


def on_disk(mode: int) -> int:
    """The mode that a file gets on disk whose mode in the union is another one."""
    return mode & 0o777 | _OWN
