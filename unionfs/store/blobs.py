"""Content by digest: layers as they were sent, manifests, configurations.

A blob is written beside its place, checked against its digest, flushed, and only then renamed
there. A download that breaks off is kept and goes on where it ended, in any process.

Cost: one hash of the bytes, one fsync(2) and one transaction a blob.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Final, cast, final

from unionfs.store import digest as digests
from unionfs.store.catalogue import Catalogue, now
from unionfs.store.errors import Corrupt, NotFound
from unionfs.store.folders import Folders, claimed, flush_directory

CHUNK: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Blob:
    """Content of a store. size: in bytes."""

    digest: str
    size: int


@final
class Writer:
    """A blob that is being written; a context manager.

    offset: how many bytes are there, to go on from. complete: whether nothing is missing, as where
        the store has the blob already.

    A block that ends well puts the blob into the store. One that fails keeps what was written, if
    the digest is known, for the next writer of that digest; it raises nothing of its own.
    """

    def __init__(
        self,
        folders: Folders,
        catalogue: Catalogue,
        digest: str | None,
        size: int | None,
        *,
        resumable: bool,
        stop: threading.Event | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self.complete = False
        self._folders = folders
        self._catalogue = catalogue
        self._hash = digests.hasher(digest)
        self._held = ExitStack()
        self._there = False
        self._kept = digest is not None and resumable
        name = digest.replace(":", "-") if digest and resumable else uuid.uuid4().hex
        self._path = folders.ingest(name)
        self._fd = -1
        self._stop = stop

    def __enter__(self) -> Writer:
        fd = self._held.enter_context(claimed(self._path, os.O_RDWR | os.O_CREAT, stop=self._stop))
        assert fd is not None, "it waits, and makes what is missing"
        self._fd = fd
        try:
            if self.digest and (found := _find(self._catalogue, self.digest)) is not None:
                os.unlink(self._path)
                self.offset, self.complete, self._there = found, True, True
            else:
                self._resume()
        except BaseException:
            self._held.close()
            raise
        return self

    def _resume(self) -> None:
        """Take up what was written before."""
        if self.size is not None and os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, 0)
        while chunk := os.pread(self._fd, CHUNK, self.offset):
            self._hash.update(chunk)
            self.offset += len(chunk)
        self.complete = self.offset == self.size

    def write(self, chunk: bytes) -> None:
        """Add to what is there."""
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._fd, view, self.offset)
            self._hash.update(view[:written])
            self.offset += written
            view = view[written:]
        self.complete = self.offset == self.size

    def restart(self) -> None:
        """Drop what is there, as where a server cannot go on from `offset`."""
        os.ftruncate(self._fd, 0)
        self._hash = digests.hasher(self.digest)
        self.offset, self.complete = 0, False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises Corrupt where the bytes are not those of the digest, which are then dropped."""
        with self._held, ExitStack() as failed:
            if self._there:
                return
            if not self._kept:
                failed.callback(self._drop)
            if error is None:
                self._finish()
                failed.pop_all()

    def _drop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _finish(self) -> None:
        found = digests.of_hash(self._hash)
        wanted = self.digest or found
        if self.size is not None and self.offset != self.size:
            if self.offset > self.size:
                self._drop()
            message = f"{self.offset} bytes came where {self.size} were promised; try again"
            raise Corrupt(message, wanted)
        if found != wanted:
            self._drop()
            raise Corrupt(f"the bytes have digest {found}; get them anew", wanted)
        self.digest, self.size = wanted, self.offset
        os.fsync(self._fd)
        place = self._folders.blob(wanted)
        with self._catalogue.change() as db:
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            os.rename(self._path, place)
            flush_directory(os.path.dirname(place))
            db.execute("INSERT OR IGNORE INTO blob VALUES (?, ?, ?)", (wanted, self.size, now()))
            self._catalogue.keep(db, wanted)


def _find(catalogue: Catalogue, digest: str) -> int | None:
    """The size of a blob, which the leases held keep from now on; None: it is not there."""
    with catalogue.change() if catalogue.held else catalogue.read() as db:
        row = db.execute("SELECT size FROM blob WHERE digest = ?", (digest,)).fetchone()
        if row is not None and catalogue.held:
            catalogue.keep(db, digest)
    return cast(int, row[0]) if row else None


@final
class Blobs:
    """The content of a store. Its methods may be called from any thread."""

    def __init__(self, folders: Folders, catalogue: Catalogue) -> None:
        self._folders = folders
        self._catalogue = catalogue

    def writer(
        self,
        digest: str | None = None,
        size: int | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> Writer:
        """Write a blob piece by piece.

        digest: what it must have; without it nothing is kept for a later writer. size: in bytes.
        Waits where another process writes that digest; once stop is set, that raises
        InterruptedError.
        """
        return Writer(self._folders, self._catalogue, digest, size, resumable=True, stop=stop)

    def add(
        self,
        content: BinaryIO | bytes | Iterable[bytes],
        *,
        digest: str | None = None,
        size: int | None = None,
    ) -> Blob:
        """Add content: bytes, a binary file to its end, or chunks.

        digest, size: what it must have. Raises Corrupt where it has another, then nothing is added.
        """
        with Writer(self._folders, self._catalogue, digest, size, resumable=False) as writer:
            if not writer.complete:
                for chunk in _chunks(content):
                    writer.write(chunk)
        assert writer.digest is not None, "it has one by now"
        return Blob(writer.digest, writer.offset)

    def open(self, digest: str) -> BinaryIO:
        """The content, to read. Raises NotFound."""
        return open(self.path(digest), "rb")

    def path(self, digest: str) -> str:
        """The file that holds the content. Raises NotFound."""
        if digest not in self:
            raise NotFound("the store has no such blob; pull or import it", digest)
        place = self._folders.blob(digest)
        if not os.path.exists(place):
            message = "its file is gone; run: unionmount store verify --repair, and pull it again"
            raise NotFound(message, digest)
        return place

    def size(self, digest: str) -> int:
        """In bytes. Raises NotFound."""
        size = _find(self._catalogue, digest)
        if size is None:
            raise NotFound("the store has no such blob; pull or import it", digest)
        return size

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and _find(self._catalogue, digest) is not None

    def __iter__(self) -> Iterator[Blob]:
        with self._catalogue.read() as db:
            rows = db.execute("SELECT digest, size FROM blob ORDER BY digest").fetchall()
        return (Blob(*row) for row in rows)

    def refer(self, digest: str, targets: Iterable[str]) -> None:
        """Record what a blob needs, in place of what was recorded; a collection keeps them too.

        targets: digests of blobs, which need not be here yet. Raises NotFound.
        """
        with self._catalogue.change() as db:
            if not db.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone():
                raise NotFound("the store has no such blob; pull or import it", digest)
            db.execute("DELETE FROM reference WHERE source = ?", (digest,))
            db.executemany(
                "INSERT OR IGNORE INTO reference VALUES (?, ?)",
                [(digest, target) for target in targets],
            )


def _chunks(content: BinaryIO | bytes | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif hasattr(content, "read"):
        while chunk := content.read(CHUNK):
            yield chunk
    else:
        yield from content
