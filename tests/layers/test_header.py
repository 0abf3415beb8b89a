"""Tar headers: the C extension and Python read every one alike, and as `tarfile` writes it."""

import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unionfs import system
from unionfs.layers.header import LAYOUT, MAGIC, Fields, fields_in_python

if system.NATIVE:
    from unionfs._native import tar_fields
else:
    tar_fields = fields_in_python

_NUMBERS = (8, 8, 8, 12, 12)  # bytes of mode, uid, gid, size and mtime


def read(record: bytes) -> Fields | None:
    """What both say."""
    found = fields_in_python(record)
    assert tar_fields(record) == found
    return found


def summed(*values: bytes) -> bytes:
    """A record of these fields, with its checksum."""
    total = sum(LAYOUT.pack(*values[:6], b" " * 8, *values[7:]))
    return LAYOUT.pack(*values[:6], b"%06o\0 " % total, *values[7:])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.BLKTYPE])
def test_what_tarfile_writes(form: int, kind: bytes) -> None:
    info = tarfile.TarInfo("directory/" * 9 + "file")
    info.type, info.mode, info.uid, info.gid = kind, 0o4755, 1000, 0o7777777
    info.size, info.mtime, info.linkname = 0o77777777777, 1_700_000_000, "target"
    info.devmajor, info.devminor = 8, 1
    assert read(info.tobuf(form)) == (
        *(info.name, kind, 0o4755, 1000, 0o7777777, 0o77777777777, 1_700_000_000, "target"),
        *((8, 1) if kind == tarfile.BLKTYPE else (0, 0)),
    )


def test_numbers_beyond_octal() -> None:
    info = tarfile.TarInfo("file")
    info.uid, info.size, info.mtime = 0xFFFFFFFE, 1 << 50, -5
    found = read(info.tobuf(tarfile.GNU_FORMAT))
    assert found is not None
    assert (found[3], found[5], found[6]) == (0xFFFFFFFE, 1 << 50, -5)


def test_a_long_name_is_in_two_fields() -> None:
    info = tarfile.TarInfo("d" * 150 + "/" + "f" * 100)
    found = read(info.tobuf(tarfile.USTAR_FORMAT))
    assert found is not None
    assert found[0] == info.name


@given(st.binary(min_size=512, max_size=512))
@example(bytes(512))
def test_any_bytes_are_mostly_no_header(record: bytes) -> None:
    read(record)


numbers = st.tuples(
    *(
        st.one_of(
            st.binary(min_size=size, max_size=size),
            st.text("01234567 \0-+_x89", min_size=size, max_size=size).map(str.encode),
            st.integers(-(1 << (8 * size - 2)), (1 << (8 * size - 2)) - 1).map(
                lambda value, size=size: (value % (1 << (8 * size)) | 1 << (8 * size - 1)).to_bytes(
                    size, "big"
                )
            ),
        )
        for size in _NUMBERS
    )
)


@given(st.binary(max_size=100), numbers, st.binary(min_size=1, max_size=1), st.binary(max_size=155))
@example(
    b"a", (b"0000644\0", b" 12 \0\0\0\0", b"\x80" + b"\0" * 7, b"\xff" * 12, b"\0" * 12), b"0", b"p"
)
def test_any_fields(name: bytes, found: tuple[bytes, ...], kind: bytes, prefix: bytes) -> None:
    rest = (kind, b"target", MAGIC, b"", b"", b"0000010\0", b"\xbf" + b"\xff" * 7, prefix)
    record = summed(name, *found, b"", *rest)
    assert read(record) is not None
    assert read(b"\1" + record[1:] if record[:1] != b"\1" else b"\2" + record[1:]) is None
