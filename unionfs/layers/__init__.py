"""Layers as what they change: the form in which images keep and ship them."""

from unionfs.layers.changes import Change, Kind, changes

__all__ = ["Change", "Kind", "changes"]
