"""What users call the images of a store: each name stands for one manifest or index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from unionfs.store.catalogue import Catalogue, now
from unionfs.store.errors import NotFound


@final
@dataclass(frozen=True, slots=True)
class Name:
    """An image's name, and the manifest or index that it stands for.

    media_type, size: of that blob. updated: when it was last set, nanoseconds since 1970.
    """

    name: str
    digest: str
    media_type: str
    size: int
    updated: int


@final
class Names:
    """The names of a store's images. A collection keeps what they stand for, and what that needs.

    Its methods may be called from any thread.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def set(self, name: str, digest: str, media_type: str, size: int) -> Name:
        """Have name stand for a blob, in place of what it stood for.

        Raises NotFound where the store has no such blob.
        """
        row = Name(name, digest, media_type, size, now())
        with self._catalogue.change() as db:
            if not db.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone():
                raise NotFound(f"the store has no blob {digest}; add it first", name)
            db.execute(
                "INSERT OR REPLACE INTO name VALUES (?, ?, ?, ?, ?)",
                (row.name, row.digest, row.media_type, row.size, row.updated),
            )
        return row

    def get(self, name: str) -> Name:
        """What a name stands for. Raises NotFound."""
        with self._catalogue.read() as db:
            row = db.execute("SELECT * FROM name WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound("the store has no such image; pull or import it", name)
        return Name(*row)

    def remove(self, name: str) -> None:
        """Forget a name; the next collection takes what nothing else needs. Raises NotFound."""
        with self._catalogue.change() as db:
            if not db.execute("DELETE FROM name WHERE name = ?", (name,)).rowcount:
                raise NotFound("the store has no such image; see: unionmount image list", name)

    def list(self) -> list[Name]:
        """All names, sorted."""
        return [*self]

    def __iter__(self) -> Iterator[Name]:
        with self._catalogue.read() as db:
            rows = db.execute("SELECT * FROM name ORDER BY name").fetchall()
        return (Name(*row) for row in rows)
