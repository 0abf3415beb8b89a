"""Trees of files as values: described, built on disk, and seen again through any door.

A tree is a dict from relative path to Node, so a test can state its layers as a table. What is
built carries times long past, one for each path; what a door creates carries today's, which a
snapshot writes as NOW. So two runs of the same story compare equal, and a time that a copy-up
fails to keep shows up. Cost: a handful of system calls a file.
"""

import errno
import fcntl
import hashlib
import os
import socket
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

from unionfs import markers

MARKS = markers.TRUSTED if markers.trusted_permitted() else markers.USER
"""The prefix that overlayfs' marks have for whoever runs the tests."""
NOW = "now"
_PAST = 10**18  # nanoseconds: September 2001
_TAIL = 4095  # bytes of a block; while ext4 finds it a place on disk, it is not counted at all
_RECENT = 15 * 10**17  # July 2017; anything younger was made by the test


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One file of a tree.

    mode: file type and permission bits. data: a regular file's bytes, by offset (gaps are
    holes). size: a regular file's size in bytes where data ends earlier. target: a symlink's
    text, or the path that a hard link names. rdev: a device's number. flags: as `set_flags` has
    them.
    """

    mode: int
    data: tuple[tuple[int, bytes], ...] = ()
    size: int = 0
    target: str = ""
    rdev: int = 0
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    flags: int = 0


Tree = Mapping[str, Node]
Xattrs = Mapping[str, bytes]


def file(
    data: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0, xattrs: Xattrs | None = None
) -> Node:
    """A regular file."""
    content = ((0, data),)
    return Node(stat.S_IFREG | mode, data=content, uid=uid, gid=gid, xattrs=xattrs or {})


def sparse(size: int, *data: tuple[int, bytes]) -> Node:
    """A regular file of holes, with data at some offsets."""
    return Node(stat.S_IFREG | 0o644, data=data, size=size)


def directory(mode: int = 0o755, uid: int = 0, gid: int = 0, xattrs: Xattrs | None = None) -> Node:
    """A directory; parents that a tree doesn't name are directories like directory()."""
    return Node(stat.S_IFDIR | mode, uid=uid, gid=gid, xattrs=xattrs or {})


def opaque() -> Node:
    """A directory that hides those below it."""
    return directory(xattrs={MARKS + "opaque": b"y"})


def redirect(path: str) -> Node:
    """A directory that goes on below at another path, absolute or a sibling's name."""
    return directory(xattrs={MARKS + "redirect": os.fsencode(path)})


def symlink(target: str, uid: int = 0, gid: int = 0) -> Node:
    """A symbolic link."""
    return Node(stat.S_IFLNK | 0o777, target=target, uid=uid, gid=gid)


def hard_link(path: str) -> Node:
    """Another name of a file that the same tree names."""
    return Node(0, target=path)


def fifo(mode: int = 0o644) -> Node:
    """A named pipe."""
    return Node(stat.S_IFIFO | mode)


def device(kind: int, major: int, minor: int) -> Node:
    """A device node; kind is S_IFCHR or S_IFBLK."""
    return Node(kind | 0o600, rdev=os.makedev(major, minor))


def socket_node() -> Node:
    """A Unix socket."""
    return Node(stat.S_IFSOCK | 0o755)


def whiteout() -> Node:
    """Hides its name in the layers below."""
    return Node(stat.S_IFCHR)


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""A file's, to bind to low ports, as its xattr holds it (linux/capability.h)."""


def acl(*entries: tuple[str, int, int]) -> bytes:
    """A POSIX ACL as its xattr holds it; entries are (tag, id, permission bits).

    Rule: linux/posix_acl_xattr.h. The tags stand in the kernel's order.
    """
    tags = {"user_obj": 1, "user": 2, "group_obj": 4, "group": 8, "mask": 16, "other": 32}
    packed = (
        struct.pack("<HHI", tags[tag], bits, number if tag in ("user", "group") else 0xFFFFFFFF)
        for tag, number, bits in entries
    )
    return struct.pack("<I", 2) + b"".join(packed)


def build(root: str, tree: Tree) -> None:
    """Make the tree in the directory root, which is made where it is missing.

    Without `trusted.` attributes where they cannot be set, which is in a user namespace.
    """
    os.makedirs(root, exist_ok=True)
    for path, node in tree.items():
        _make(root, f"{root}/{path}" if path != "." else root, node)
    _age(root)
    for path, node in sorted(tree.items(), reverse=True):
        if node.flags:
            set_flags(f"{root}/{path}", node.flags)


# linux/fs.h, for 64 bits: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, and flags that overlayfs knows.
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME = 0x08, 0x10, 0x20, 0x40, 0x80
_FLAGS = SYNC | IMMUTABLE | APPEND | NODUMP | NOATIME


def get_flags(path: str) -> int:
    """Those of a file or directory that a test may set (chattr(1))."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return flags_shown(int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(4)), sys.byteorder))
    finally:
        os.close(fd)


def flags_shown(flags: int) -> int:
    """The flags that a test may set, of all: the others are the filesystem's own."""
    return flags & _FLAGS


def set_flags(path: str, flags: int) -> None:
    """Set those; the file keeps the others."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        now = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(4)), sys.byteorder)
        fcntl.ioctl(fd, _SETFLAGS, (now & ~_FLAGS | flags).to_bytes(4, sys.byteorder))
    finally:
        os.close(fd)


def unguarded(folder: str) -> None:
    """Let all in a folder be removed."""
    for top, _, files in os.walk(folder):
        for path in (top, *(f"{top}/{name}" for name in files)):
            if stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                set_flags(path, 0)


def _make(root: str, path: str, node: Node) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kind = stat.S_IFMT(node.mode)
    if not kind:
        os.link(f"{root}/{node.target}", path, follow_symlinks=False)
        return
    if kind == stat.S_IFDIR:
        os.makedirs(path, exist_ok=True)
    elif kind == stat.S_IFLNK:
        os.symlink(node.target, path)
    elif kind == stat.S_IFREG:
        with open(path, "wb") as stream:
            for offset, data in node.data:
                stream.seek(offset)
                stream.write(data)
            stream.truncate(max(node.size, stream.tell()))
    elif kind == stat.S_IFSOCK:
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            directory_fd = os.open(os.path.dirname(path), os.O_PATH)
            try:  # a socket's address is short, so not the full path
                sock.bind(f"/proc/self/fd/{directory_fd}/{os.path.basename(path)}")
            finally:
                os.close(directory_fd)
    else:
        os.mknod(path, node.mode, node.rdev)
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.chmod(path, stat.S_IMODE(node.mode))
    for name, value in node.xattrs.items():
        if name.startswith("trusted.") and not markers.trusted_permitted():
            continue
        os.setxattr(path, name, value, follow_symlinks=False)


def _age(root: str) -> None:
    """Give every file its own time in the past, the same in every copy of the tree."""
    for top, _, files in os.walk(root, topdown=False):
        for path in (*(f"{top}/{name}" for name in files), top, *_links(top)):
            relative = os.fsencode(os.path.relpath(path, root))
            moment = _PAST + zlib.crc32(relative) * 10**7 + 123_456_789
            os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _links(top: str) -> list[str]:
    """The symlinks to directories, which os.walk counts among directories."""
    with os.scandir(top) as entries:
        return [e.path for e in entries if e.is_symlink()]


class View(Protocol):
    """What a snapshot asks of a filesystem; paths are relative to its root."""

    def scandir(self, path: str) -> Iterable[Any]: ...
    def lstat(self, path: str) -> os.stat_result: ...
    def readlink(self, path: str) -> str: ...
    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]: ...
    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes: ...
    def os_open(self, path: str, flags: int, mode: int = 0o777) -> int: ...


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """One file as a snapshot saw it; two that compare equal look the same to a program."""

    kind: str
    mode: str = ""
    owner: tuple[int, int] = (0, 0)
    nlink: int = 0
    size: int = 0
    mtime: int | str = 0
    content: bytes | str = b""
    sparse: bool = False
    rdev: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


Snapshot = dict[str, Seen | str]

_KINDS: dict[int, str] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


def kind_of(mode: int) -> str:
    """The name of a file's type."""
    return _KINDS[stat.S_IFMT(mode)]


def moment(nanoseconds: int) -> int | str:
    """A time as a snapshot keeps it: exact when past, NOW when the test itself made it."""
    return NOW if nanoseconds > _RECENT else nanoseconds


def seen(status: os.stat_result, **more: Any) -> Seen:
    """What stat tells, less what may differ between equal trees: numbers, a directory's size."""
    mode = status.st_mode
    return Seen(
        kind=kind_of(mode),
        mode=f"{stat.S_IMODE(mode):04o}",
        owner=(status.st_uid, status.st_gid),
        nlink=status.st_nlink,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        mtime=moment(status.st_mtime_ns),
        sparse=stat.S_ISREG(mode) and status.st_blocks * 512 < status.st_size - _TAIL,
        rdev=status.st_rdev,
        **more,
    )


def error_name(error: OSError) -> str:
    """An error as a snapshot keeps it: ENOENT, not 2."""
    return errno.errorcode.get(error.errno or 0, str(error))


def snapshot(view: View, top: str = ".") -> Snapshot:
    """Everything below top by relative path, top itself as "."; errors stand as their names.

    A missing top is an empty snapshot.
    """
    found: Snapshot = {}

    def visit(path: str, name: str) -> None:
        try:
            found[name] = _look(view, path)
            if stat.S_ISDIR(view.lstat(path).st_mode):
                for entry in sorted(_names(view, path)):
                    visit(f"{path}/{entry}", entry if name == "." else f"{name}/{entry}")
        except OSError as error:
            found[name] = error_name(error)

    visit(top, ".")
    return {} if found == {".": "ENOENT"} else found


def _names(view: View, path: str) -> list[str]:
    return [entry.name for entry in view.scandir(path)]


def _look(view: View, path: str) -> Seen:
    status = view.lstat(path)
    xattrs = tuple(
        (name, b"" if name == MARKS + "origin" else value)
        for name, value in sorted(_xattrs(view, path))
    )
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return Seen("whiteout", xattrs=xattrs)  # hard links of one inode: no more to compare
    content: bytes | str = b""
    if stat.S_ISLNK(status.st_mode):
        content = view.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        content = _content(view, path)
        status = view.lstat(path)  # where writes are kept back, a file's close counts its blocks
    return seen(status, content=content, xattrs=xattrs)


def _xattrs(view: View, path: str) -> list[tuple[str, bytes]]:
    """All but the random identity that the kernel gives an upper's root."""
    names = view.listxattr(path, follow_symlinks=False)
    return [
        (name, view.getxattr(path, name, follow_symlinks=False))
        for name in names
        if name != MARKS + "uuid"
    ]


def _content(view: View, path: str) -> bytes:
    """A file's bytes, or their digest where they are many."""
    with open(view.os_open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        data = stream.read()
    return data if len(data) <= 64 else hashlib.sha256(data).digest()


def differences(expected: Mapping[str, object], actual: Mapping[str, object]) -> list[str]:
    """One line for each path that differs."""
    return [
        f"{path}: expected {expected.get(path, 'nothing')}, got {actual.get(path, 'nothing')}"
        for path in sorted({*expected, *actual})
        if expected.get(path) != actual.get(path)
    ]


def there(seen: Mapping[str, object]) -> dict[str, object]:
    """Without names that are listed and cannot be looked up: the kernel's whiteouts in opaque
    directories."""
    return {path: what for path, what in seen.items() if what != "ENOENT"}


def unrepaired(upper: Snapshot) -> Snapshot:
    """An upper without what the kernel adds to hand-made directories when it looks them up."""
    repairs = (f"{MARKS}origin", f"{MARKS}impure")
    return {
        path: replace(what, xattrs=tuple(x for x in what.xattrs if x[0] not in repairs))
        if isinstance(what, Seen) and what.kind == "directory"
        else what
        for path, what in upper.items()
    }
