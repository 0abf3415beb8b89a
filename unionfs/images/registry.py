"""A repository on a registry: what it holds, and how blobs come and go.

A download that is cut goes on where it ended, by a range; an upload too, at the place that the
registry tells, where it has not forgotten it. Neither is checked here: a blob proves itself by its
digest to whoever stores it.

Rule: OCI distribution specification 1.1, "Pulling blobs", "Pushing a blob in chunks", "Mounting a
blob from another repository". Cost: one request a document or blob downloaded; two an upload, and
one a chunk where it is large.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import httpx

from unionfs.images.connection import Answer, Connection, Passing, RegistryError
from unionfs.images.documents import INDEXES, MANIFESTS, Descriptor
from unionfs.images.source import check

_CHUNK: Final = 16 << 20
"""Bytes that are uploaded by one request; a cut costs at most so many."""

_READ: Final = 1 << 18
_RANGE: Final = re.compile(r"(?:bytes )?(\d+)-(\d+)")
_ACCEPT: Final = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
_BINARY: Final = "application/octet-stream"

Advance = Callable[[int], object]
"""Told of each further bytes that were moved."""


@final
@dataclass(frozen=True, slots=True)
class Repository:
    """The repository that a connection was made for."""

    connection: Connection

    def manifest(self, which: str) -> tuple[bytes, Descriptor]:
        """The bytes of an index or manifest, and its descriptor. which: a tag or a digest.

        Raises OSError, of a digest that does not fit too.
        """

        def get() -> Answer:
            return self.connection.request("GET", f"manifests/{which}", [200], headers=_ACCEPT)

        answer = self.connection.keep_trying(get)
        raw = answer.content
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        promised = which if ":" in which else answer.headers.get("Docker-Content-Digest")
        descriptor = Descriptor.to(raw, media_type)
        if promised:
            descriptor = Descriptor(media_type, promised, len(raw))
            check(raw, descriptor)
        return raw, descriptor

    def blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """A blob's bytes from some place on, however often the connection is cut.

        Raises OSError when it is not there, or nothing more comes.
        """
        position, failures = start, 0
        while position < descriptor.size:
            try:
                for chunk in self._part(descriptor, position):
                    position += len(chunk)
                    failures = 0
                    yield chunk
                if position < descriptor.size:
                    came = f"only {position} of {descriptor.size} bytes came"
                    raise Passing(came, descriptor.digest)
            except Passing as error:
                failures += 1
                self.connection.wait(failures, error)

    def _part(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """What one request for a blob brings, from some place on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"blobs/{descriptor.digest}"
        with self.connection.streamed("GET", path, [200, 206], headers=headers) as response:
            begins = 0  # a registry may know no ranges
            if response.status_code == 206:
                found = _RANGE.match(response.headers.get("Content-Range", ""))
                begins = int(found[1]) if found else start
            for chunk in response.iter_raw(_READ):
                rest = chunk[max(0, start - begins) :]
                begins += len(chunk)
                if begins > descriptor.size:
                    message = f"the registry sent more than {descriptor.size} bytes"
                    raise RegistryError(errno.EBADMSG, message, descriptor.digest)
                if rest:
                    yield rest

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there already."""

        def head() -> Answer:
            return self.connection.request("HEAD", f"blobs/{digest}", [200, 404])

        return self.connection.keep_trying(head).status == 200

    def send_blob(
        self, descriptor: Descriptor, path: Path, advance: Advance, sources: tuple[str, ...] = ()
    ) -> str | None:
        """Put a blob there; returns the repository that it was mounted from, if it was.

        sources: other repositories on the registry that may have it. advance: is told a negative
        number when an upload starts anew.
        """
        sent = 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            advance(size)

        def attempt() -> str | None:
            count(-sent)
            for source in sources:
                query = f"?mount={descriptor.digest}&from={source}"
                if self._begin(query).status == 201:
                    return source
            self._upload(descriptor, path, count)
            return None

        return self.connection.keep_trying(attempt)

    def _begin(self, query: str = "") -> Answer:
        """Begin an upload, or mount."""
        headers = {"Content-Length": "0"}
        return self.connection.request(
            "POST", f"blobs/uploads/{query}", [201, 202], headers=headers
        )

    def _upload(self, descriptor: Descriptor, path: Path, advance: Advance) -> None:
        begun = self._begin()
        place = self._place(begun)
        smallest = begun.headers.get("OCI-Chunk-Min-Length", "")
        chunk = max(_CHUNK, int(smallest) if smallest.isdigit() else 0)
        position = 0
        if descriptor.size > chunk:
            place, position = self._send_chunks(descriptor.size, path, place, chunk, advance)
        end = place.copy_merge_params({"digest": descriptor.digest})
        part = _Part(path, position, descriptor.size, advance)
        self.connection.request("PUT", end, [201], headers=part.headers, content=part)

    def _send_chunks(
        self, size: int, path: Path, place: httpx.URL, chunk: int, advance: Advance
    ) -> tuple[httpx.URL, int]:
        """Send all but the last chunk; returns where that has to go, and where it begins."""
        position, failures = 0, 0
        while size - position > chunk:
            part = _Part(path, position, position + chunk, advance)
            headers = part.headers | {"Content-Range": f"{part.start}-{part.end - 1}"}
            try:
                answer = self.connection.request(
                    "PATCH", place, [202], headers=headers, content=part
                )
                position, failures = part.end, 0
            except Passing as error:
                failures += 1
                self.connection.wait(failures, error)
                answer = self.connection.request("GET", place, [204, 404])
                if answer.status == 404:  # Docker's registry forgets an upload that was cut
                    raise
                arrived = _arrived(answer)
                advance(arrived - part.position)
                position = arrived
            place = self._place(answer) if "Location" in answer.headers else place
        return place, position

    def _place(self, answer: Answer) -> httpx.URL:
        """Where an upload goes on."""
        location = answer.headers.get("Location")
        if not location:
            message = "the registry does not say where to upload"
            raise RegistryError(errno.EIO, message, self.connection.name)
        return self.connection.url(location)

    def send_manifest(self, raw: bytes, descriptor: Descriptor, which: str) -> None:
        """Put an index or manifest there, whose blobs are there. which: a tag, or its digest."""
        headers = {"Content-Type": descriptor.media_type}

        def put() -> Answer:
            path = f"manifests/{which}"
            return self.connection.request("PUT", path, [201], headers=headers, content=raw)

        answer = self.connection.keep_trying(put)
        stored = answer.headers.get("Docker-Content-Digest", descriptor.digest)
        if stored != descriptor.digest:
            message = f"the registry stored {stored} in place of {descriptor.digest}"
            raise RegistryError(errno.EBADMSG, message, self.connection.name)


def _arrived(answer: Answer) -> int:
    """How many bytes of an upload have arrived, as its status tells."""
    found = _RANGE.match(answer.headers.get("Range", ""))
    return int(found[2]) + 1 if found and found[2] != "0" else 0


@final
class _Part:
    """Bytes of a file as a request's body, which may be sent again. position: what was read."""

    def __init__(self, path: Path, start: int, end: int, advance: Advance) -> None:
        self.start = self.position = start
        self.end = end
        self._path = path
        self._advance = advance

    @property
    def headers(self) -> dict[str, str]:
        """How a request announces them."""
        return {"Content-Length": str(self.end - self.start), "Content-Type": _BINARY}

    def __iter__(self) -> Iterator[bytes]:
        self._advance(self.start - self.position)
        self.position = self.start
        with self._path.open("rb") as file:
            file.seek(self.start)
            while self.position < self.end:
                chunk = file.read(min(_READ, self.end - self.position))
                if not chunk:
                    raise OSError(errno.EIO, "shorter than it should be", str(self._path))
                self.position += len(chunk)
                self._advance(len(chunk))
                yield chunk
