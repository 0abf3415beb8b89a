"""Leases: what keeps a collection from taking what an import has made and not yet named.

While a process holds a lease, everything that it adds to a store, or finds there and so relies on,
is kept. A lease ends with its block, with its process at the latest: whoever holds one has a lock
on a file of its name, which the kernel drops for the dead.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

from unionfs.store.catalogue import Catalogue, now
from unionfs.store.errors import NotFound
from unionfs.store.folders import Folders, claimed

DAY: Final = 24 * 60 * 60.0
_FOREVER: Final = 100 * 365 * DAY
HELD: Final = "lease-"
"""How the files in ingest begin that are locked by who holds a lease."""


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """A lease. created, expires: nanoseconds since 1970. things: how many it keeps."""

    id: str
    created: int
    expires: int
    things: int


@final
class Leases:
    """The leases of a store. Its methods may be called from any thread."""

    def __init__(self, folders: Folders, catalogue: Catalogue) -> None:
        self._folders = folders
        self._catalogue = catalogue

    @contextmanager
    def hold(self) -> Iterator[str]:
        """Keep what this store object adds and finds until the block ends; gives the lease's ID."""
        lease = uuid.uuid4().hex
        path = self._folders.ingest(HELD + lease)
        with claimed(path, os.O_RDWR | os.O_CREAT):
            self._make(lease, _FOREVER)
            self._catalogue.held.add(lease)
            try:
                yield lease
            finally:
                self._catalogue.held.discard(lease)
                with self._catalogue.change() as db:
                    db.execute("DELETE FROM lease WHERE id = ?", (lease,))
                os.unlink(path)

    def _make(self, lease: str, seconds: float) -> None:
        created = now()
        with self._catalogue.change() as db:
            row = (lease, created, created + int(seconds * 1e9))
            db.execute("INSERT INTO lease VALUES (?, ?, ?)", row)

    def end_of_the_dead(self) -> None:
        """End the leases that killed processes held."""
        for name in os.listdir(self._folders.ingest("")):
            if not name.startswith(HELD):
                continue
            path = self._folders.ingest(name)
            with claimed(path, os.O_RDWR, wait=False) as held:
                if held is not None:
                    with self._catalogue.change() as db:
                        db.execute("DELETE FROM lease WHERE id = ?", (name.removeprefix(HELD),))
                    os.unlink(path)

    def create(self, seconds: float = DAY) -> str:
        """A lease that outlives this process, until it is removed or expires; its ID."""
        lease = uuid.uuid4().hex
        self._make(lease, seconds)
        return lease

    def add(self, lease: str, *things: str) -> None:
        """Have a lease keep blobs by digest, layers by chain ID. Raises NotFound."""
        with self._catalogue.change() as db:
            if not db.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone():
                raise NotFound("no such lease; it may have expired", lease)
            db.executemany(
                "INSERT OR IGNORE INTO leased VALUES (?, ?)", [(lease, thing) for thing in things]
            )

    def remove(self, lease: str) -> None:
        """End a lease. Raises NotFound."""
        with self._catalogue.change() as db:
            if not db.execute("DELETE FROM lease WHERE id = ?", (lease,)).rowcount:
                raise NotFound("no such lease; it may have expired", lease)

    def list(self) -> list[Lease]:
        """Those that have not ended."""
        with self._catalogue.read() as db:
            rows = db.execute(
                "SELECT id, created, expires, count(what) FROM lease"
                " LEFT JOIN leased ON lease = id WHERE expires >= ? GROUP BY id ORDER BY created",
                (now(),),
            ).fetchall()
        return [Lease(*row) for row in rows]
