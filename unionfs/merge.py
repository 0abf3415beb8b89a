"""Merged directories: the names that the layers of a directory hold together.

A name comes from the topmost layer that has it; whiteouts hide it from there on down, AUFS'
whiteouts in the layers below their own. Rules: fs/overlayfs/readdir.c. Cost: a getdents(2) series
in upper, an lstat(2) for a character device there, for those may be whiteouts; the lower layers
are read once (`lower`).
"""

from __future__ import annotations

import stat
from typing import Final, NamedTuple, final

from unionfs import markers, system
from unionfs.inodes import FileId
from unionfs.place import Place, lstat
from unionfs.resolve import Node
from unionfs.stack import LayerStack

_REGULAR: Final = stat.S_IFREG >> 12
_CHARACTER: Final = stat.S_IFCHR >> 12
_DIRECTORY: Final = stat.S_IFDIR >> 12


@final
class Listed(NamedTuple):
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
    if directory.upper and stack.upper:
        _add_upper(stack, directory, Place(stack.upper, directory.path), found, hidden)
    if directory.lower:
        devices = [place.layer.device for place in directory.lower]
        for name, held in stack.memory.names(directory.lower).items():
            if name not in found and name not in hidden:
                file = (devices[held.positions[0]], held.inode)
                found[name] = Listed(name, held.kind << 12, file)
    return found


def _add_upper(
    stack: LayerStack, directory: Node, place: Place, found: dict[str, Listed], hidden: set[str]
) -> None:
    """Add what upper shows and hides."""
    layer = place.layer
    below: list[str] = []
    marked: bool | None = None
    # A name may be a copy of a lower file, whose number it keeps.
    copies = bool(directory.lower) or directory.impure
    for name, kind, inode in system.list_dir(layer.fd, place.path):
        if name.startswith(markers.AUFS_PREFIX):
            below.append(name.removeprefix(markers.AUFS_PREFIX))
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
        unsure = copies or kind == _DIRECTORY
        found[name] = Listed(name, kind << 12, None if unsure else (layer.device, inode))
    hidden.update(below)


def is_empty(stack: LayerStack, directory: Node) -> bool:
    """Whether a directory holds nothing that the union shows."""
    return not listing(stack, directory)
