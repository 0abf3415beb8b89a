"""Bringing an image into a store, from wherever it is.

Blobs come in parallel, and those that the store has do not come at all. Then the documents are
stored, each after what it needs. The layers are unpacked, and so checked against their diff IDs.
The name comes last. A lease keeps all of it from collection meanwhile. So whatever ends this early,
no name stands for half an image, and what came of a blob is there for the next try.

Cost: the transfer of what is missing; unpacking, unless it is put off until the image is used.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Literal, final

from unionfs.images.documents import Descriptor, Index
from unionfs.images.library import Image, Stored, tag, unpack
from unionfs.images.platform import Platform, best
from unionfs.images.reference import Reference
from unionfs.images.source import Choice, Source, blobs_of, read_config, walk
from unionfs.store import Corrupt, Store

PARALLEL: Final = 4
"""Blobs that are moved at once."""

How = Literal["here", "fetched", "there", "mounted", "sent"]
"""Why a blob was not moved, or how it was."""


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """A blob. bytes: how many of it were moved; fewer than it has where others came before."""

    digest: str
    size: int
    how: How
    bytes: int


Watch = Callable[[Descriptor, int, How | None], object]
"""Told of each further bytes of a blob that are where they shall be; at its end also how."""


def unwatched(_: Descriptor, __: int, ___: How | None) -> None:
    """Watch nothing."""


@final
@dataclass(frozen=True, slots=True)
class Brought:
    """What came. names: what stands for the image now. bytes of `moved`: what had to be fetched."""

    names: tuple[Reference, ...]
    target: Descriptor
    moved: tuple[Moved, ...]


def bring(
    store: Store,
    source: Source,
    target: Descriptor,
    names: Iterable[Reference],
    choose: Choice,
    *,
    unpacked: bool = True,
    watch: Watch = unwatched,
    abort: Callable[[], object] = lambda: None,
) -> Brought:
    """Bring an image into the store, and have names stand for it.

    choose: of an index. unpacked: whether to unpack the layers of the image for this machine, if
    there is one. abort: ends reading from the source in other threads.

    Raises OSError: of the source, Corrupt for what is not what its digest says, LayerError for a
    layer that cannot be unpacked. No name changes then.
    """
    names = tuple(names)
    with store.leases.hold():
        graph = walk(source, target, choose)

        def fetch(blob: Descriptor, stop: threading.Event) -> Moved:
            return _fetch(store, source, blob, watch, stop)

        moved = in_parallel(fetch, graph.blobs, abort)
        stored = Stored(store)
        images = [Image(at, each, read_config(stored, each)) for at, each in graph.manifests]
        for digest, (descriptor, document) in reversed(graph.documents.items()):
            store.blobs.add(document.raw, digest=digest, size=descriptor.size)
            needed = document.manifests if isinstance(document, Index) else blobs_of(document)
            store.blobs.refer(digest, [each.digest for each in needed])
        position = best(Platform.of_this_machine(), [image.platform for image in images])
        if unpacked and position is not None:
            unpack(store, images[position])
        for name in names:
            tag(store, target, name)
    return Brought(names, target, tuple(moved))


def _fetch(
    store: Store, source: Source, blob: Descriptor, watch: Watch, stop: threading.Event
) -> Moved:
    """Have one blob in the store."""
    begun = 0
    try:
        with store.blobs.writer(blob.digest, blob.size, stop=stop) as writer:
            begun = writer.offset
            watch(blob, begun, None)
            if writer.complete:
                watch(blob, 0, "here")
                return Moved(blob.digest, blob.size, "here", 0)
            for chunk in source.chunks(blob, begun):
                if stop.is_set():
                    raise InterruptedError(errno.EINTR, "stopped")
                writer.write(chunk)
                watch(blob, len(chunk), None)
    except Corrupt:
        if not begun:
            raise
        # what an earlier try left was wrong, and is gone by now
        watch(blob, -blob.size, None)
        return _fetch(store, source, blob, watch, stop)
    watch(blob, 0, "fetched")
    return Moved(blob.digest, blob.size, "fetched", blob.size - begun)


def in_parallel(
    action: Callable[[Descriptor, threading.Event], Moved],
    blobs: Iterable[Descriptor],
    abort: Callable[[], object],
) -> list[Moved]:
    """Do something with each blob, some at once.

    When one fails, or the user has had enough, the event is set and abort called; it is raised when
    all have ended.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(PARALLEL) as threads:
        try:
            jobs = [threads.submit(action, blob, stop) for blob in blobs]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
            return [job.result() for job in jobs]
        except BaseException:
            stop.set()
            abort()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
