"""Pulling images from registries, and pushing them there.

Either way only what is missing is moved. What is pushed is mounted rather than sent where another
repository of the registry has it, by the names in the store: an image built on one that was pulled
from there sends its own layers alone. Documents follow what they need, the tag is set last.

Cost: pulling asks once a document and blob; pushing asks once more a blob whether it is there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from unionfs.images.bring import Brought, How, Moved, Watch, bring, in_parallel, unwatched
from unionfs.images.connection import Connection, Patience
from unionfs.images.credentials import find_login
from unionfs.images.documents import Descriptor
from unionfs.images.library import find, named
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.images.registry import Repository
from unionfs.images.source import blobs_of, everything, only
from unionfs.store import Store

_MOST_SOURCES: Final = 3
"""Repositories from which a blob is asked to be mounted, before it is sent."""


@final
@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is reached; see `Connection`. plain: without TLS even if it is elsewhere."""

    plain: bool = False
    certificates: Path | None = None
    patience: Patience = field(default_factory=Patience)

    def connect(self, reference: Reference) -> Connection:
        """A connection for a repository, with the login that is kept for it. Raises OSError."""
        return Connection(
            reference,
            find_login(reference),
            plain=self.plain,
            certificates=self.certificates,
            patience=self.patience,
        )


@final
@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed. name: where to. target: the manifest or index that has the tag now."""

    name: Reference
    target: Descriptor
    moved: tuple[Moved, ...]


@final
class _Remote:
    """A repository as a source."""

    def __init__(self, repository: Repository, raw: bytes, target: Descriptor) -> None:
        self._repository = repository
        self._root = raw, target

    def document(self, descriptor: Descriptor) -> bytes:
        raw, target = self._root
        if descriptor.digest == target.digest:
            return raw
        return self._repository.manifest(descriptor.digest)[0]

    def chunks(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        return self._repository.blob(descriptor, start)


def pull(
    store: Store,
    name: Reference,
    *,
    platform: Platform | None = None,
    every: bool = False,
    unpacked: bool = True,
    access: Access | None = None,
    watch: Watch = unwatched,
) -> Brought:
    """Pull an image.

    platform: of an index, the image for it; by default for this machine. every: all of its images.
    unpacked, watch: see `bring`. Raises OSError; then the name stands for what it did before.
    """
    name = name.chosen()
    which = name.digest or name.tag or ""
    choose = everything if every else only(platform or Platform.of_this_machine())
    with (access or Access()).connect(name) as connection:
        repository = Repository(connection)
        raw, target = repository.manifest(which)
        source = _Remote(repository, raw, target)
        return bring(
            *(store, source, target, [name], choose),
            unpacked=unpacked,
            watch=watch,
            abort=connection.abort,
        )


def push(
    store: Store,
    image: str,
    to: Reference | None = None,
    *,
    access: Access | None = None,
    watch: Watch = unwatched,
) -> Pushed:
    """Push an image of the store to where its name says, or elsewhere.

    Of an index of which not all images are in the store, the one for this machine is pushed.

    Raises NotFound, and other OSErrors; then the tag stays what it was.
    """
    found = find(store, image)
    name = (to or found.name).chosen()
    with store.leases.hold(), (access or Access()).connect(name) as connection:
        repository = Repository(connection)
        graph = found.graph(store)
        mounts = _other_repositories(store, name)

        def send(blob: Descriptor, stop: threading.Event) -> Moved:
            return _send(store, repository, blob, mounts.get(blob.digest, ()), watch, stop)

        moved = in_parallel(send, graph.blobs, connection.abort)
        for digest, (descriptor, document) in reversed(graph.documents.items()):
            which = digest if descriptor != graph.root else name.tag or digest
            repository.send_manifest(document.raw, descriptor, which)
    return Pushed(name, graph.root, tuple(moved))


def _send(
    store: Store,
    repository: Repository,
    blob: Descriptor,
    sources: tuple[str, ...],
    watch: Watch,
    stop: threading.Event,
) -> Moved:
    """Have one blob on the registry."""

    def advance(size: int) -> None:
        if stop.is_set():
            raise InterruptedError(errno.EINTR, "stopped")
        watch(blob, size, None)

    how: How = "there"
    if not repository.has_blob(blob.digest):
        path = Path(store.blobs.path(blob.digest))
        mounted = repository.send_blob(blob, path, advance, sources)
        how = "mounted" if mounted else "sent"
    if how != "sent":
        watch(blob, blob.size, None)
    watch(blob, 0, how)
    return Moved(blob.digest, blob.size, how, blob.size if how == "sent" else 0)


def _other_repositories(store: Store, name: Reference) -> dict[str, tuple[str, ...]]:
    """For blobs by digest, other repositories of the same registry that should have them."""
    found: dict[str, dict[str, None]] = {}
    for other in named(store, name.domain):
        if other.name.path != name.path:
            for image in other.images:
                for blob in blobs_of(image.manifest):
                    found.setdefault(blob.digest, {})[other.name.path] = None
    return {digest: tuple(paths)[:_MOST_SOURCES] for digest, paths in found.items()}
