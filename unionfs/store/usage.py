"""What takes the space of a store: its layers, images and containers, alone and together.

Cost: a walk of the catalogue; and of the files that active snapshots have changed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, final

from unionfs.store.catalogue import DIRECTORY, Catalogue
from unionfs.store.snapshots import Snapshots


@final
@dataclass(frozen=True, slots=True)
class Share:
    """What one of a store's things takes, in bytes on disk.

    kind: a layer that is unpacked or was committed, an image, or a container: an active snapshot.
    own: what would be free without it. shared: what others need too. users: how many things need a
    layer; 1 of an image or container.
    """

    kind: Literal["layer", "image", "container"]
    name: str
    own: int
    shared: int
    users: int = 1


@final
@dataclass(frozen=True, slots=True)
class StoreUsage:
    """What all takes, by name. blobs: bytes of content as it was sent. total: of everything."""

    layers: tuple[Share, ...]
    images: tuple[Share, ...]
    containers: tuple[Share, ...]
    blobs: int
    total: int


_BLOBS_OF: Final = """
    WITH RECURSIVE needed (digest) AS (
        SELECT ? UNION SELECT target FROM needed JOIN reference ON source = digest
    ) SELECT blob.digest, blob.size FROM needed JOIN blob USING (digest)
"""


def usage(catalogue: Catalogue, snapshots: Snapshots) -> StoreUsage:
    """What the things of a store take. A blob counts to its image, as the layer from it does."""
    with catalogue.read() as db:
        rows = db.execute(
            f"SELECT id, name, kind, parent, size, {DIRECTORY} FROM snapshot ORDER BY name"
        ).fetchall()
        names = db.execute("SELECT name, digest FROM name ORDER BY name").fetchall()
        blobs = {name: dict(db.execute(_BLOBS_OF, (digest,))) for name, digest in names}
        unpacked = db.execute("SELECT source, chain FROM unpacked").fetchall()
        (sent,) = db.execute("SELECT coalesce(sum(size), 0) FROM blob").fetchone()
    parents = {number: parent for number, _, _, parent, *_ in rows}
    numbers = {name: number for number, name, *_ in rows}
    directories = {number: directory for number, *_, directory in rows}
    committed = [
        (name, size, place) for _, name, kind, _, size, place in rows if kind == "committed"
    ]
    sizes = {directory: size for _, size, directory in committed}
    holders = Counter(directory for *_, directory in committed)

    def line(number: int | None) -> set[int]:
        """The directories of a snapshot and those below it."""
        found = set()
        while number is not None:
            found.add(directories[number])
            number = parents[number]
        return found

    of_images: dict[str, set[int]] = {
        name: {
            layer
            for source, chain in unpacked
            if source in blobs[name] and chain in numbers
            for layer in line(numbers[chain])
        }
        for name, _ in names
    }
    of_containers = {
        name: line(parents[number]) for number, name, kind, *_ in rows if kind == "active"
    }
    users = Counter(
        layer for needs in (*of_images.values(), *of_containers.values()) for layer in needs
    )
    blob_users = Counter(digest for needs in blobs.values() for digest in needs)
    images = tuple(
        Share(
            "image",
            name,
            sum(sizes[layer] for layer in layers if users[layer] == 1)
            + sum(size for digest, size in blobs[name].items() if blob_users[digest] == 1),
            sum(sizes[layer] for layer in layers if users[layer] > 1)
            + sum(size for digest, size in blobs[name].items() if blob_users[digest] > 1),
        )
        for name, layers in of_images.items()
    )
    containers = tuple(
        Share("container", name, snapshots.usage(name).size, sum(sizes[layer] for layer in layers))
        for name, layers in sorted(of_containers.items())
    )
    layers = tuple(
        Share("layer", name, 0 if shared else size, size if shared else 0, users[directory])
        for name, size, directory in committed
        for shared in (max(users[directory], holders[directory]) > 1,)
    )
    own = sum(share.own for share in containers)
    return StoreUsage(layers, images, containers, sent, sum(sizes.values()) + sent + own)
