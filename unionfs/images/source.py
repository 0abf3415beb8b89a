"""Where images come from, and what one consists of.

A source is anything that gives the blobs that descriptors name: a registry, a layout, an archive, a
store. `walk` reads its documents from an image's descriptor down, and tells what else the image
needs; of an index it takes the images that it is told to choose.

The rule: what a source gives is checked by size and digest before it is believed.

Cost: one document an image, and one an index.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, final

from unionfs.images.documents import (
    Config,
    Descriptor,
    Index,
    Manifest,
    read_image,
)
from unionfs.images.fields import InvalidDocument
from unionfs.images.platform import Platform, best
from unionfs.store import digest

_DEEPEST: Final = 4
"""How many indexes may lead to an image."""


class Source(Protocol):
    """Where blobs come from; several threads may read at once."""

    def document(self, descriptor: Descriptor) -> bytes:
        """The bytes of an index or manifest. Raises FileNotFoundError where it is not there."""

    def chunks(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """The bytes of any other blob, from some place on. Raises FileNotFoundError."""


Choice = Callable[[Source, Index], Iterable[Descriptor]]
"""Which images of an index to take."""


@final
@dataclass(frozen=True, slots=True)
class Graph:
    """An image, or several under one index. documents: by digest, each after what leads to it."""

    root: Descriptor
    documents: dict[str, tuple[Descriptor, Index | Manifest]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether all images of its indexes are in it."""
        indexes = (doc for _, doc in self.documents.values() if isinstance(doc, Index))
        return all(child.digest in self.documents for index in indexes for child in index.manifests)

    @property
    def manifests(self) -> list[tuple[Descriptor, Manifest]]:
        """Those of single images."""
        return [
            (descriptor, document)
            for descriptor, document in self.documents.values()
            if isinstance(document, Manifest)
        ]

    @property
    def blobs(self) -> list[Descriptor]:
        """Configurations and layers, each once."""
        needed = (blob for _, manifest in self.manifests for blob in blobs_of(manifest))
        return list({blob.digest: blob for blob in needed}.values())


def blobs_of(manifest: Manifest) -> tuple[Descriptor, ...]:
    """What an image needs beside its manifest."""
    return (manifest.config, *manifest.layers)


def walk(source: Source, root: Descriptor, choose: Choice) -> Graph:
    """Read the documents of an image. Raises OSError."""
    graph = Graph(root)
    pending = [(root, 0)]
    while pending:
        descriptor, depth = pending.pop(0)
        if descriptor.digest in graph.documents:
            continue
        raw = source.document(descriptor)
        check(raw, descriptor)
        try:
            document = read_image(raw, descriptor.media_type)
        except InvalidDocument as error:
            raise about(error, descriptor) from None
        graph.documents[descriptor.digest] = descriptor, document
        if isinstance(document, Index):
            if depth == _DEEPEST:
                raise about(InvalidDocument("too many indexes in each other"), descriptor)
            pending += [(child, depth + 1) for child in choose(source, document)]
    return graph


def check(raw: bytes, descriptor: Descriptor) -> None:
    """Raise OSError EBADMSG unless these are the bytes that a descriptor names."""
    hashed = digest.hasher(descriptor.digest)
    hashed.update(raw)
    found = digest.of_hash(hashed)
    if found != descriptor.digest or len(raw) != descriptor.size:
        message = f"what came has {len(raw)} bytes and digest {found}; fetch it again"
        raise OSError(errno.EBADMSG, message, descriptor.digest)


def about(error: InvalidDocument, descriptor: Descriptor) -> OSError:
    """The error, with the document that it is about."""
    return OSError(error.errno, f"{error.strerror}; the image is broken", descriptor.digest)


def read_config(source: Source, manifest: Manifest) -> Config:
    """An image's configuration, which must fit its manifest. Raises OSError."""
    raw = b"".join(source.chunks(manifest.config, 0))
    check(raw, manifest.config)
    try:
        config = Config.read(raw)
        if len(config.rootfs.diff_ids) != len(manifest.layers):
            raise InvalidDocument(
                f"{len(config.rootfs.diff_ids)} diff IDs for {len(manifest.layers)} layers"
            )
    except InvalidDocument as error:
        raise about(error, manifest.config) from None
    return config


def only(platform: Platform) -> Choice:
    """Of an index, the image that runs best on a platform."""

    def choose(_: Source, index: Index) -> Iterable[Descriptor]:
        offered = [child.platform or platform for child in index.manifests]
        position = best(platform, offered)
        if position is None:
            has = ", ".join(dict.fromkeys(map(str, offered))) or "none"
            message = f"no image for {platform}; there are: {has}"
            raise FileNotFoundError(errno.ENOENT, message)
        return [index.manifests[position]]

    return choose


def everything(_: Source, index: Index) -> Iterable[Descriptor]:
    """All images of an index."""
    return index.manifests


def what_is_there(source: Source, index: Index) -> Iterable[Descriptor]:
    """The images of an index that the source has; it must have one."""
    there = []
    for child in index.manifests:
        try:
            source.document(child)
        except FileNotFoundError:
            continue
        there.append(child)
    if not there:
        raise FileNotFoundError(errno.ENOENT, "none of the images in the index is there")
    return there
