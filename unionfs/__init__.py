"""Union of directory layers, in the on-disk format of Linux overlayfs."""

from unionfs.resolve import Entry, Place, children, lookup, resolve
from unionfs.stack import Layer, LayerStack, StackError

__all__ = [
    "Entry",
    "Layer",
    "LayerStack",
    "Place",
    "StackError",
    "children",
    "lookup",
    "resolve",
]
