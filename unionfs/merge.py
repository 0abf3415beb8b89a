"""Merged directories: the names that the layers of a directory hold together.

A name comes from the topmost layer that has it; whiteouts hide it from there on down, AUFS'
whiteouts in the layers below their own. Rules: fs/overlayfs/readdir.c. Cost: a getdents(2) series
a layer, an lstat(2) a character device, for those may be whiteouts.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final, final

from unionfs import markers, system
from unionfs.inodes import FileId
from unionfs.resolve import Node, Place, lstat, places
from unionfs.stack import LayerStack

_REGULAR: Final = stat.S_IFREG >> 12
_CHARACTER: Final = stat.S_IFCHR >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12


@final
@dataclass(frozen=True, slots=True)
class Listed:
    """One name of a directory.

    kind: its file type, of S_IFMT. file: the layer's file whose number it has; None where only a
    lookup tells: what upper holds may have come from below.
    """

    name: str
    kind: int
    file: FileId | None


def listing(stack: LayerStack, directory: Node) -> dict[str, Listed]:
    """The names in a directory, but . and .., in the layers' own order."""
    found: dict[str, Listed] = {}
    hidden: set[str] = set()
    for place in places(stack, directory):
        _add(stack, directory, place, found, hidden)
    return found


def _add(
    stack: LayerStack, directory: Node, place: Place, found: dict[str, Listed], hidden: set[str]
) -> None:
    """Add one layer's names to what the layers above have shown and hidden."""
    layer = place.layer
    device = layer.device
    below: list[str] = []
    marked: bool | None = None
    # In upper a name may be a copy of a lower file, whose number it keeps.
    copies = layer.writable and (bool(directory.lower) or directory.impure)
    for name, kind, inode in system.list_dir(layer.fd, place.path):
        if name.startswith(markers.AUFS_PREFIX):
            below.append(name.removeprefix(markers.AUFS_PREFIX))
            continue
        if name in found or name in hidden:
            continue
        path = place.child(name).path
        if kind == _CHARACTER and lstat(layer, path).st_rdev == 0:
            hidden.add(name)
            continue
        if kind == _REGULAR:
            if marked is None:
                marked = markers.has_xwhiteouts(stack.prefix, layer.fd, place.path)
            if marked and markers.is_whiteout(stack.prefix, layer.fd, path, lstat(layer, path)):
                hidden.add(name)
                continue
        unsure = copies or (kind == _DIRECTORY and layer.writable)
        found[name] = Listed(name, kind << 12, None if unsure else (device, inode))
    hidden.update(below)


def is_empty(stack: LayerStack, directory: Node) -> bool:
    """Whether a directory holds nothing that the union shows."""
    return not listing(stack, directory)
