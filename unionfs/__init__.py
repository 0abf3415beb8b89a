"""Union of directory layers, in the on-disk format of Linux overlayfs."""

from unionfs.explain import Explanation, explain
from unionfs.mounting import ActiveMount, Mount, list_mounts, mount, unmount
from unionfs.options import MountOptions, OptionError
from unionfs.overlayfs import MountError
from unionfs.place import Layer, Place
from unionfs.resolve import Node
from unionfs.stack import LayerStack, StackError
from unionfs.system import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union import DirEntry, UnionFS

__all__ = [
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "ActiveMount",
    "DirEntry",
    "Explanation",
    "Layer",
    "LayerStack",
    "Mount",
    "MountError",
    "MountOptions",
    "Node",
    "OptionError",
    "Place",
    "StackError",
    "UnionFS",
    "explain",
    "list_mounts",
    "mount",
    "unmount",
]
