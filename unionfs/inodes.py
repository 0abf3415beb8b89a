"""Inode numbers: one for each object of the union, kept through copy-up, rename and remount.

A number comes from the file that an object had at first: its lower one, which the origin mark of
a copied-up file names by handle. Layers of one filesystem give numbers as they are, as kernel
overlayfs does. Where they lie on several, the filesystem's own number is put into the top bits, as
by the kernel's xino; a number that has these in use already is scattered over a range of its own.

Rules: Documentation/filesystems/overlayfs.rst, "Inode properties"; fs/overlayfs/overlayfs.h
(struct ovl_fb), fs/overlayfs/inode.c (ovl_map_dev_ino), super.c (ovl_get_layers). Cost: a
getxattr(2) a file of the upper, and for a copied-up one an open_by_handle_at(2).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable
from typing import Final, final

from unionfs import system

_BITS: Final = 64
_ALL: Final = (1 << _BITS) - 1
_FB: Final = struct.Struct(
    "=BBBBB16s"
)  # version, magic, length, flags, type, uuid of the filesystem
_VERSION: Final = 0
_MAGIC: Final = 0xFB
_BIG_ENDIAN: Final = 1
_CPU_ENDIAN: Final = 0 if sys.byteorder == "little" else _BIG_ENDIAN
_ANY_ENDIAN: Final = 2
_OF_UPPER: Final = 4
_FLAGS: Final = _BIG_ENDIAN | _ANY_ENDIAN | _OF_UPPER
_NO_UUID: Final = bytes(16)

FileId = tuple[int, int]
"""st_dev and st_ino of a file in a layer."""


def file_id(status: os.stat_result) -> FileId:
    """What tells a layer's file from every other."""
    return status.st_dev, status.st_ino


def _scattered(number: int, of: int) -> int:
    """64 bits that depend on all bits of both (SplitMix64)."""
    mixed = (number + of * 0x9E3779B97F4A7C15) & _ALL
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _ALL
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _ALL
    return mixed ^ mixed >> 31


@final
class Numbers:
    """Numbers and origins of the files in some layers.

    roots: a descriptor of each layer's root, top first. upper: whether the first is upper's.
    apart: whether files keep the device and the number of their layer (option `xino=off`).
    """

    def __init__(self, roots: Iterable[int], *, upper: bool, apart: bool) -> None:
        self._roots: dict[int, int] = {}  # by st_dev: a root on that filesystem
        self._uuids: dict[int, bytes] = {}
        for fd in roots:
            self._roots.setdefault(os.fstat(fd).st_dev, fd)
        self._apart = apart
        # The kernel's 0 is the upper filesystem, whether there is one or not.
        last = len(self._roots) - upper
        alone = len(self._roots) == 1
        self._shift = _BITS - 2 if alone else _BITS - 1 - last.bit_length()
        self._most = _ALL if alone else (1 << self._shift) - 1
        self._masks = {
            device: 0 if alone else (place + (not upper)) << (self._shift + 1)
            for place, device in enumerate(self._roots)
        }

    @property
    def device(self) -> int:
        """The st_dev of the union: that of its top layer."""
        return next(iter(self._roots))

    def of_filesystem(self, device: int) -> tuple[int, int]:
        """What is put into the numbers of a layer's filesystem, and the greatest that has room."""
        return self._masks[device], self._most

    def number(self, file: FileId) -> int:
        """The st_ino that the union shows for a layer's file."""
        device, inode = file
        mask = self._masks.get(device)
        if mask is not None and inode <= self._most:
            return inode | mask
        lowest = 1 << self._shift
        return lowest | _scattered(inode, device if mask is None else mask) & (lowest - 1)

    def shown(self, file: FileId, *, directory: bool) -> FileId:
        """st_dev and st_ino that the library shows for a layer's file."""
        return file if self._apart and not directory else (self.device, self.number(file))

    def uuid(self, device: int) -> bytes:
        """The UUID of a layer's filesystem, zeros where it has none."""
        if device not in self._uuids:
            self._uuids[device] = system.filesystem_uuid(self._roots[device]) or _NO_UUID
        return self._uuids[device]

    def follows_handles(self, lower: Iterable[int]) -> bool:
        """Whether every layer's files can be told and found by their handles, as the index needs.

        lower: the st_dev of each lower layer. Not so without CAP_DAC_READ_SEARCH, on filesystems
        without handles, or where two lower filesystems have one identity (ovl_lower_uuid_ok).
        """
        for root in self._roots.values():
            handle = system.file_handle(root, "")
            if handle is None:
                return False
            try:
                system.stat_handle(root, *handle)
            except OSError:
                return False
        devices = {*lower}
        return len({self.uuid(device) for device in devices}) == len(devices)

    def handle_mark(self, layer_fd: int, path: str, *, upper: bool = False) -> bytes:
        """The mark that names the file at path, as its copy's origin: empty without a handle.

        upper: whether it is upper's own file, which the mark says too.
        """
        device = os.fstat(layer_fd).st_dev
        handle = system.file_handle(layer_fd, path)
        if handle is None or device not in self._roots:
            return b""
        kind, data = handle
        length = _FB.size + len(data)
        if length > 0xFF or kind > 0xFF:
            return b""
        flags = _CPU_ENDIAN | (_OF_UPPER if upper else 0)
        return _FB.pack(_VERSION, _MAGIC, length, flags, kind, self.uuid(device)) + data

    @staticmethod
    def check_handle_mark(mark: bytes, path: str) -> None:
        """OSError EINVAL where that is no mark of a handle, ENODATA for one of another machine.

        Rule: ovl_check_fb_len (fs/overlayfs/namei.c).
        """
        remedy = "remove it, or mount with index=off"
        if len(mark) < _FB.size or mark[1] != _MAGIC or len(mark) < mark[2]:
            raise OSError(errno.EINVAL, f"is no index entry; {remedy}", path)
        version, flags = mark[0], mark[3]
        ours = flags & _ANY_ENDIAN or flags & _BIG_ENDIAN == _CPU_ENDIAN
        if version > _VERSION or flags & ~_FLAGS or not ours:
            raise OSError(errno.ENODATA, f"is an index entry of another machine; {remedy}", path)

    def origin(self, mark: bytes) -> os.stat_result | None:
        """The lower file that an origin mark names; None where it is gone or cannot be told."""
        if len(mark) <= _FB.size:
            return None
        version, magic, length, flags, kind, uuid = _FB.unpack_from(mark)
        if (version, magic, length) != (_VERSION, _MAGIC, len(mark)):
            return None
        if flags not in (_CPU_ENDIAN, _CPU_ENDIAN | _ANY_ENDIAN):
            return None
        for device, root in self._roots.items():
            if self.uuid(device) == uuid:
                try:
                    return system.stat_handle(root, kind, mark[_FB.size :])
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ESTALE, errno.EOPNOTSUPP):
                        raise
        return None
