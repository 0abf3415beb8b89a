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

from unionfs import markers, system
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
        marked: bool | None = None
        for name, kind, inode in system.list_dir(fd, path):
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
            if above:
                continue
            if kind == _REGULAR and marked is None:
                marked = markers.has_xwhiteouts(prefix, fd, path)
            if kind == _CHARACTER or (kind == _REGULAR and marked):
                child = place.child(name)
                if markers.is_whiteout(prefix, fd, child.path, child.status()):
                    continue
            found[name] = Held(kind, inode, (position,))
        ended.update(hidden)
    return found


_ONCE: Final[Names] = {}
"""Stands for the table of a directory that was asked for one name so far."""


@final
class Memory:
    """The tables of one stack's directories, those used last.

    A directory is told by any object that stands for it as long as it is in use.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tables: OrderedDict[object, Names | None] = OrderedDict()
        self._names = 0

    def names(self, directory: object, places: Sequence[Place]) -> Names:
        """The table of a directory, whose lower layers are at places.

        Raises what `system.list_dir` raises.
        """
        table = self._tables.get(directory)
        if table is None or table is _ONCE:
            table = names(self._prefix, places)
            self._keep(directory, table)
        else:
            self._tables.move_to_end(directory)
        return table

    def for_lookup(self, directory: object, places: Sequence[Place]) -> Names | None:
        """The table, or None where it is better to ask the layers for the one name.

        That is so at first, and where one layer answers as fast, or a layer may not be listed.
        """
        table = self._tables.get(directory, _ONCE)
        if table is not _ONCE:
            return table
        if len(places) == 1:
            return None
        if directory not in self._tables:
            self._keep(directory, _ONCE)
            return None
        try:
            return self.names(directory, places)
        except PermissionError:
            self._keep(directory, None)
            return None

    def _keep(self, directory: object, table: Names | None) -> None:
        self._forget(directory)
        self._tables[directory] = table
        self._names += _weight(table)
        while self._names > _NAMES_MAX and len(self._tables) > 1:
            self._forget(next(iter(self._tables)))

    def _forget(self, directory: object) -> None:
        if directory in self._tables:
            self._names -= _weight(self._tables.pop(directory))


def _weight(table: Names | None) -> int:
    """What keeping a table costs, in names; the directory itself counts as one."""
    return 1 + len(table or ())
