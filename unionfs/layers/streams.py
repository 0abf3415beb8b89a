"""Blobs as streams: compressed or not, hashed on both sides of the compression in one pass.

A layer has two digests: that of its tar (the diff ID) and that of what is stored and sent. Both are
computed while the bytes pass. A `Reader` decompresses in a thread of its own, ahead of whoever
unpacks; a `Writer` compresses blocks in several threads. What it writes depends on the data, the
format and the level alone, not on the number of threads.

gzip is ISA-L's (`isal`), which on one core reads twice and writes ten times as fast as zlib for
layers a fifteenth larger; zstd is `zstandard`. Read are bzip2 and xz too, in which some archives
come. Rules: OCI image specification, layer.md, "Gzip
Media Types", "Zstandard Media Types".
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, cast, final

import zstandard
from isal import igzip, igzip_threaded, isal_zlib

Compression = Literal["none", "gzip", "zstd"]

MEDIA_TYPES: Final[dict[Compression, str]] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
LEVELS: Final[dict[Compression, range]] = {
    "none": range(1),
    "gzip": range(4),
    "zstd": range(1, 20),
}
DEFAULT_LEVELS: Final[dict[Compression, int]] = {"none": 0, "gzip": 2, "zstd": 3}
THREADS: Final = len(os.sched_getaffinity(0))

_CORRUPT: Final[tuple[type[Exception], ...]] = (
    gzip.BadGzipFile,
    EOFError,
    cast(type[Exception], isal_zlib.error),
    zstandard.ZstdError,
    lzma.LZMAError,
)
_BLOCK: Final = 1 << 20
_AHEAD: Final = 8  # blocks that are decompressed before anybody asks for them
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_BZIP2: Final = b"BZh"
_XZ: Final = b"\xfd7zX"
MAGIC_SIZE: Final = len(_ZSTD)
"""Bytes from the beginning of a blob that tell its compression."""


class LayerError(OSError):
    """A layer that cannot be made or applied; `filename` names the entry, where it is about one."""


def compression_of(begin: bytes) -> Compression:
    """How a blob is compressed that begins so."""
    if begin.startswith(_GZIP):
        return "gzip"
    return "zstd" if begin.startswith(_ZSTD) else "none"


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed and counted as they are read or written.

    begin: what was read of it before, which is read again.
    """

    def __init__(self, raw: BinaryIO, begin: bytes = b"") -> None:
        self._raw = raw
        self._begin = begin
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        if self._begin and size > 0:
            data, self._begin = self._begin[:size], self._begin[size:]
        else:
            data = self._raw.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            view = view[self._raw.write(view) :]
        self._hash.update(data)
        self.size += len(data)
        return len(data)


class _Layer:
    """A layer on its way: its tar, and the blob that holds that, both hashed as they pass.

    diff_id: of the tar. size, digest: of the blob.
    """

    def __init__(self, blob: BinaryIO, begin: bytes = b"") -> None:
        self._blob = _Hashed(blob, begin)
        self._tar = hashlib.sha256()

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._tar.hexdigest()}"

    @property
    def digest(self) -> str:
        return self._blob.digest

    @property
    def size(self) -> int:
        return self._blob.size


@final
class Writer(_Layer):
    """Writes a tar to a file, compressed; a context manager that ends the stream where all is well.

    out: is left open. level: of LEVELS; None is the format's default. threads: that compress.

    Size and digests are known once it is closed.
    Raises LayerError EINVAL for a level that the format does not have, and what out raises.
    """

    def __init__(
        self, out: BinaryIO, compression: Compression, level: int | None, threads: int
    ) -> None:
        levels = LEVELS[compression]
        level = DEFAULT_LEVELS[compression] if level is None else level
        if level not in levels:
            message = f"{compression} has no level {level}; take {levels[0]} to {levels[-1]}"
            raise LayerError(errno.EINVAL, message)
        super().__init__(out)
        self._buffer = bytearray(_BLOCK)
        self._view = memoryview(self._buffer)
        self._filled = 0
        threads = max(1, threads)
        self._stream: Any = self._blob
        if compression == "gzip":
            self._stream = igzip_threaded.open(  # type: ignore[no-untyped-call]
                self._blob, "wb", compresslevel=level, threads=threads, block_size=_BLOCK
            )
        elif compression == "zstd":
            compressor = zstandard.ZstdCompressor(level, threads=threads)
            self._stream = compressor.stream_writer(cast(BinaryIO, self._blob), closefd=False)

    def write(self, data: bytes) -> None:
        """Add some bytes of the tar."""
        view = memoryview(data)
        while view:
            room = self.room()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            self.filled(count)
            view = view[count:]

    def room(self) -> memoryview:
        """Where the next bytes go, for who would else copy them; `filled` says how many it were."""
        return self._view[self._filled :]

    def filled(self, count: int) -> None:
        """Add the first bytes of `room`."""
        self._filled += count
        if self._filled == _BLOCK:
            self._flush()

    def _flush(self) -> None:
        block = bytes(self._view[: self._filled])
        self._filled = 0
        self._stream.write(block)
        self._tar.update(block)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._close(quietly=error is not None)

    def _close(self, *, quietly: bool) -> None:
        """End the stream, and with it the threads that compress."""
        if self._stream is self._blob:
            return
        try:
            self._stream.close()
        except Exception:
            if not quietly:
                raise


@final
class Reader(_Layer):
    """Reads the tar in a blob, whatever its compression; a context manager.

    blob: is left open; it is read by another thread, which ends with the context.
    limit: how many bytes the tar may have.

    Size and digests are known once `finish` has returned.

    Every method raises LayerError: EINVAL where the data is cut short or corrupt, EFBIG beyond the
    limit; and what the blob raises.
    """

    def __init__(self, blob: BinaryIO, limit: int) -> None:
        begin = b""
        while len(begin) < MAGIC_SIZE and (more := blob.read(MAGIC_SIZE - len(begin))):
            begin += more
        super().__init__(blob, begin)
        self._limit = limit
        self._tar_size = 0
        self._stream: Any = self._blob
        compression = compression_of(begin)
        if compression == "gzip":
            self._stream = igzip.IGzipFile(fileobj=self._blob)  # type: ignore[no-untyped-call]
        elif compression == "zstd":
            self._stream = zstandard.ZstdDecompressor().stream_reader(
                cast(BinaryIO, self._blob), read_across_frames=True, closefd=False
            )
        elif begin.startswith(_BZIP2):
            self._stream = bz2.open(cast(BinaryIO, self._blob))  # noqa: SIM115
        elif begin == _XZ:
            self._stream = lzma.open(cast(BinaryIO, self._blob))  # noqa: SIM115
        self._block = memoryview(b"")
        self._ended = False
        self._closed = False
        self._blocks: queue.Queue[bytes | Exception] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._decompress, daemon=True)
        self._thread.start()

    def _decompress(self) -> None:
        try:
            while block := self._stream.read(_BLOCK):
                self._tar_size += len(block)
                if self._tar_size > self._limit:
                    message = f"unpacks to more than the limit of {self._limit} bytes; raise it"
                    raise LayerError(errno.EFBIG, message)
                self._tar.update(block)
                self._blocks.put(block)
                if self._closed:
                    return
            self._blocks.put(b"")
        except _CORRUPT as error:
            message = f"the compressed data is corrupt or cut short ({error}); fetch the blob again"
            self._blocks.put(LayerError(errno.EINVAL, message))
        except Exception as error:
            self._blocks.put(error)

    def _next(self) -> bool:
        """Go on to the next block; False where there is none."""
        if self._ended:
            return False
        block = self._blocks.get()
        if isinstance(block, Exception):
            self._ended = True
            raise block
        self._block = memoryview(block)
        self._ended = not block
        return not self._ended

    def read(self, size: int, *, whole: bool = False) -> memoryview:
        """The next bytes of the tar: as many as asked for, or none at its end.

        whole: whether a tar that ends before them is cut short.
        """
        if len(self._block) >= size:
            data, self._block = self._block[:size], self._block[size:]
            return data
        return memoryview(b"".join(self.pieces(size, whole=whole)))

    def pieces(self, size: int, *, whole: bool = True) -> Iterator[memoryview]:
        """The next bytes of the tar as they come; a tar that ends within them is cut short.

        whole: whether one that ends before them is cut short too.
        """
        left = size
        while left:
            if not self._block and not self._next():
                if left < size or whole:
                    message = "the archive ends in the middle of it; fetch the blob again"
                    raise LayerError(errno.EINVAL, message)
                return
            piece, self._block = self._block[:left], self._block[left:]
            left -= len(piece)
            yield piece

    def rest(self) -> Iterator[memoryview]:
        """What is left of the tar, block by block."""
        while self._block or self._next():
            block, self._block = self._block, memoryview(b"")
            yield block

    def finish(self) -> None:
        """Read what follows the end of the archive, which is part of the digests."""
        while self._next():
            pass

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._blocks.get_nowait()
        self._thread.join()  # it finds room for the block at hand, then sees that it is over
