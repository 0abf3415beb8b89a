"""Layers unpacked: each once, whatever lies below it, as committed snapshots by chain ID.

A layer is unpacked beside its place and checked against its diff ID meanwhile; when it is whole and
on disk, it becomes the snapshot that its chain ID names. Whoever wants the same waits for it. Over
other layers, the same layer is another snapshot with the same directory: what it unpacks to does
not depend on them, but for directories that it has no entries for; where these would differ, it is
unpacked again.

Rules: OCI image specification, config.md, "Layer ChainID". Cost: reading the blob and writing the
files once, and one syncfs(2) a layer.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import final

from unionfs import markers
from unionfs.layers import Applied, Rights, apply_layer, fits
from unionfs.store import digest as digests
from unionfs.store.blobs import Blobs
from unionfs.store.catalogue import DIRECTORY, Catalogue, now
from unionfs.store.errors import NotFound
from unionfs.store.folders import Folders, claimed, flush_directory, remove
from unionfs.store.snapshots import Snapshots, Usage, disk_usage


@final
class Layers:
    """The unpacked layers of a store. Its methods may be called from any thread."""

    def __init__(
        self,
        folders: Folders,
        catalogue: Catalogue,
        blobs: Blobs,
        snapshots: Snapshots,
        prefix: str,
    ) -> None:
        self._folders = folders
        self._catalogue = catalogue
        self._blobs = blobs
        self._snapshots = snapshots
        self._prefix = prefix
        # without privilege, owners that are not mapped cannot be kept
        self._rights = Rights(ignore_chown_errors=prefix == markers.USER)

    def unpack(
        self,
        chain: Sequence[tuple[str, str]],
        *,
        image: str | None = None,
        unpacked: Callable[[str], None] | None = None,
    ) -> str:
        """Have layers unpacked, those that are not yet; the chain ID of all, "" of none.

        chain: digest of the blob and diff ID of each layer, the bottom one first.
        image: the blob, a manifest or configuration, that needs them; a collection keeps them as
            long as that. Otherwise a lease or a snapshot over them must.
        unpacked: is called with the chain ID of each layer, when it is there.

        Raises NotFound for a missing blob, LayerError for one that is not the layer (EBADMSG) or
        not to be unpacked; the layers below it stay.
        """
        parent = ""
        for count, (blob, diff_id) in enumerate(chain, 1):
            name = digests.chain_id(diff for _, diff in chain[:count])
            while name not in self:
                self._unpack(name, blob, diff_id, parent)
            parent = name
            if unpacked is not None:
                unpacked(name)
        if image is not None and chain:
            with self._catalogue.change() as db:
                if not db.execute("SELECT 1 FROM blob WHERE digest = ?", (image,)).fetchone():
                    raise NotFound("the store has no such blob; pull or import it", image)
                db.execute("INSERT OR IGNORE INTO unpacked VALUES (?, ?)", (image, parent))
        return parent

    def _unpack(self, name: str, blob: str, diff_id: str, parent: str) -> None:
        """Unpack one layer; nothing where another process did, or took our place away."""
        below = self.stack(parent) if parent else []
        draft = self._folders.ingest(f"layer-{diff_id.replace(':', '-')}")
        os.makedirs(draft, mode=0o711, exist_ok=True)
        with claimed(draft, os.O_RDONLY | os.O_DIRECTORY) as held:
            if held is None:
                return
            if name in self or self._shared(name, diff_id, parent, below):
                self._folders.discard(draft)
                return
            for left in os.listdir(held):
                self._folders.discard(f"{draft}/{left}")
            try:
                applied = self.apply(blob, diff_id, f"{draft}/fs", below)
                usage = disk_usage(f"{draft}/fs")
                self._snapshots.flush()
                with self._catalogue.change() as db:
                    layer = (diff_id, blob, json.dumps(applied.implicit), usage)
                    place = self._folders.snapshot(self._insert(db, name, parent, *layer))
                    self._folders.discard(place)  # of a row that a crash undid
                    os.rename(draft, place)
                    flush_directory(os.path.dirname(place))
            except BaseException:
                with contextlib.suppress(OSError):
                    remove(self._folders.discard(draft))
                raise

    def _shared(self, name: str, diff_id: str, parent: str, below: Sequence[str]) -> bool:
        """Have a chain share the directory of an equal layer, if there is one."""
        with self._catalogue.change() as db:  # so that nobody removes it meanwhile
            rows = db.execute(
                f"SELECT {DIRECTORY}, blob, implicit, size, inodes FROM snapshot"
                " WHERE diff_id = ? AND implicit IS NOT NULL",
                (diff_id,),
            ).fetchall()
            for directory, blob, implicit, *usage in rows:
                files = self._folders.files(directory)
                if os.path.isdir(files) and fits(
                    files, json.loads(implicit), below, prefix=self._prefix
                ):
                    layer = (diff_id, blob, implicit, Usage(*usage))
                    self._insert(db, name, parent, *layer, directory)
                    return True
        return False

    def _insert(
        self,
        db: sqlite3.Connection,
        name: str,
        parent: str,
        diff_id: str,
        blob: str,
        implicit: str,
        usage: Usage,
        directory: int | None = None,
    ) -> int:
        """A new row, and its number. directory: that of another, where it has none of its own."""
        row = db.execute("SELECT id FROM snapshot WHERE name = ?", (parent,)).fetchone()
        if parent and row is None:
            raise NotFound("the layer below was removed; hold a lease meanwhile", parent)
        moment = now()
        made = db.execute(
            "INSERT INTO snapshot (name, kind, parent, labels, created, updated, diff_id, blob,"
            " size, inodes, implicit, directory)"
            " VALUES (?, 'committed', ?, '{}', ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(name, row[0] if row else None, moment, moment, diff_id, blob),
                *(usage.size, usage.inodes, implicit, directory),
            ),
        )
        assert made.lastrowid is not None, "it was inserted"
        self._catalogue.keep(db, name)
        return made.lastrowid

    def apply(self, blob: str, diff_id: str, directory: str, below: Sequence[str]) -> Applied:
        """Unpack a layer into a new directory, as it is when `unpack` has put it into the store.

        below: the directories of the layers that it lies on, top first. Raises as `unpack` does.
        """
        with self._blobs.open(blob) as archive:
            return apply_layer(
                archive,
                directory,
                prefix=self._prefix,
                below=below,
                digest=blob,
                diff_id=diff_id,
                rights=self._rights,
            )

    def path(self, chain_id: str) -> str:
        """The directory of the top layer of a chain. Raises NotFound."""
        return self.stack(chain_id)[0]

    def stack(self, chain_id: str) -> list[str]:
        """The directories of a chain's layers, top first. Raises NotFound."""
        return [*self._snapshots.directories(chain_id).lower]

    def __contains__(self, chain_id: object) -> bool:
        with self._catalogue.change() if self._catalogue.held else self._catalogue.read() as db:
            row = db.execute(
                "SELECT 1 FROM snapshot WHERE name = ? AND kind = 'committed'", (chain_id,)
            ).fetchone()
            if row and isinstance(chain_id, str):
                self._catalogue.keep(db, chain_id)
        return row is not None
