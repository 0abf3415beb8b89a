"""Path to Entry: which layers hold a name, which one answers, and where the search stops.

The walk goes from the root component by component, as the kernel's ovl_lookup does
(fs/overlayfs/namei.c): the topmost layer that holds the name answers; directories of further
layers merge into it until one is opaque, a non-directory or a whiteout. Cost: one lstat a
layer that can hold the name, and two getxattr a directory that is not in the last layer.
"""

import errno
import os
import stat
from dataclasses import dataclass
from typing import final

from unionfs import markers
from unionfs.stack import Layer, LayerStack


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where one layer holds an entry: index in stack.layers, path relative to its root."""

    layer: int
    path: str


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """The answer of one lookup.

    places: the layers that hold it, top first; more than one only for merged directories.
    status: lstat of the topmost one.
    """

    places: tuple[Place, ...]
    status: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _hidden_by_aufs(layer: Layer, parent: str, name: str) -> bool:
    return os.path.lexists(layer.join(_join(parent, markers.AUFS_PREFIX + name)))


def root(stack: LayerStack) -> Entry:
    """The merged root: every layer's own root."""
    places = tuple(Place(index, "") for index in range(len(stack.layers)))
    return Entry(places, os.stat(stack.layers[0].path))


def lookup(stack: LayerStack, parent: Entry, name: str) -> Entry | None:
    """The entry called name in the directory parent, or None where the union has none."""
    if name.startswith(markers.AUFS_PREFIX):
        return None
    pending = [Place(place.layer, _join(place.path, name)) for place in parent.places]
    found: list[Place] = []
    status: os.stat_result | None = None
    while pending:
        place = pending.pop(0)
        layer = stack.layers[place.layer]
        path = layer.join(place.path)
        here = _lstat(path)
        directory, _, base = place.path.rpartition("/")
        if here is None:
            if _hidden_by_aufs(layer, directory, base):
                break
            continue
        if markers.is_whiteout(path, here):
            break
        if not stat.S_ISDIR(here.st_mode):
            if not found:
                found, status = [place], here
            break
        found.append(place)
        status = status or here
        if markers.is_opaque(path) or _hidden_by_aufs(layer, directory, base):
            break
        target = markers.redirect(path)
        if target is not None:
            pending = _redirected(stack, place, pending, target)
    return Entry(tuple(found), status) if status else None


def _redirected(
    stack: LayerStack, place: Place, pending: list[Place], target: str
) -> list[Place]:
    """Where the search goes on below place: a sibling's name, or a path from the root."""
    if not target.startswith("/"):
        return [Place(p.layer, _join(p.path.rpartition("/")[0], target)) for p in pending]
    below = range(place.layer + 1, len(stack.layers))
    entry: Entry | None = Entry(
        tuple(Place(index, "") for index in below), os.stat(stack.layers[-1].path)
    )
    for part in target.strip("/").split("/"):
        entry = lookup(stack, entry, part) if entry and entry.places else None
    return list(entry.places) if entry else []


def resolve(stack: LayerStack, path: str) -> Entry:
    """The entry at path, which is relative to the union's root; symlinks are not followed.

    Raises FileNotFoundError, or NotADirectoryError where a component is no directory.
    """
    entry = root(stack)
    for part in (part for part in path.split("/") if part not in ("", ".")):
        if not entry.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        found = lookup(stack, entry, part)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        entry = found
    return entry


def children(stack: LayerStack, directory: Entry) -> dict[str, Entry]:
    """The merged listing of a directory: name to entry, marks left out."""
    names: dict[str, None] = {}
    for place in directory.places:
        names.update(dict.fromkeys(os.listdir(stack.layers[place.layer].join(place.path))))
    entries = ((name, lookup(stack, directory, name)) for name in names)
    return {name: entry for name, entry in entries if entry}
