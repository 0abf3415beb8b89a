"""The fields of a tar header. The C extension reads them where it was built, one call a file.

Rules: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar, "Extensions to the Standard Format".
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Final

from unionfs import system

RECORD: Final = 512
LAYOUT: Final = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
MAGIC: Final = b"ustar\x0000"

_ADLER: Final = 65521
_INT64: Final = range(-(1 << 63), 1 << 63)

Number = int | None
"""None: the field holds no number, or one that no file has."""

Fields = tuple[str, bytes, Number, Number, Number, Number, Number, str, Number, Number]
"""Name, type, mode, uid, gid, size, mtime in seconds, target, major and minor number."""


def fields_in_python(record: bytes | memoryview) -> Fields | None:
    """What a header says; None for a record that is none, by its checksum.

    `unionfs._native.tar_fields` has the same contract.
    """
    name, mode, uid, gid, size, mtime, check, kind, target, magic, _, _, major, minor, prefix = (
        LAYOUT.unpack(record)
    )
    if (wanted := number(check)) is None:
        return None
    # adler32 has one more than the sum in its lower half, modulo a prime, at the speed of C
    if (wanted - 256 + sum(check) + 1) % _ADLER != zlib.adler32(record) & 0xFFFF:
        return None
    path = text(name)
    if magic == MAGIC and (directory := text(prefix)):
        path = f"{directory}/{path}"
    numbers = (number(mode), number(uid), number(gid), number(size), number(mtime))
    return (path, kind, *numbers, text(target), number(major), number(minor))


def text(field: bytes) -> str:
    """A field up to its first NUL."""
    return os.fsdecode(field.partition(b"\0")[0])


def number(field: bytes) -> Number:
    """A number in octal, or in base 256 where its first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(1 << (8 * len(field) - 1))
        if field[0] & 0x40:  # the second bit is the sign
            value -= 1 << (8 * len(field) - 1)
        return value if value in _INT64 else None
    digits = field.strip(b"\0 ")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


fields = fields_in_python
if system.NATIVE:
    from unionfs import _native

    fields = _native.tar_fields
