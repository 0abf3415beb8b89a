"""Layers, and where one of them holds something."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import final

from unionfs import markers, override, system
from unionfs.layerindex import LayerIndex


@final
@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One directory of the stack, held open.

    path: absolute path of the layer's root, symlinks resolved. fd: the root, by O_PATH; where this
        process may, a lower one through a read-only mount, so that nothing can change it.
    index: its position, as the kernel counts: the upper is 0, the lower layers follow from 1.
    device: the st_dev of its files. writable: True for the upper layer alone. known: its index,
        where it has one (`layerindex`). owners: the attribute that says whom its files belong to,
        where one does (`override`).
    """

    path: str
    fd: int
    index: int
    device: int
    writable: bool
    known: LayerIndex | None = None
    owners: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where one layer holds something; the path is relative to the layer's root, "" that root."""

    layer: Layer
    path: str

    def child(self, name: str) -> Place:
        """The place of name in this directory."""
        return Place(self.layer, join(self.path, name))

    def status(self) -> os.stat_result:
        """lstat(2) of it, or what the layer's index knows of that."""
        known = self.layer.known
        return known.status(self.path) if known else lstat(self.layer, self.path)

    def entries(self) -> list[tuple[str, int, int]]:
        """Name, type and inode number of what a directory holds, as `system.list_dir`.

        From an index, whiteouts have the type of their own.
        """
        known = self.layer.known
        return known.entries(self.path) if known else system.list_dir(self.layer.fd, self.path)

    def marks(self, prefix: str) -> markers.Marks:
        """The marks of a directory."""
        known = self.layer.known
        if known:
            return known.marks(self.path)
        return markers.of_directory(prefix, self.layer.fd, self.path)

    def lacks_data(self, prefix: str, status: os.stat_result, *, sure: bool) -> bool:
        """Whether a regular file is a copy of metadata alone; sure: as for `markers`."""
        known = self.layer.known
        if known:
            return known.lacks_data(self.path, sure=sure)
        return markers.lacks_data(prefix, self.layer.fd, self.path, status, sure=sure)


def join(directory: str, name: str) -> str:
    """The path of name in a directory, where "" is the root."""
    return f"{directory}/{name}" if directory else name


def lstat(layer: Layer, path: str) -> os.stat_result:
    """lstat(2) of a path in a layer, with the owner and mode that the layer gives it."""
    status = os.stat(path, dir_fd=layer.fd, follow_symlinks=False) if path else os.stat(layer.fd)
    return override.applied(layer.fd, path, layer.owners, status) if layer.owners else status


def lstat_or_none(layer: Layer, path: str) -> os.stat_result | None:
    """lstat(2) of a path in a layer that may not hold it."""
    try:
        return lstat(layer, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
