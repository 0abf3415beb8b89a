"""Archives by `docker save`, in their form before OCI layouts: podman and skopeo write them too.

    manifest.json    for each image its configuration's file, its layers' files and its names
    repositories     the same for Docker before 1.10, not read

There are no manifests with digests in them, so they are made here: the same archive makes the same.
A layer that is not compressed is known by its diff ID; one that is has to be read for its digest.

Rule: Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format". Cost:
nothing beside the reading, but for compressed layers.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, cast, final

from unionfs.images import fields
from unionfs.images import files as of_files
from unionfs.images.documents import OCI_CONFIG, OCI_MANIFEST, Config, Descriptor, Manifest
from unionfs.images.fields import InvalidDocument
from unionfs.images.files import Files, chunks
from unionfs.images.layout import SAVED, Listed
from unionfs.layers.streams import MAGIC_SIZE, MEDIA_TYPES, compression_of


@final
class Saved:
    """An archive by `docker save` as a source. Raises OSError where it is none."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._paths: dict[str, str] = {}
        self._manifests: dict[str, bytes] = {}
        try:
            listed = fields.each_of(fields.mapping)(json.loads(of_files.read(files, SAVED)))
            self._images = [self._image(entry) for entry in listed]
        except (ValueError, InvalidDocument) as error:
            raise OSError(errno.EINVAL, f"{error}; the archive is broken", SAVED) from None

    def images(self) -> list[Listed]:
        """The images, with all their names."""
        return self._images

    def document(self, descriptor: Descriptor) -> bytes:
        """See `Source`."""
        return self._manifests[descriptor.digest]

    def chunks(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """See `Source`."""
        return chunks(self._files.open(self._paths[descriptor.digest]), start)

    def _image(self, entry: fields.Data) -> Listed:
        """Make the manifest of one image."""
        path = fields.text(entry.get("Config"))
        raw = of_files.read(self._files, path)
        config = Descriptor.to(raw, OCI_CONFIG)
        self._paths[config.digest] = path
        paths = fields.each_of(fields.text)(entry.get("Layers"))
        diff_ids = Config.read(raw).rootfs.diff_ids
        if len(paths) != len(diff_ids):
            raise InvalidDocument(f"{len(diff_ids)} diff IDs for {len(paths)} layers")
        layers = map(self._layer, paths, diff_ids)
        manifest = Manifest(config=config, layers=tuple(layers)).raw
        target = Descriptor.to(manifest, OCI_MANIFEST)
        self._manifests[target.digest] = manifest
        return Listed(target, fields.each_of(fields.text)(entry.get("RepoTags") or []))

    def _layer(self, path: str, diff_id: str) -> Descriptor:
        with self._files.open(path) as file:
            compression = compression_of(file.read(MAGIC_SIZE))
            size = file.seek(0, os.SEEK_END)
            digest = diff_id
            if compression != "none":
                file.seek(0)
                digest = f"sha256:{hashlib.file_digest(cast(Any, file), 'sha256').hexdigest()}"
        self._paths[digest] = path
        return Descriptor(MEDIA_TYPES[compression], digest, size)
