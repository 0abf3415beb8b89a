"""The tar format as layers use it: ustar headers, with PAX records for what these cannot carry.

`tarfile` is not used here. It writes extended attributes that are no text in a form which other
readers do not know, keeps times as floats of less than nanoseconds, and reads and writes 10,000
files a second, far from what the disk takes. Its rules are kept: what this module writes, GNU tar,
bsdtar, Go's archive/tar and `tarfile` read.

Read are POSIX ustar and PAX, GNU's long names, numbers in base 256, and GNU's sparse files in all
four forms. Written are full files: the OCI specification asks for no sparse ones, since not every
tool reads them.

Rules: POSIX.1-2017, pax, "pax Interchange Format"; GNU tar, "Storing Sparse Files"; libarchive,
tar(5); OCI image specification, layer.md.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, Final, NamedTuple, final

from unionfs.layers.header import LAYOUT, MAGIC, RECORD, Fields, Number, fields, number
from unionfs.layers.streams import LayerError, Reader

XATTR: Final = "SCHILY.xattr."
END: Final = bytes(2 * RECORD)
HARD_LINK: Final = 0
"""The kind of an entry that is one more name of a file."""

_TYPES: Final = {
    stat.S_IFREG: b"0",
    HARD_LINK: b"1",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_KINDS: Final = {
    **{letter: kind for kind, letter in _TYPES.items()},
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"S": stat.S_IFREG,
}
_NAME_MAX: Final = 100
_OCTAL_MAX: Final = {8: 0o7777777, 12: 0o77777777777}
_EXTENSION_MAX: Final = 1 << 20
"""Bytes of the longest extension that is read, as in Go's archive/tar."""
_NS: Final = 10**9
_SIZE_MAX: Final = (1 << 63) - 1
_TIME_MAX: Final = 1 << 55  # seconds
_NO_ID: Final = (1 << 32) - 1  # chown(2): leave it

Piece = tuple[int, int]
"""Where a piece of a sparse file begins, and how many bytes it has."""


_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})


@final
class Entry(NamedTuple):
    """One file of an archive. A tuple, since there is one for each file that is unpacked.

    name: as it stands there; a directory's slash at the end may be missing.
    kind: of S_IFMT, or HARD_LINK. mode: the permission bits. mtime: nanoseconds.
    size: bytes of a regular file. target: of a symlink or hard link. rdev: a device's number.
    xattrs: extended attributes. sparse: where a sparse file's data lies; None: everywhere.
    """

    name: str
    kind: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: str = ""
    rdev: int = 0
    xattrs: Mapping[str, bytes] = _NOTHING
    sparse: tuple[Piece, ...] | None = None


def padding(size: int) -> bytes:
    """What follows data of so many bytes, up to the next record."""
    return bytes(-size % RECORD)


# Writing.


def encode(entry: Entry) -> bytes:
    """The header of an entry, with its extension where it needs one; its data follows."""
    name, target = os.fsencode(entry.name), os.fsencode(entry.target)
    pax: list[tuple[str, bytes]] = []
    if len(name) > _NAME_MAX:
        pax.append(("path", name))
    if len(target) > _NAME_MAX:
        pax.append(("linkpath", target))
    seconds, rest = divmod(entry.mtime, _NS)
    if rest or seconds not in range(_OCTAL_MAX[12] + 1):
        pax.append(("mtime", _decimal(entry.mtime)))
    numbers = {"uid": (entry.uid, 8), "gid": (entry.gid, 8), "size": (entry.size, 12)}
    pax += [
        (key, b"%d" % number)
        for key, (number, width) in numbers.items()
        if number > _OCTAL_MAX[width]
    ]
    pax += [(XATTR + key, value) for key, value in sorted(entry.xattrs.items())]
    extension = b""
    if pax:
        data = b"".join(_pax_record(key, value) for key, value in pax)
        extension = _header(b"PaxHeaders/" + name[-80:], b"x", size=len(data))
        extension += data + padding(len(data))
    return extension + _header(
        name,
        _TYPES[entry.kind],
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size,
        max(0, seconds),
        target,
        entry.rdev,
    )


def _decimal(nanoseconds: int) -> bytes:
    """A time in seconds, exactly."""
    seconds, rest = divmod(abs(nanoseconds), _NS)
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{seconds}.{rest:09}".rstrip("0").rstrip(".").encode()


def _pax_record(key: str, value: bytes) -> bytes:
    """A record, which begins with its own length."""
    record = b" " + os.fsencode(key) + b"=" + value + b"\n"
    length = len(record) + len(str(len(record)))
    length = len(record) + len(str(length))
    return b"%d" % length + record


def _header(
    name: bytes,
    letter: bytes,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    rdev: int = 0,
) -> bytes:
    begin = (
        name[:_NAME_MAX],
        b"%07o\0" % mode,
        b"%07o\0" % (uid if uid <= _OCTAL_MAX[8] else 0),
        b"%07o\0" % (gid if gid <= _OCTAL_MAX[8] else 0),
        b"%011o\0" % (size if size <= _OCTAL_MAX[12] else 0),
        b"%011o\0" % (mtime if mtime <= _OCTAL_MAX[12] else 0),
    )
    rest = (
        letter,
        target[:_NAME_MAX],
        MAGIC,
        b"",
        b"",
        b"%07o\0" % os.major(rdev),
        b"%07o\0" % os.minor(rdev),
        b"",
    )
    checksum = sum(LAYOUT.pack(*begin, b" " * 8, *rest))
    return LAYOUT.pack(*begin, b"%06o\0 " % checksum, *rest)


# Reading.


@final
class Archive:
    """The entries of a tar, one after the other; `data` gives the content of the last one.

    limit: how many entries it may have.

    Raises LayerError that names the entry: EINVAL for what is no tar or of an unknown kind, EFBIG
    beyond the limit; and what the reader raises.
    """

    def __init__(self, reader: Reader, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._left = self._padding = 0
        self._entry: Entry | None = None
        self._last = ""

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        while True:
            try:
                self._skip()
                entry = self._next()
            except LayerError as error:
                if error.filename is not None:
                    raise
                where = self._last or "the first entry"
                raise LayerError(error.errno, error.strerror, where) from error
            if entry is None:
                return
            count += 1
            if count > self._limit:
                message = f"more than the limit of {self._limit} entries; raise it"
                raise LayerError(errno.EFBIG, message, entry.name)
            self._last, self._entry = entry.name, entry
            yield entry

    def data(self) -> Iterator[tuple[int, memoryview]]:
        """The content of the last entry, as offsets and what lies there."""
        entry = self._entry
        if entry is None:
            return
        for offset, size in ((0, entry.size),) if entry.sparse is None else entry.sparse:
            for piece in self._reader.pieces(size):
                yield offset, piece
                self._left -= len(piece)
                offset += len(piece)

    def whole(self) -> bytes | memoryview:
        """The content of the last entry at once, none of which was read by `data`."""
        entry = self._entry
        if entry is None or not entry.size:
            return b""
        if entry.sparse is None:
            self._left -= entry.size
            return self._reader.read(entry.size, whole=True)
        content = bytearray(entry.size)
        for offset, piece in self.data():
            content[offset : offset + len(piece)] = piece
        return memoryview(content)

    def _skip(self) -> None:
        """Go past what is left of the last entry's data, and its padding.

        umoci's archives may end without that.
        """
        if self._left:
            for _ in self._reader.pieces(self._left):
                pass
        if self._padding:
            self._reader.read(self._padding)
        self._left = self._padding = 0

    def _next(self) -> Entry | None:
        """The header that follows, with the extensions before it; None at the end."""
        pax: dict[str, bytes] = {}
        pieces: list[str] = []
        while record := self._reader.read(RECORD):
            found = fields(record) if len(record) == RECORD else None
            if found is None:
                if record == END[:RECORD]:
                    return None
                raise LayerError(errno.EINVAL, "no tar header follows it; fetch the blob again")
            kind = found[1]
            if kind in b"xLKg":
                extension = self._extension(found[5])
                if kind == b"x":
                    pax, pieces = _pax(extension)
                elif kind != b"g":  # of the whole archive, which Go's readers pass over too
                    key = "path" if kind == b"L" else "linkpath"
                    pax[key] = extension.rstrip(b"\0")
                continue
            return self._file(found, record, pax, pieces)
        if pax:
            raise LayerError(errno.EINVAL, "the archive ends in the middle of it; fetch it again")
        return None

    def _extension(self, size: Number) -> bytes:
        if size is None or size < 0:
            raise LayerError(errno.EINVAL, "a corrupt header follows it; fetch the blob again")
        if size > _EXTENSION_MAX:
            message = f"an extended header of {size} bytes follows it; {_EXTENSION_MAX} are read"
            raise LayerError(errno.EFBIG, message)
        data = b"".join(self._reader.pieces(size))
        self._padding = -size % RECORD
        self._skip()
        return data

    def _file(
        self, found: Fields, record: memoryview, pax: dict[str, bytes], pieces: list[str]
    ) -> Entry:
        name = found[0]
        if pax:
            name = _name(pax, "GNU.sparse.name") or _name(pax, "path") or name
        try:
            kind = _KINDS[found[1]]
        except KeyError:
            message = f"an entry of the unknown type {found[1]!r}"
            raise LayerError(errno.EINVAL, message, name) from None
        try:
            return self._parsed(name, kind, found, record, pax, pieces)
        except ValueError as error:
            raise LayerError(errno.EINVAL, f"a corrupt header: {error}", name) from None

    def _parsed(
        self,
        name: str,
        kind: int,
        found: Fields,
        record: memoryview,
        pax: dict[str, bytes],
        pieces: list[str],
    ) -> Entry:
        _, letter, mode, uid, gid, length, seconds, target, *device = found
        if kind == stat.S_IFREG and name.endswith("/"):
            kind = stat.S_IFDIR  # before POSIX, that told a directory
        stored = _natural(pax, "size", length)
        if kind != stat.S_IFREG:
            stored = 0
        self._left, self._padding = stored, -stored % RECORD
        sparse: tuple[Piece, ...] | None = None
        size = stored
        if letter == b"S":
            sparse, size = self._gnu_sparse(bytes(record))
        elif pieces or "GNU.sparse.map" in pax or "GNU.sparse.major" in pax:
            sparse = self._pax_sparse(pax, pieces)
            size = int(pax.get("GNU.sparse.realsize", pax.get("GNU.sparse.size", b"0")))
        if sparse is not None:
            _check_sparse(sparse, size, stored)
        if size > _SIZE_MAX:
            raise ValueError("a size that no file has")
        return Entry(
            name,
            kind,
            _known("mode", mode) & 0o7777,
            _id(pax, "uid", uid),
            _id(pax, "gid", gid),
            _time(pax, seconds),
            size,
            (_name(pax, "linkpath") or target) if pax else target,
            _device(*device) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            {key.removeprefix(XATTR): value for key, value in pax.items() if key.startswith(XATTR)}
            if pax
            else _NOTHING,
            sparse,
        )

    def _gnu_sparse(self, record: bytes) -> tuple[tuple[Piece, ...], int]:
        """The map of the old GNU form: in the header, and in records that follow it."""
        numbers = [record[start : start + 12] for start in range(386, 386 + 8 * 12, 12)]
        more = record[482]
        while more:
            block = bytes(self._reader.read(RECORD))
            if not block:
                raise ValueError("its map of a sparse file is cut short")
            numbers += [block[start : start + 12] for start in range(0, 504, 12)]
            _check_map(len(numbers))
            more = block[504]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        found = tuple(
            (_known("offset", number(at)), _known("size", number(size)))
            for at, size in pairs
            if size.strip(b"\0 ")
        )
        return found, _known("size", number(record[483:495]))

    def _pax_sparse(self, pax: dict[str, bytes], pieces: list[str]) -> tuple[Piece, ...]:
        """The map of the PAX forms: 0.0 in many records, 0.1 in one, 1.0 before the data."""
        if pax.get("GNU.sparse.major") == b"1":
            pieces = self._map_before_data()
        elif not pieces:
            text = pax.get("GNU.sparse.map", b"").decode()
            pieces = text.split(",") if text else []
        _check_map(len(pieces))
        numbers = [int(piece) for piece in pieces]
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    def _map_before_data(self) -> list[str]:
        text = b""
        wanted = 1
        while text.count(b"\n") < wanted:
            _check_map(len(text) // 2)
            if self._left < RECORD:
                raise ValueError("its map of a sparse file is cut short")
            text += bytes(self._reader.read(RECORD))
            self._left -= RECORD
            if wanted == 1 and b"\n" in text:
                wanted += 2 * int(text.partition(b"\n")[0])
        return text.decode("ascii", "replace").split("\n")[1:wanted]


def is_archive(blob: BinaryIO) -> bool:
    """Whether a file is a tar, compressed in one of the ways that a `Reader` knows, or not."""
    try:
        with Reader(blob, 1 << 30) as reader:
            header = bytes(reader.read(RECORD))
    except LayerError:
        return False
    return len(header) == RECORD and fields(header) is not None


def _check_map(numbers: int) -> None:
    if numbers > _EXTENSION_MAX:
        raise ValueError("its map of a sparse file is too long")


def _check_sparse(sparse: tuple[Piece, ...], size: int, stored: int) -> None:
    end = 0
    for offset, length in sparse:
        if length < 0 or offset < end or offset + length > size:
            raise ValueError("its map of a sparse file overlaps or exceeds it")
        end = offset + length
    if sum(length for _, length in sparse) > stored:
        raise ValueError("its map of a sparse file has more than the archive holds")


def _pax(data: bytes) -> tuple[dict[str, bytes], list[str]]:
    """The records of an extension; and apart the offsets and sizes that occur many times."""
    found: dict[str, bytes] = {}
    pieces: list[str] = []
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 20)
        try:
            length = int(data[start:space])
        except ValueError:
            length = 0
        record = data[space + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if (
            space < 0
            or not equals
            or b"\0" in key
            or not record.endswith(b"\n")
            or start + length > len(data)
        ):
            raise LayerError(
                errno.EINVAL, "a corrupt extended header follows it; fetch the blob again"
            )
        name = os.fsdecode(key)
        if name in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            pieces.append(value[:-1].decode("ascii", "replace"))
        found[name] = value[:-1]
        start += length
    return found, pieces


def _name(pax: dict[str, bytes], key: str) -> str | None:
    value = pax.get(key)
    if value is None:
        return None
    if b"\0" in value:
        raise LayerError(errno.EINVAL, "a NUL in a name", os.fsdecode(value).replace("\0", "\\0"))
    return os.fsdecode(value)


def _known(what: str, value: Number) -> int:
    if value is None:
        raise ValueError(f"no number where it has its {what}")
    return value


def _natural(pax: dict[str, bytes], key: str, field: Number) -> int:
    value = int(pax[key]) if key in pax else _known(key, field)
    if value < 0:
        raise ValueError(f"a negative {key}")
    return value


def _id(pax: dict[str, bytes], key: str, field: Number) -> int:
    value = _natural(pax, key, field)
    if value >= _NO_ID:
        raise ValueError(f"a {key} that nobody has")
    return value


def _device(major: Number, minor: Number) -> int:
    try:
        return os.makedev(_known("device", major), _known("device", minor))
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _time(pax: dict[str, bytes], field: Number) -> int:
    """A time in nanoseconds; more than nine decimals are cut off."""
    if "mtime" not in pax:
        seconds, rest, sign = _known("mtime", field), "", 1
    else:
        whole, _, rest = pax["mtime"].decode("ascii").partition(".")
        seconds, sign = int(whole), -1 if whole.startswith("-") else 1
    if abs(seconds) > _TIME_MAX:
        raise ValueError("a time that no file has")
    return seconds * _NS + sign * (int(rest[:9].ljust(9, "0")) if rest else 0)
