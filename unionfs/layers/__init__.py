"""Layers as what they change: the form in which images keep and ship them."""

from unionfs.layers.apply import Applied, Limits, apply_layer, apply_onto, fits
from unionfs.layers.changes import Change, Kind, changes
from unionfs.layers.streams import Compression, LayerError
from unionfs.layers.tar import is_archive
from unionfs.layers.unpack import Rights
from unionfs.layers.write import Written, write_layer

__all__ = [
    "Applied",
    "Change",
    "Compression",
    "Kind",
    "LayerError",
    "Limits",
    "Rights",
    "Written",
    "apply_layer",
    "apply_onto",
    "changes",
    "fits",
    "is_archive",
    "write_layer",
]
