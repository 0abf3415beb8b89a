"""The marks that overlayfs leaves on disk: their names and encodings, each known here alone.

Marks are extended attributes below `trusted.overlay.`, or `user.overlay.` where a stack may not
set the former; a stack reads and writes one prefix, as the kernel does. What image tools and
fuse-overlayfs leave is read too: AUFS' whiteouts (`.wh.NAME`), and `user.fuseoverlayfs.opaque`.

Rules: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", "Renaming
directories", "Nesting overlayfs mounts"; fs/overlayfs/overlayfs.h.
Cost: a listxattr(2) and an lstat(2) a directory, a getxattr(2) for each mark found.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from functools import cache
from typing import Final, final

from unionfs import system

TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."
_FUSE_OVERLAYFS: Final = "user.fuseoverlayfs."
PREFIXES: Final = (TRUSTED, USER, _FUSE_OVERLAYFS)
"""Where the marks of any stack lie."""
_ESCAPE: Final = "overlay."

AUFS_PREFIX: Final = ".wh."
AUFS_OPAQUE: Final = ".wh..wh..opq"

OPAQUE: Final = "opaque"
REDIRECT: Final = "redirect"
IMPURE: Final = "impure"
ORIGIN: Final = "origin"
WHITEOUT: Final = "whiteout"
METACOPY: Final = "metacopy"
NLINK: Final = "nlink"
UPPER: Final = "upper"
PROTATTR: Final = "protattr"

YES: Final = b"y"
XWHITEOUTS: Final = b"x"
REDIRECT_MAX: Final = 256
"""Bytes of the longest redirect that the kernel's module writes unless told otherwise."""


@cache
def trusted_permitted() -> bool:
    """Whether this process may set `trusted.` attributes: not so in a user namespace.

    Asked with a file of our own in memory, so no layer is touched. EOPNOTSUPP is a yes too: the
    kernel checks the permission first.
    """
    with open(os.memfd_create("unionmount"), "wb") as file:
        try:
            os.setxattr(file.fileno(), f"{TRUSTED}probe", b"")
        except PermissionError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    return True


@final
@dataclass(frozen=True, slots=True)
class Marks:
    """What a directory of one layer says about the layers below it.

    opaque: they are hidden. xwhiteouts: empty files in it may be whiteouts by their mark.
    redirect: where they hold it: an absolute path of the union, or a sibling's name.
    impure: a file in it may come from a lower layer, by copy-up and rename.
    """

    opaque: bool = False
    xwhiteouts: bool = False
    redirect: str | None = None
    impure: bool = False


def of_directory(prefix: str, layer_fd: int, path: str) -> Marks:
    """The marks of the directory at path in a layer."""
    opaque = xwhiteouts = False
    redirect = None
    names = system.list_xattr(layer_fd, path)
    if prefix + OPAQUE in names:
        value = system.get_xattr(layer_fd, path, prefix + OPAQUE)
        opaque, xwhiteouts = value == YES, value == XWHITEOUTS
    if prefix + REDIRECT in names:
        redirect = redirect_of(prefix, layer_fd, path)
    if _FUSE_OVERLAYFS + OPAQUE in names:
        opaque = opaque or system.get_xattr(layer_fd, path, _FUSE_OVERLAYFS + OPAQUE) == YES
    opaque = opaque or system.exists(layer_fd, f"{path}/{AUFS_OPAQUE}".lstrip("/"))
    return Marks(opaque, xwhiteouts, redirect, prefix + IMPURE in names)


def redirect_of(prefix: str, layer_fd: int, path: str) -> str | None:
    """The redirect of a directory, or of a file that is a copy of metadata alone.

    Raises OSError EINVAL for one that could lead elsewhere (ovl_get_redirect_xattr).
    """
    value = system.get_xattr(layer_fd, path, prefix + REDIRECT)
    if not value:
        return None
    text = os.fsdecode(value)
    parts = text[1:].split("/") if text.startswith("/") else [text]
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise OSError(errno.EINVAL, f"corrupt redirect mark {text!r}; remove the mark", path)
    return text


def is_whiteout(prefix: str, layer_fd: int, path: str, status: os.stat_result) -> bool:
    """Whether the file at path hides its name: a 0:0 device, or an empty file with the mark.

    A marked file counts where the directory that it lies in announces such files.
    """
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return (
        stat.S_ISREG(status.st_mode)
        and not status.st_size
        and system.get_xattr(layer_fd, path, prefix + WHITEOUT) is not None
        and has_xwhiteouts(prefix, layer_fd, path.rpartition("/")[0])
    )


def has_xwhiteouts(prefix: str, layer_fd: int, directory: str) -> bool:
    """Whether a layer's directory announces whiteouts that are marked files."""
    return system.get_xattr(layer_fd, directory, prefix + OPAQUE) == XWHITEOUTS


_BLOCK: Final = 512
_ATTRIBUTE_BLOCKS: Final = 8
_METACOPY_MIN: Final = 4


def lacks_data(
    prefix: str, layer_fd: int, path: str, status: os.stat_result, *, sure: bool = False
) -> bool:
    """Whether the regular file at path is a copy of metadata alone, whose data lies below.

    Such a file has no blocks but one for attributes, so only few are asked for the mark. sure: ask
    all the same, for one that was getting its data when its writer died may have blocks.

    Raises OSError EIO for a mark that is cut short (ovl_check_metacopy_xattr).
    """
    few = status.st_blocks <= _ATTRIBUTE_BLOCKS or status.st_blocks * _BLOCK < status.st_size
    if not (few or sure):
        return False
    value = system.get_xattr(layer_fd, path, prefix + METACOPY)
    if value and len(value) < _METACOPY_MIN:
        raise OSError(errno.EIO, "its metacopy mark is damaged; copy the file anew", path)
    return value is not None


def is_metacopy(value: bytes) -> bool:
    """Whether that is a metacopy mark's value: none, or a header and the data's fs-verity digest.

    The header is version, length, flags, the digest's algorithm (struct ovl_metacopy).
    """
    return not value or (len(value) >= _METACOPY_MIN and not value[0] and value[1] == len(value))


def hidden_by_aufs(layer_fd: int, directory: str, name: str) -> bool:
    """Whether a layer's directory has an AUFS whiteout for name."""
    return system.exists(layer_fd, f"{directory}/{AUFS_PREFIX}{name}".lstrip("/"))


def make_whiteout(prefix: str, dir_fd: int, name: str) -> None:
    """Make a whiteout under a new name: a 0:0 device, or where that is not permitted a marked file.

    The caller says so in the marks of the directory that a marked file is moved into
    (`announce_xwhiteouts`).
    """
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o000, dir_fd=dir_fd))
        system.set_xattr(dir_fd, name, prefix + WHITEOUT, YES)


def announce_xwhiteouts(prefix: str, layer_fd: int, directory: str) -> None:
    """Say that a directory holds marked files as whiteouts, unless it is opaque anyway."""
    if system.get_xattr(layer_fd, directory, prefix + OPAQUE) is None:
        system.set_xattr(layer_fd, directory, prefix + OPAQUE, XWHITEOUTS)


def in_union(prefix: str, name: str) -> str | None:
    """The name under which the union shows an attribute of a layer; None: it is a mark.

    Marks of a nested union are kept escaped by one more `overlay.`; fuse-overlayfs' too, so that
    no program can set one that is heeded.
    """
    for marks in (prefix, _FUSE_OVERLAYFS):
        if name.startswith(marks):
            rest = name.removeprefix(marks)
            return marks + rest.removeprefix(_ESCAPE) if rest.startswith(_ESCAPE) else None
    return name


def on_disk(prefix: str, name: str) -> str:
    """The name under which a layer keeps an attribute of the union: `in_union`'s inverse."""
    for marks in (prefix, _FUSE_OVERLAYFS):
        if name.startswith(marks):
            return marks + _ESCAPE + name.removeprefix(marks)
    return name
