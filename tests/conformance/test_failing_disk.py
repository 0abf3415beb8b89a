"""A disk that answers EIO: programs are told what the kernel's overlayfs tells them, and no more.

What failed has changed nothing, other files are served meanwhile, and all works again when the disk
does. Blocks that hold `_BAD` fail (`tests/disk.py`), which the data of some files does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import final

import pytest

from tests.conformance.doors import DOORS, Door, Folder, Layers, alive
from tests.crashes import seen, shown, shown_by_all, write
from tests.disk import Disk, copy_image, disk, make_image, mounted, write_log
from tests.privilege import NO_DISKS, machine_only
from tests.tree import Tree, build, error_name, file, hard_link, snapshot, there

pytestmark = machine_only(NO_DISKS)

_BAD = b"a block that cannot be read, or not written"
_DATA = Random(0).randbytes(3 << 20)
_MIDDLE = 2 << 20
_BAD_SMALL = file(_BAD + _DATA[:5000])
_BAD_LARGE = file(_DATA[:_MIDDLE] + _BAD + _DATA[_MIDDLE:])
LOWER: Tree = {
    "bad/small": _BAD_SMALL,
    "bad/large": _BAD_LARGE,
    "bad/emptied": _BAD_SMALL,
    "bad/removed": _BAD_SMALL,
    "bad/linked": _BAD_SMALL,
    "bad/linked-too": hard_link("bad/linked"),
    "good/small": file(_DATA[:5000]),
    "good/large": file(_DATA),
    "good/written": file(_DATA[1:5000]),
    "good/moved/file": file(_DATA[2:5000]),
}


def _synced(door: Door, path: str, data: bytes, flags: int = os.O_RDWR) -> None:
    fd = door.os_open(path, flags, 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(door: Door, path: str) -> None:
    with open(door.os_open(path, os.O_RDONLY), "rb", buffering=0) as stream:
        while stream.read(1 << 20):
            pass


Step = Callable[[Door], object]
_COPY_UPS: dict[str, Step] = {
    "open small": lambda door: write(door, "bad/small", b""),
    "open large": lambda door: write(door, "bad/large", b""),
    "chmod small": lambda door: door.chmod("bad/small", 0o600),
    "chmod large": lambda door: door.chmod("bad/large", 0o600),
    "setxattr": lambda door: door.setxattr("bad/small", "user.name", b"value"),
    "truncate": lambda door: door.truncate("bad/large", _MIDDLE + 1000),
    "rename small": lambda door: door.rename("bad/small", "good/new"),
    "rename large": lambda door: door.rename("bad/large", "good/new"),
    "link": lambda door: door.link("bad/small", "good/new"),
    "write linked": lambda door: write(door, "bad/linked-too"),
}
_AROUND: dict[str, Step] = {
    "empty": lambda door: write(door, "bad/emptied", b"", os.O_WRONLY | os.O_TRUNC),
    "unlink": lambda door: door.unlink("bad/removed"),
    "read small": lambda door: _read(door, "good/small"),
    "read large": lambda door: _read(door, "good/large"),
    "write small": lambda door: _synced(door, "good/small", b"new"),
    "write large": lambda door: _synced(door, "good/large", b"new"),
    "mkdir": lambda door: door.mkdir("bad/directory"),
    "rename directory": lambda door: door.rename("good/moved", "good/away"),
}
_UNREADABLE: dict[str, Step] = {
    "read bad small": lambda door: _read(door, "bad/small"),
    "read bad large": lambda door: _read(door, "bad/large"),
    **_COPY_UPS,
    **_AROUND,
    "read bad small again": lambda door: _read(door, "bad/small"),
}
_UNWRITABLE: dict[str, Step] = {
    **_COPY_UPS,
    "write bad": lambda door: _synced(door, "good/written", _BAD),
    "create bad": lambda door: _synced(door, "good/created", _BAD, os.O_RDWR | os.O_CREAT),
    **_AROUND,
}
_REPAIRS: dict[str, Step] = {
    "write bad": lambda door: _synced(door, "good/written", b"repaired" * 1000),
    "remove bad": lambda door: door.unlink("good/created"),  # ext4 never finds its data again
}
_AFTERWARDS = {**_REPAIRS, "read": _UNREADABLE["read bad small"], **_COPY_UPS}


def _errors(door: Door, steps: dict[str, Step]) -> dict[str, str]:
    """By step: the errno that it ended with."""
    found = {}
    for name, step in steps.items():
        try:
            step(door)
        except OSError as error:
            found[name] = error_name(error)
    return found


@final
@dataclass(frozen=True, slots=True)
class Told:
    """What happened at a door. failing, afterwards: errors while the disk failed, and then.

    upper: the names there when it no longer did. tree: in the end.
    """

    failing: dict[str, str]
    upper: list[str]
    afterwards: dict[str, str]
    tree: dict[str, object]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """With the layers on it: the same ones for each door, which gets a copy."""
    image = tmp_path / "image"
    make_image(image, "ext4")
    with mounted(image, tmp_path / "mounted") as place:
        layers = Layers(tmp_path / "union")
        layers.make(place, place)
        build(layers.lower[0], LOWER)
    return image


@contextmanager
def _disk(original: Path, folder: Path) -> Iterator[tuple[Disk, Path]]:
    """A disk, with a copy of the original in folder, and that copy."""
    folder.mkdir()
    image = folder / "image"
    copy_image(original, image)
    with disk(folder / "disk", image) as made:
        yield made, image


def _told(original: Path, name: str, what: str, steps: dict[str, Step]) -> Told:
    layers, place = Layers(original.with_name("union")), original.with_name("mounted")
    with (
        _disk(original, original.with_name(name)) as (failing, image),
        mounted(failing.device, place),
    ):
        with DOORS[name](layers) as door:
            with failing.failing(what, _BAD):
                errors = _errors(door, steps)
            assert alive(door)
            assert layers.leftovers() == []
            upper = [*there(snapshot(Folder(layers.upper)))]
            afterwards = _errors(door, _AFTERWARDS)
            tree = seen(door)
        assert layers.complaints() == []
    with mounted(image, place):
        assert shown_by_all(layers) == tree
    return Told(errors, upper, afterwards, tree)


@pytest.mark.parametrize(
    ("what", "steps"), [("read", _UNREADABLE), ("write", _UNWRITABLE)], ids=["read", "write"]
)
def test_blocks_that_fail(image: Path, what: str, steps: dict[str, Step]) -> None:
    expected, *others = (_told(image, name, what, steps) for name in DOORS)
    assert expected.failing
    for name, told in zip([*DOORS][1:], others, strict=True):
        assert told == expected, name


_STOPPED: dict[str, Step] = {
    "open": lambda door: write(door, "good/small", b""),
    "write": lambda door: _synced(door, "good/large", b"new"),
    "create": lambda door: write(door, "good/new", b"", os.O_RDWR | os.O_CREAT),
    "mkdir": lambda door: door.mkdir("bad/directory"),
    "symlink": lambda door: door.symlink("small", "good/symlink"),
    "link": lambda door: door.link("good/small", "good/linked"),
    "chmod": lambda door: door.chmod("good/small", 0o600),
    "unlink": lambda door: door.unlink("bad/removed"),
    "rename": lambda door: door.rename("good/small", "bad/small"),
    "rename directory": lambda door: door.rename("good/moved", "good/away"),
    "read": _AROUND["read large"],
    "list": lambda door: door.scandir("good"),
}


def test_a_disk_that_takes_no_more_writes(image: Path) -> None:
    """Its filesystem lets nobody write to it from then on, until it was mounted anew."""
    layers, place = Layers(image.with_name("union")), image.with_name("mounted")
    with mounted(image, place):
        before = shown(layers)
    told = []
    for name in DOORS:
        with (
            _disk(image, image.with_name(name)) as (failing, left),
            mounted(failing.device, place, "-o", "commit=600"),
        ):
            with failing.failing("write"), DOORS[name](layers) as door:
                first = _errors(door, {"open": _STOPPED["open"]})
                with suppress(OSError):
                    write_log(place)
                told.append((first, _errors(door, _STOPPED)))
            assert layers.complaints() == []
        with mounted(left, place):
            assert shown_by_all(layers) == before
            with DOORS[name](layers) as door:
                assert _errors(door, _STOPPED) == {}
    assert told[1:] == [told[0]] * (len(told) - 1)
