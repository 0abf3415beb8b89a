"""What the lower layers of a directory hold together, read once: a stacked lower layer is constant.

Asked for one name, every layer of a directory costs an lstat(2); asked for all, a getdents(2)
series. So the first lookup in a directory asks for its name alone, and the second reads the
directory: from then on the table tells which layers hold a name, and that none holds it, at no
cost, however many layers there are. Tables are forgotten when they become many, oldest use first.

Cost: about 250 bytes a name that is remembered.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple, final

from unionfs import markers
from unionfs.layerindex import WHITEOUT
from unionfs.place import Place

_REGULAR: Final = stat.S_IFREG >> 12
_CHARACTER: Final = stat.S_IFCHR >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12
_NAMES_MAX: Final = 1 << 17
"""Names remembered in all; one directory with more is remembered until another is read."""


@final
class Held(NamedTuple):
    """Who holds a name in a directory.

    kind: the file type, as in a directory entry. inode: the number in the topmost layer that holds
    it. positions: of that layer in the directory's places; for a directory of all that merge.
    """

    kind: int
    inode: int
    positions: tuple[int, ...]


Names = dict[str, Held]
"""The names that some layers hold together, whiteouts taken away."""


def names(prefix: str, places: Sequence[Place]) -> Names:
    """Read a directory of the lower layers at places, top first.

    Raises what `system.list_dir` raises.
    """
    found: Names = {}
    ended: set[str] = set()
    for position, place in enumerate(places):
        fd, path = place.layer.fd, place.path
        hidden: list[str] = []
        marked: bool | None = False if place.layer.known else None
        for name, kind, inode in place.entries():
            if name.startswith(markers.AUFS_PREFIX):
                hidden.append(name.removeprefix(markers.AUFS_PREFIX))
                continue
            if name in ended:
                continue
            above = found.get(name)
            if kind == _DIRECTORY:
                merged = (*above.positions, position) if above else (position,)
                found[name] = Held(kind, above.inode if above else inode, merged)
                continue
            ended.add(name)
            if above or kind == WHITEOUT:
                continue
            if kind == _REGULAR and marked is None:
                marked = markers.has_xwhiteouts(prefix, fd, path)
            if (kind == _CHARACTER and not place.layer.known) or (kind == _REGULAR and marked):
                child = place.child(name)
                if markers.is_whiteout(prefix, fd, child.path, child.status()):
                    continue
            found[name] = Held(kind, inode, (position,))
        ended.update(hidden)
    return found


_Places = tuple[Place, ...]


@final
class Memory:
    """The tables of one stack's directories, those used last.

    most: how many names they may hold together.
    """

    def __init__(self, prefix: str, most: int = _NAMES_MAX) -> None:
        self._prefix = prefix
        self.most = most
        # By the topmost place. None: asked for one name so far, or may not be listed.
        self._tables: OrderedDict[tuple[int, str], tuple[_Places, Names | None]] = OrderedDict()
        self._weight = 0

    def names(self, places: _Places) -> Names:
        """The table of a directory of the lower layers at places, which are not none.

        Raises what `system.list_dir` raises.
        """
        key = places[0].layer.index, places[0].path
        kept = self._tables.get(key)
        if kept and kept[1] is not None and (kept[0] is places or kept[0] == places):
            self._tables.move_to_end(key)
            return kept[1]
        table = names(self._prefix, places)
        self._keep(key, places, table)
        return table

    def for_lookup(self, places: _Places) -> Names | None:
        """The table, or None where it is better to ask the layers for the one name.

        That is so at first, and where one layer answers as fast, or a layer may not be listed;
        but not where the layers have indexes.
        """
        if not places:
            return {}
        key = places[0].layer.index, places[0].path
        kept = self._tables.get(key)
        if kept and (kept[0] is places or kept[0] == places):
            if kept[1] is not None:
                return kept[1]
            try:
                return self.names(places)
            except PermissionError:
                return None
        if all(place.layer.known for place in places):
            return self.names(places)
        if len(places) > 1:
            self._keep(key, places, None)
        return None

    def _keep(self, key: tuple[int, str], places: _Places, table: Names | None) -> None:
        self._forget(key)
        self._tables[key] = places, table
        self._weight += _weight(places, table)
        while self._weight > self.most and len(self._tables) > 1:
            self._forget(next(iter(self._tables)))

    def _forget(self, key: tuple[int, str]) -> None:
        if key in self._tables:
            self._weight -= _weight(*self._tables.pop(key))


def _weight(places: _Places, table: Names | None) -> int:
    """What keeping a table costs, in names."""
    return 2 + len(places) + len(table or ())
