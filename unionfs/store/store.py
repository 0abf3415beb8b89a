"""A store: content by digest, layers unpacked once, snapshots of them, in one directory.

Rule: nothing is true of a store but what its catalogue says, and that says only what is whole on
disk; see `catalogue` for the order that keeps it so through any crash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import final

from unionfs import markers
from unionfs.options import MountOptions
from unionfs.store.blobs import Blobs
from unionfs.store.catalogue import Catalogue
from unionfs.store.collect import Collected, collect, sweep
from unionfs.store.errors import FailedPrecondition
from unionfs.store.folders import Folders
from unionfs.store.layers import Layers
from unionfs.store.leases import Leases
from unionfs.store.names import Names
from unionfs.store.snapshots import Snapshots
from unionfs.store.usage import StoreUsage, usage
from unionfs.store.verify import Fault, verify


@final
class Store:
    """The store in the directory root, which is made where it is missing; a context manager.

    blobs: content by digest. names: what images are called. layers: unpacked ones. snapshots: of
    layers, read-only or to write. leases: against collection. options: to mount its layers with.

    Any number of processes and threads may use it at once.

    Raises FailedPrecondition where it was made with privileges that this process lacks, StoreError
    where the catalogue cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.realpath(root)
        self._folders = Folders(self.root)
        self._catalogue = Catalogue(f"{self.root}/catalogue.db")
        try:
            prefix = self._prefix()
        except BaseException:
            self.close()
            raise
        self.options = MountOptions(userxattr=prefix == markers.USER)
        self.blobs = Blobs(self._folders, self._catalogue)
        self.names = Names(self._catalogue)
        self.leases = Leases(self._folders, self._catalogue)
        self.snapshots = Snapshots(self._folders, self._catalogue, self.options)
        self.layers = Layers(self._folders, self._catalogue, self.blobs, self.snapshots, prefix)

    def _prefix(self) -> str:
        """Of the marks in its layers: what its first user could write."""
        able = markers.TRUSTED if markers.trusted_permitted() else markers.USER
        with self._catalogue.change() as db:
            db.execute("INSERT OR IGNORE INTO setting VALUES ('xattr_prefix', ?)", (able,))
            (prefix,) = db.execute(
                "SELECT value FROM setting WHERE name = 'xattr_prefix'"
            ).fetchone()
        if prefix == markers.TRUSTED != able:
            message = "root made this store with trusted. marks; be root, or use another store"
            raise FailedPrecondition(message, self.root)
        return str(prefix)

    def gc(self) -> Collected:
        """Remove what nothing needs: blobs and unpacked layers that no name, snapshot, label
        `containerd.io/gc.ref.content` or lease leads to, and what crashes left behind.

        Snapshots go by `snapshots.remove` alone.
        """
        self.leases.end_of_the_dead()
        collected = collect(self._catalogue)
        self.cleanup()
        return collected

    def cleanup(self) -> None:
        """Remove the files that the catalogue does not name, which crashes leave behind."""
        sweep(self._folders, self._catalogue)

    def verify(self, *, repair: bool = False) -> Iterator[Fault]:
        """What on disk is not what the catalogue says, as it is found.

        repair: forget damaged blobs, so that they can be pulled anew, and exchange damaged layers
            for what their blobs hold; no container that uses such a layer may run meanwhile.
        """
        return verify(self._folders, self._catalogue, self.layers, repair=repair)

    def usage(self) -> StoreUsage:
        """What takes the space: layers, images and containers, alone and together."""
        return usage(self._catalogue, self.snapshots)

    def close(self) -> None:
        """Let go of the store; again does no harm."""
        self._catalogue.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
