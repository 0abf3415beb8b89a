"""The index of a layer: all names in it, with status and marks, in one file that is read by need.

Where layers are never changed, as those of a store, their directories and inodes need not be read:
a walk through a stack whose files are not in memory then reads one file a layer. Whoever names a
directory for indexes (option `layer_index`) vouches for that. The default is to read directories
instead, once a stack (`lower`), because nothing cheap tells of a change deep in a plain directory.

An index is built when a stack is first read by us, or by `build`, and replaced in one rename, so
that any number of processes may do so at once. It is used if it was made for this directory: the
same filesystem (its UUID, where the kernel tells that, else the device's number), inode number and
change time (st_ctime), which a name made or removed in the layer's root renews, and a copy or an
unpacking elsewhere too; and in a user namespace of these owners. A change further down is not
noticed, nor that another mount shows other owners: a layer there must be given no index. One that
is damaged, by its checksum, or that others than root and ourselves may write, is not used, but
built anew.

Access times are those from when it was built. Cost: one read of the layer, about 110 bytes a name
on disk, and a checksum of these when the stack is made.

The file: a header, the directories by path, their entries by name, the entry of the root last, and
all strings, each ending with NUL. Numbers are little-endian; csrc/ufs_index.c reads it too.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import mmap
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Final, final

from unionfs import markers, system

_MAGIC: Final = b"ufsindex"
_VERSION: Final = 2
_MAPPED_MIN: Final = 1 << 18  # bytes: 2,400 names
_HEADER: Final = struct.Struct("<8sII")  # magic, version, checksum of what follows
_IDENTITY: Final = struct.Struct("<16sQQq4sI")
# UUID, device, root's inode, its ctime, start of the prefix, checksum of the owners' mapping
_COUNTS: Final = struct.Struct("<IIQ")  # directories, entries, bytes of strings
_DIRECTORY: Final = struct.Struct("<IIIIII")  # path, first entry, entries, marks, redirect, 0
_ENTRY: Final = struct.Struct("<QQqqqqqIIIIIIII")
# inode, rdev, size, blocks, atime, mtime, ctime, mode, links, uid, gid, block size, name, marks, 0
_DIRECTORIES: Final = _HEADER.size + _IDENTITY.size + _COUNTS.size

_OPAQUE: Final = 1
_REDIRECT: Final = 2
_IMPURE: Final = 4
_METACOPY: Final = 1
_WHITEOUT: Final = 2
_MARKED: Final = 4

WHITEOUT: Final = 14
"""The type of a whiteout among the entries of a directory (DT_WHT)."""
_ROOT: Final = ""


@final
class LayerIndex:
    """An index in use. Its methods raise FileNotFoundError for what the layer does not hold.

    data: its file, for whom reads that otherwise; unmapped when nobody has it any more.
    """

    def __init__(self, data: bytes | mmap.mmap, device: int) -> None:
        """Data: a whole index. device: the st_dev of the layer now."""
        self.data = data
        self._device = device
        self._count: int
        self._count, entries, _ = _COUNTS.unpack_from(data, _HEADER.size + _IDENTITY.size)
        self._entries = _DIRECTORIES + self._count * _DIRECTORY.size
        self._strings: int = self._entries + entries * _ENTRY.size
        self._last: tuple[str, dict[str, int]] = "\0", {}

    def _text(self, offset: int) -> bytes:
        start = self._strings + offset
        return self.data[start : self.data.find(b"\0", start)]

    def _path(self, number: int) -> bytes:
        (offset,) = struct.unpack_from("<I", self.data, _DIRECTORIES + number * _DIRECTORY.size)
        return self._text(offset)

    def _directory(self, path: str) -> tuple[int, int, int, int]:
        """First entry, number of entries, marks and redirect of a directory."""
        wanted = os.fsencode(path)
        number = bisect.bisect_left(range(self._count), wanted, key=self._path)
        if number == self._count or self._path(number) != wanted:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        found = _DIRECTORY.unpack_from(self.data, _DIRECTORIES + number * _DIRECTORY.size)
        return found[1], found[2], found[3], found[4]

    def entries(self, path: str) -> list[tuple[str, int, int]]:
        """Name, type (DT_*; WHITEOUT for any kind of one) and inode number of each entry."""
        first, count, _, _ = self._directory(path)
        start = self._entries + first * _ENTRY.size
        found = []
        offsets = {}
        for at in range(start, start + count * _ENTRY.size, _ENTRY.size):
            inode, _, _, _, _, _, _, mode, _, _, _, _, name, marks, _ = _ENTRY.unpack_from(
                self.data, at
            )
            text = os.fsdecode(self._text(name))
            found.append((text, WHITEOUT if marks & _WHITEOUT else mode >> 12, inode))
            offsets[text] = at
        self._last = path, offsets
        return found

    def marks(self, path: str) -> markers.Marks:
        """The marks of a directory; `xwhiteouts` is not told, as `entries` tells of those."""
        _, _, marks, redirect = self._directory(path)
        return markers.Marks(
            opaque=bool(marks & _OPAQUE),
            redirect=os.fsdecode(self._text(redirect)) if marks & _REDIRECT else None,
            impure=bool(marks & _IMPURE),
        )

    def _offset(self, path: str) -> int:
        if not path:
            return self._strings - _ENTRY.size
        directory, _, name = path.rpartition("/")
        if self._last[0] != directory:
            self.entries(directory)
        try:
            return self._last[1][name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def status(self, path: str) -> os.stat_result:
        """lstat(2) of a path in the layer, as when the index was built."""
        inode, rdev, size, blocks, atime, mtime, ctime, mode, links, uid, gid, block, _, _, _ = (
            _ENTRY.unpack_from(self.data, self._offset(path))
        )
        seconds = [time // 10**9 for time in (atime, mtime, ctime)]
        return os.stat_result(
            [mode, inode, self._device, links, uid, gid, size, *seconds],
            {
                "st_atime": atime / 10**9,
                "st_mtime": mtime / 10**9,
                "st_ctime": ctime / 10**9,
                "st_atime_ns": atime,
                "st_mtime_ns": mtime,
                "st_ctime_ns": ctime,
                "st_blksize": block,
                "st_blocks": blocks,
                "st_rdev": rdev,
            },
        )

    def lacks_data(self, path: str, *, sure: bool) -> bool:
        """Whether a regular file is a copy of metadata alone, as `markers.lacks_data` tells."""
        marks: int = _ENTRY.unpack_from(self.data, self._offset(path))[-2]
        return bool(marks & (_MARKED if sure else _METACOPY))


def use(folder: str, root_fd: int, prefix: str) -> LayerIndex | None:
    """The index of a layer from a folder of indexes, built where it is missing or not right.

    root_fd: the layer's root. prefix: of the marks that count. None where none can be built, as
    from a layer that holds mounts or may not be read: then the layer is to be asked.
    """
    found = _opened(folder, root_fd, prefix)
    if found is None:
        try:
            build(folder, root_fd, prefix)
        except OSError:
            return None
        found = _opened(folder, root_fd, prefix)
    return found


def _identity(root_fd: int, prefix: str) -> bytes:
    status = os.fstat(root_fd)
    uuid = system.filesystem_uuid(root_fd)
    # Without a major number it may be one of btrfs' subvolumes, which have one uuid together.
    device = 0 if uuid and os.major(status.st_dev) else status.st_dev
    kept = prefix.encode()[:4], _owners(os.stat("/proc/self/ns/user").st_ino)
    return _IDENTITY.pack(uuid or b"", device, status.st_ino, status.st_ctime_ns, *kept)


@functools.cache
def _owners(namespace: int) -> int:
    """What tells a user namespace, ours, from others that show files under other owners."""
    checksum = 0
    for name in ("uid", "gid"):
        with open(f"/proc/self/{name}_map", "rb") as file:
            checksum = zlib.crc32(file.read(), checksum)
    return checksum


def _file(folder: str, identity: bytes) -> str:
    uuid, device, inode, _, prefix, owners = _IDENTITY.unpack(identity)
    filesystem = uuid.hex() if not device else f"{device:x}"
    return os.path.join(folder, f"{filesystem}-{inode:x}-{prefix[:1].decode()}{owners:08x}")


def _opened(folder: str, root_fd: int, prefix: str) -> LayerIndex | None:
    """The index of a layer, if there is one that is right."""
    identity = _identity(root_fd, prefix)
    try:
        fd = os.open(_file(folder, identity), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size < _DIRECTORIES:
            return None
        data = _read(fd, status.st_size)
    finally:
        os.close(fd)
    if _is_right(data, identity):
        return LayerIndex(data, os.fstat(root_fd).st_dev)
    return None


def _read(fd: int, size: int) -> bytes | mmap.mmap:
    """A file's content. A mapping, which all who have it share, holds a descriptor."""
    if size >= _MAPPED_MIN:
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def _is_right(data: bytes | mmap.mmap, identity: bytes) -> bool:
    magic, version, checksum = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        return False
    if data[_HEADER.size : _HEADER.size + _IDENTITY.size] != identity:
        return False
    directories, entries, strings = _COUNTS.unpack_from(data, _HEADER.size + _IDENTITY.size)
    size = _DIRECTORIES + directories * _DIRECTORY.size + entries * _ENTRY.size + strings
    with memoryview(data) as view, view[_HEADER.size :] as content:
        if size != len(data) or (strings and view[-1]):
            return False
        return bool(zlib.crc32(content) == checksum)


def build(folder: str, root_fd: int, prefix: str) -> None:
    """Build the index of a layer into a folder of indexes, which is made where it is missing.

    root_fd, prefix: as for `use`.

    Raises OSError: EXDEV for a layer that is more than one filesystem, EBUSY for one that changes
    meanwhile, and what reading the layer and writing the file raise.
    """
    identity = _identity(root_fd, prefix)
    content = identity + _Builder(root_fd, prefix).content()
    if _identity(root_fd, prefix) != identity:
        raise OSError(errno.EBUSY, "the layer is changing; index it when it is at rest")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    import tempfile

    fd, draft = tempfile.mkstemp(dir=folder)
    try:
        with open(fd, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, zlib.crc32(content)) + content)
        os.rename(draft, _file(folder, identity))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


@dataclass(slots=True)
class _Read:
    """A directory that was read."""

    path: bytes
    marks: markers.Marks
    entries: list[tuple[bytes, os.stat_result, int]]


class _Builder:
    """Reads a layer once."""

    def __init__(self, root_fd: int, prefix: str) -> None:
        self._root = root_fd
        self._prefix = prefix
        self._device = os.fstat(root_fd).st_dev
        self._strings = bytearray()
        self._offsets: dict[bytes, int] = {}

    def content(self) -> bytes:
        """What follows the identity."""
        directories = []
        pending = [_ROOT]
        while pending:
            path = pending.pop()
            read = self._read(path)
            directories.append(read)
            pending += [
                os.fsdecode(read.path + b"/" * bool(path) + name)
                for name, status, _ in read.entries
                if stat.S_ISDIR(status.st_mode)
            ]
        directories.sort(key=lambda read: read.path)
        heads, entries, first = [], [], 0
        for read in directories:
            marks = read.marks
            flags = _OPAQUE * marks.opaque | _IMPURE * marks.impure
            redirect = 0
            if marks.redirect is not None:
                flags |= _REDIRECT
                redirect = self._string(os.fsencode(marks.redirect))
            count = len(read.entries)
            heads.append(_DIRECTORY.pack(self._string(read.path), first, count, flags, redirect, 0))
            entries += [self._entry(*entry) for entry in sorted(read.entries, key=lambda e: e[0])]
            first += count
        entries.append(self._entry(b"", os.fstat(self._root), 0))
        counts = _COUNTS.pack(len(heads), len(entries), len(self._strings))
        return b"".join([counts, *heads, *entries, self._strings])

    def _string(self, text: bytes) -> int:
        if text not in self._offsets:
            self._offsets[text] = len(self._strings)
            self._strings += text + b"\0"
        return self._offsets[text]

    def _entry(self, name: bytes, status: os.stat_result, marks: int) -> bytes:
        return _ENTRY.pack(
            status.st_ino,
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_blksize,
            self._string(name),
            marks,
            0,
        )

    def _read(self, path: str) -> _Read:
        marks = markers.of_directory(self._prefix, self._root, path)
        entries = []
        for name, _, _ in system.list_dir(self._root, path):
            child = f"{path}/{name}" if path else name
            status = os.stat(child, dir_fd=self._root, follow_symlinks=False)
            if status.st_dev != self._device:
                raise OSError(errno.EXDEV, "a layer with mounts in it has no index", child)
            flags = 0
            if markers.is_whiteout(self._prefix, self._root, child, status):
                flags = _WHITEOUT
            elif stat.S_ISREG(status.st_mode):
                flags = self._metacopy(child, status)
            entries.append((os.fsencode(name), status, flags))
        return _Read(os.fsencode(path), marks, entries)

    def _metacopy(self, path: str, status: os.stat_result) -> int:
        """What the metacopy mark of a regular file says, with and without a sure look."""
        look = markers.lacks_data
        if not look(self._prefix, self._root, path, status, sure=True):
            return 0
        return _MARKED | _METACOPY * look(self._prefix, self._root, path, status)
