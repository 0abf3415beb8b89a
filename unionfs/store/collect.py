"""Garbage: which rows nothing leads to, and which files no row names.

Roots are names, snapshots that users made, and leases. Marked and deleted in one transaction, so
nothing that an import has recorded by then can go; files follow, once their rows are gone for good.

Cost: a walk of the catalogue, and of the directories that hold blobs and snapshots.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from unionfs.store.catalogue import DIRECTORY, Catalogue, now
from unionfs.store.folders import BLOBS, INGEST, SNAPSHOTS, Folders, claimed
from unionfs.store.leases import DAY, HELD
from unionfs.store.snapshots import is_needed

GC_REFERENCE: Final = "containerd.io/gc.ref.content"
"""A label of a snapshot that names a blob which it needs, with `.` and anything behind it or not
(containerd, docs/garbage-collection.md)."""

_LIVE_BLOBS: Final = f"""
    CREATE TEMP TABLE live AS
    WITH RECURSIVE live (digest) AS (
        SELECT digest FROM name
        UNION SELECT what FROM leased
        UNION SELECT label.value FROM snapshot, json_each(snapshot.labels) AS label
            WHERE label.key = '{GC_REFERENCE}' OR label.key LIKE '{GC_REFERENCE}.%'
        UNION SELECT target FROM live JOIN reference ON source = digest
    ) SELECT digest FROM live
"""
_DEAD_CHAINS: Final = f"""
    SELECT id, {DIRECTORY}, size FROM snapshot
    WHERE diff_id IS NOT NULL AND name NOT IN (SELECT what FROM leased)
        AND name NOT IN (SELECT chain FROM unpacked JOIN live ON source = digest)
        AND id NOT IN (SELECT parent FROM snapshot WHERE parent IS NOT NULL)
"""


@final
@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection took: how many blobs and layers, and their bytes."""

    blobs: int
    layers: int
    bytes: int


def collect(catalogue: Catalogue) -> Collected:
    """Delete the rows that nothing leads to."""
    with catalogue.change() as db:
        db.execute("DELETE FROM lease WHERE expires < ?", (now(),))
        db.execute("DROP TABLE IF EXISTS temp.live")
        db.execute(_LIVE_BLOBS)
        sizes: dict[int, int] = {}
        # from the top: a chain may go when none stands on it
        while dead := db.execute(_DEAD_CHAINS).fetchall():
            db.executemany("DELETE FROM snapshot WHERE id = ?", [(number,) for number, *_ in dead])
            sizes |= {directory: size for _, directory, size in dead}
        layers = [size for directory, size in sizes.items() if not is_needed(db, directory)]
        blobs = db.execute(
            "SELECT digest, size FROM blob WHERE digest NOT IN (SELECT digest FROM live)"
        ).fetchall()
        db.executemany("DELETE FROM blob WHERE digest = ?", [(digest,) for digest, _ in blobs])
    return Collected(len(blobs), len(layers), sum(layers) + sum(size for _, size in blobs))


def sweep(folders: Folders, catalogue: Catalogue) -> None:
    """Remove the files that no row names, and what was left half-made.

    A download that broke off is kept for a day.
    """
    with catalogue.change() as db:
        # nobody can put anything in place meanwhile
        rows = db.execute(f"SELECT {DIRECTORY} FROM snapshot")
        snapshots = {str(number) for (number,) in rows}
        blobs = {digest for (digest,) in db.execute("SELECT digest FROM blob")}
        for path, name in _entries(f"{folders.root}/{SNAPSHOTS}"):
            if name not in snapshots:
                folders.discard(path)
        for directory, algorithm in _entries(f"{folders.root}/{BLOBS}"):
            for path, name in _entries(directory):
                if f"{algorithm}:{name}" not in blobs:
                    folders.discard(path)
    for path, name in _entries(f"{folders.root}/{INGEST}"):
        if name.startswith(HELD):
            continue  # a collection ends the lease first
        with contextlib.suppress(FileNotFoundError):
            if "-" in name and os.stat(path).st_mtime > time.time() - DAY and os.path.isfile(path):
                continue
        with claimed(path, os.O_RDONLY, wait=False) as fd:
            if fd is not None:
                folders.discard(path)
    folders.empty_trash()


def _entries(directory: str) -> Iterator[tuple[str, str]]:
    """Path and name of each file in a directory."""
    with os.scandir(directory) as entries:
        for entry in [*entries]:
            yield entry.path, entry.name
