"""The catalogue: one SQLite database that says what is in a store.

Several processes share it by write-ahead logging; each change is one short transaction, and a file
counts as soon as a row names it. The order that makes any crash harmless: content is whole and on
disk before the row that names it is committed, and the row is gone for good before its content is.
Hence every commit is flushed (`synchronous = full`): some milliseconds for a change, none to read.

Rule: https://sqlite.org/wal.html, https://sqlite.org/lang_transaction.html.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

from unionfs.store.errors import StoreError

_PATIENCE: Final = 60.0
"""Seconds to wait for another process' change."""

_FIRST: Final = (
    # What the store was made with.
    "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # Files below blobs/.
    """CREATE TABLE blob (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, added INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # What a blob needs: a manifest its layers, an index its manifests, here or not.
    """CREATE TABLE reference (
        source TEXT NOT NULL REFERENCES blob ON DELETE CASCADE, target TEXT NOT NULL,
        PRIMARY KEY (source, target)
    ) WITHOUT ROWID""",
    # What users call an image.
    """CREATE TABLE name (
        name TEXT PRIMARY KEY, digest TEXT NOT NULL REFERENCES blob, media_type TEXT NOT NULL,
        size INTEGER NOT NULL, updated INTEGER NOT NULL
    ) WITHOUT ROWID""",
    # Directories below snapshots/, but for views, which have none. diff_id, blob: of a layer that
    # was unpacked, and what it was unpacked from. size, inodes: of a committed one.
    """CREATE TABLE snapshot (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
        parent INTEGER REFERENCES snapshot, labels TEXT NOT NULL,
        created INTEGER NOT NULL, updated INTEGER NOT NULL,
        diff_id TEXT, blob TEXT, size INTEGER, inodes INTEGER
    )""",  # and see _SHARED
    "CREATE INDEX snapshot_parent ON snapshot (parent)",
    # Which images an unpacked chain of layers serves.
    """CREATE TABLE unpacked (
        source TEXT NOT NULL REFERENCES blob ON DELETE CASCADE, chain TEXT NOT NULL,
        PRIMARY KEY (source, chain)
    ) WITHOUT ROWID""",
    # What no collection may take until then.
    """CREATE TABLE lease (
        id TEXT PRIMARY KEY, created INTEGER NOT NULL, expires INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE leased (
        lease TEXT NOT NULL REFERENCES lease ON DELETE CASCADE, what TEXT NOT NULL,
        PRIMARY KEY (lease, what)
    ) WITHOUT ROWID""",
)
_SHARED: Final = (
    # Below snapshots/, of a layer that is unpacked there for another row; NULL: its own, by its id.
    "ALTER TABLE snapshot ADD COLUMN directory INTEGER",
    "CREATE INDEX snapshot_directory ON snapshot (directory)",
    "CREATE INDEX snapshot_diff_id ON snapshot (diff_id)",
    # The directories, as JSON, that an unpacked layer has no entries for; NULL: nobody noted them.
    "ALTER TABLE snapshot ADD COLUMN implicit TEXT",
)
_VERSIONS: Final = (_FIRST, _SHARED)
"""What each version added to the one before."""

DIRECTORY: Final = "coalesce(snapshot.directory, snapshot.id)"
"""The number of a snapshot's directory."""


@final
class Catalogue:
    """The database at path, made where it is missing. Usable from any thread.

    held: the leases that this process keeps by this catalogue.

    Raises StoreError: EPROTONOSUPPORT where a later release made it, EIO where it is damaged.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.held: set[str] = set()
        with self._explained():
            self._db = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on"):
                self._db.execute(f"PRAGMA {pragma}")
        try:
            with self.change() as db:
                self._make(db)
        except BaseException:
            self.close()
            raise

    def _make(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        newest = len(_VERSIONS)
        if version > newest:
            message = f"the store has version {version}, this unionmount knows {newest}; update"
            raise StoreError(errno.EPROTONOSUPPORT, message, self._path)
        for statements in _VERSIONS[version:]:
            for statement in statements:
                db.execute(statement)
        if version < newest:
            db.execute(f"PRAGMA user_version = {newest}")

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may write; nobody else's runs meanwhile. Undone if the block fails."""
        with self._transaction("IMMEDIATE") as db:
            yield db

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the catalogue, whatever others change."""
        with self._transaction("DEFERRED") as db:
            yield db

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._db.execute(f"BEGIN {kind}")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, sqlite3.InterfaceError) as error:
            message = f"catalogue: {error}; check the disk and the permissions"
            raise StoreError(errno.EIO, message, self._path) from error

    def keep(self, db: sqlite3.Connection, *things: str) -> None:
        """Record things, digests or names of snapshots, in the leases that are held."""
        db.executemany(
            "INSERT OR IGNORE INTO leased SELECT id, ? FROM lease WHERE id = ?",
            [(thing, lease) for thing in things for lease in self.held],
        )

    def close(self) -> None:
        """Let go of the database; again does no harm."""
        with self._lock:
            self._db.close()


def now() -> int:
    """The time as the catalogue has it: nanoseconds since 1970."""
    return time.time_ns()
