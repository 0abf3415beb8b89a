"""What a step made the last time: the layer by what went into it.

A step's key is a digest of all that its layer depends on: the layers below, the command or the
copied files, the variables. The entries are small files beside the store's content, each true as
long as the store has the layer's blob: a collection takes the layers that no image needs, and with
them the entries.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from typing import final

from unionfs.images.documents import Descriptor
from unionfs.store import Store


@final
@dataclass(frozen=True, slots=True)
class Made:
    """A step's layer, in the store. created: when it was made, RFC 3339."""

    layer: Descriptor
    diff_id: str
    created: str


@final
class Cache:
    """The steps that a store remembers. A lease must keep the layers that it gives."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = f"{store.root}/build"

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}.json"

    def get(self, key: str) -> Made | None:
        """What a step made, where it is known."""
        try:
            with open(self._path(key)) as file:
                found = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        layer = Descriptor(found["media_type"], found["digest"], found["size"])
        if layer.digest not in self._store.blobs:
            os.unlink(self._path(key))
            return None
        return Made(layer, found["diff_id"], found["created"])

    def put(self, key: str, made: Made) -> None:
        """Remember what a step made."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        kept = {
            "media_type": made.layer.media_type,
            "digest": made.layer.digest,
            "size": made.layer.size,
            "diff_id": made.diff_id,
            "created": made.created,
        }
        with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as draft:
            json.dump(kept, draft)
        os.replace(draft.name, self._path(key))


def key_of(*parts: object) -> str:
    """The key of a step that depends on some values of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
