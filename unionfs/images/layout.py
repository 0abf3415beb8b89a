"""OCI image layouts: folders or tars with blobs by digest, and an index of the images.

    oci-layout     the format's version
    index.json     a descriptor an image, with its name as annotation
    blobs/sha256/  what descriptors lead to

A layout that is written also has the `manifest.json` of Docker's archives, so that `docker load`
and older readers take the same file; containerd and Docker write both as well.

Rule: OCI image specification 1.1, image-layout.md. Cost: one read of each blob.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, final

from unionfs.images import files as of_files
from unionfs.images.documents import REF_NAME, Descriptor, Index
from unionfs.images.fields import InvalidDocument
from unionfs.images.files import Chunks, Files, Sink, add_bytes, chunks
from unionfs.images.reference import Reference
from unionfs.images.source import Graph, Source

INDEX: Final = "index.json"
SAVED: Final = "manifest.json"
_VERSION: Final = ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
_FULL_NAME: Final = "io.containerd.image.name"
_READ: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Listed:
    """An image in a layout or archive, and what it is called there: full names, or bare tags."""

    target: Descriptor
    names: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """A layout as a source."""

    files: Files

    def images(self) -> list[Listed]:
        """The images, each once, with all its names. Raises OSError."""
        try:
            index = Index.read(of_files.read(self.files, INDEX))
        except InvalidDocument as error:
            raise OSError(errno.EINVAL, f"{error.strerror}; the layout is broken", INDEX) from None
        found: dict[str, Listed] = {}
        for target in index.manifests:
            bare = replace(target, annotations={})
            listed = found.setdefault(target.digest, Listed(bare, ()))
            found[target.digest] = replace(listed, names=(*listed.names, *_names_of(target)))
        return [*found.values()]

    def document(self, descriptor: Descriptor) -> bytes:
        """See `Source`."""
        return of_files.read(self.files, blob_path(descriptor.digest))

    def chunks(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """See `Source`."""
        return chunks(self.files.open(blob_path(descriptor.digest)), start)


def _names_of(target: Descriptor) -> list[str]:
    """What an image is called in an index.

    A tool that knows the OCI's annotation alone leaves the full name as it was when it tags anew.
    """
    full, ref = (target.annotations.get(key) for key in (_FULL_NAME, REF_NAME))
    if not full or (ref and not is_tag(ref)):
        return [ref] if ref else []
    return [f"{Reference.parse(full).name}:{ref}" if ref else full]


def is_tag(text: str) -> bool:
    """Whether a name in a layout is a bare tag, and no full name."""
    return {":", "/"}.isdisjoint(text)


def blob_path(digest: str) -> str:
    """Where a layout has a blob."""
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def write_layout(sink: Sink, source: Source, graphs: Iterable[tuple[Reference, Graph]]) -> None:
    """Write images of a source, under their names, as a layout that is a Docker archive too.

    Raises OSError.
    """
    named = list(graphs)
    tags = [reference.tag for reference, _ in named]
    entries: list[Descriptor] = []
    loadable: dict[str, dict[str, Any]] = {}
    add_bytes(sink, *_VERSION)
    written: set[str] = set()
    for reference, graph in named:
        notes = {_FULL_NAME: str(reference)}
        if reference.tag:
            notes[REF_NAME] = reference.tag if tags.count(reference.tag) == 1 else str(reference)
        entries.append(replace(graph.root, annotations=notes))
        for blob in graph.blobs:
            if blob.digest not in written:
                written.add(blob.digest)
                data = io.BufferedReader(Chunks(source.chunks(blob, 0)), _READ)
                sink.add(blob_path(blob.digest), data, blob.size)
        for digest, (_, document) in graph.documents.items():
            if digest not in written:
                written.add(digest)
                add_bytes(sink, blob_path(digest), document.raw)
        _, manifest = graph.manifests[0]
        image = loadable.setdefault(
            manifest.config.digest,
            {
                "Config": blob_path(manifest.config.digest),
                "RepoTags": [],
                "Layers": [blob_path(layer.digest) for layer in manifest.layers],
            },
        )
        if reference.tag:
            image["RepoTags"].append(str(reference))
    add_bytes(sink, INDEX, Index(manifests=tuple(entries)).raw)
    add_bytes(sink, SAVED, json.dumps([*loadable.values()]).encode())
