"""The files that an image layout or archive is made of: a folder, or a tar of one.

Read are regular files alone, by their path in the folder; a symlink of an archive leads to another
file of it, as in those that Docker saved. Written are files and the folders that they are in, all
at once: what is half-made lies beside its place, and is gone when writing fails.

A tar has one time and owner, so that the same image makes the same bytes. One that is compressed is
decompressed into a temporary file first, since its files are not read in its order.

Cost: a tar is read once for its list of files.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import posixpath
import shutil
import stat
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, Final, Protocol, cast, final

from unionfs import system
from unionfs.images import fields
from unionfs.layers import Limits
from unionfs.layers.streams import Reader

STANDARD: Final = "-"
"""The path that means standard input or output."""

_BLOCK: Final = 1 << 20
_LINKS: Final = 8
"""How many links of an archive lead to a file."""

_MAGIC: Final = b"ustar"
_MAGIC_AT: Final = 257


class Files(Protocol):
    """The files of a layout or archive, to read."""

    def open(self, path: str) -> BinaryIO:
        """A file, to read. Raises FileNotFoundError."""


class Sink(Protocol):
    """Where the files of a layout or archive go."""

    def add(self, path: str, data: BinaryIO, size: int) -> None:
        """Write a file of so many bytes."""


def read(files: Files, path: str) -> bytes:
    """A document among the files. Raises FileNotFoundError."""
    with files.open(path) as file:
        return file.read(fields.LARGEST + 1)  # one byte more is told as an error when it is parsed


def chunks(file: BinaryIO, start: int) -> Iterator[bytes]:
    """The bytes of a file from some place on; it is closed at the end."""
    with file:
        file.seek(start)
        while chunk := file.read(_BLOCK):
            yield chunk


def add_bytes(sink: Sink, path: str, data: bytes) -> None:
    """Write a file that is in memory."""
    sink.add(path, io.BytesIO(data), len(data))


@contextmanager
def opened(path: str) -> Iterator[Files]:
    """The files in a folder, in a tar, compressed or not, or in one on standard input.

    Raises OSError where there is none.
    """
    with ExitStack() as block:
        if os.path.isdir(path):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            block.callback(os.close, folder)
            yield _Folder(folder)
            return
        file = sys.stdin.buffer if path == STANDARD else block.enter_context(open(path, "rb"))
        if not _is_plain(file):
            plain = block.enter_context(tempfile.TemporaryFile())
            with Reader(file, Limits().size) as reader:
                plain.writelines(reader.rest())
            plain.seek(0)
            file = plain
        yield _Tar(file, path)


def _is_plain(file: BinaryIO) -> bool:
    """Whether a file is a tar that can be read in any order; others are for `Reader`."""
    if not file.seekable():
        return False
    begin = file.read(_MAGIC_AT + len(_MAGIC))
    file.seek(0)
    return begin[_MAGIC_AT:] == _MAGIC


@final
class _Folder:
    def __init__(self, folder: int) -> None:
        self._folder = folder

    def open(self, path: str) -> BinaryIO:
        try:
            fd = system.open_beneath(self._folder, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "is no regular file", path)
        return os.fdopen(fd, "rb")


@final
class _Tar:
    """The files of a tar, which may be read by several threads at once."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                self._members = {posixpath.normpath(member.name): member for member in tar}
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise OSError(errno.EINVAL, f"no archive of an image ({error})", path) from None

    def open(self, path: str) -> BinaryIO:
        name = posixpath.normpath(path)
        for _ in range(_LINKS):
            member = self._members.get(name)
            if member is None:
                break
            if member.isreg() and not member.issparse():
                part = _Part(self._file.fileno(), member.offset_data, member.size)
                return cast(BinaryIO, io.BufferedReader(part, _BLOCK))
            target = member.linkname
            if member.issym():
                target = posixpath.join(posixpath.dirname(name), target)
            name = posixpath.normpath(target)
        raise FileNotFoundError(errno.ENOENT, "no such file in the archive", path)


@final
class _Part(io.RawIOBase):
    """Some bytes of a file."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        count = os.preadv(self._fd, [view], self._start + self._position) if view else 0
        self._position += count
        return count


@contextmanager
def created(path: str, *, folder: bool) -> Iterator[Sink]:
    """Where the files of a new folder or tar go; the path is there when the block ends well.

    Raises FileExistsError.
    """
    if path == STANDARD:
        with _tar(sys.stdout.buffer) as sink:
            yield sink
        return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already; choose another place", path)
    parent, name = os.path.split(os.path.abspath(path))
    made = os.path.join(parent, f".{name}.{uuid.uuid4().hex}")
    try:
        if folder:
            os.mkdir(made)
            yield _FolderSink(made)
        else:
            with open(made, "xb") as file, _tar(file) as sink:
                yield sink
        os.rename(made, path)
    except BaseException:
        if folder:
            shutil.rmtree(made, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.unlink(made)
        raise


@final
class _FolderSink:
    def __init__(self, root: str) -> None:
        self._root = root

    def add(self, path: str, data: BinaryIO, size: int) -> None:
        place = os.path.join(self._root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "xb") as file:
            shutil.copyfileobj(data, file, _BLOCK)


@contextmanager
def _tar(out: BinaryIO) -> Iterator[_TarSink]:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        yield _TarSink(tar)


@final
class _TarSink:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._folders: set[str] = set()

    def add(self, path: str, data: BinaryIO, size: int) -> None:
        parts = path.split("/")[:-1]
        for folder in itertools.accumulate(parts, posixpath.join):
            if folder not in self._folders:
                self._folders.add(folder)
                made = tarfile.TarInfo(folder)
                made.type, made.mode = tarfile.DIRTYPE, 0o755
                self._tar.addfile(made)
        member = tarfile.TarInfo(path)
        member.size, member.mode = size, 0o644
        self._tar.addfile(member, data)


@final
class Chunks(io.RawIOBase):
    """Chunks of bytes as a file, to read once from its beginning."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
