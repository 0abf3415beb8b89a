"""No space, no quota, a read-only filesystem, a layer that vanished: errnos are the kernel's.

Afterwards nothing half-made is visible, nothing is left in work, and the union goes on serving.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Door, Folder, Layers
from tests.crashes import CHANGES, LOWER, UPPER, seen, shown_by_all
from tests.disk import make_image, mounted
from tests.privilege import NO_DISKS, NO_REDIRECTS, machine_only
from tests.tree import build, directory, error_name, file, snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

_SMALL = 512 << 10  # bytes of the filesystem that upper and work lie on
_BIG = os.urandom(1 << 20)


@contextmanager
def _limited(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """A filesystem with room for little: a small one (tmpfs), or one with a quota (btrfs)."""
    place = folder / "small"
    if kind == "tmpfs":
        place.mkdir()
        with mounted("tmpfs", place, "-t", "tmpfs", "-o", f"size={size},nr_inodes=1000"):
            yield place
        return
    image = folder / "image"
    make_image(image, kind)
    with mounted(image, folder / "disk") as disk:
        _btrfs("quota", "enable", disk)
        _btrfs("subvolume", "create", disk / "small")
        _limit(disk, str(size))
        place.symlink_to(disk / "small")
        yield place


def _limit(disk: Path, size: str) -> None:
    """Of the first subvolume, whose number is 256 (BTRFS_FIRST_FREE_OBJECTID)."""
    _btrfs("qgroup", "limit", size, "0/256", disk)


def _btrfs(*arguments: str | Path) -> None:
    subprocess.run(["btrfs", *arguments], check=True, capture_output=True)


@pytest.fixture
def layers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Layers]:
    """Lower layers with room, upper and work on a filesystem with little of it."""
    with _limited(tmp_path, getattr(request, "param", "tmpfs"), _SMALL) as small:
        layers = Layers(tmp_path)
        layers.make(upper_at=small)
        tree = {"big": file(_BIG), "small": file(b"small"), "d/inner": file(b"inner")}
        build(layers.lower[0], tree | {"empty": directory()})
        yield layers
    assert layers.complaints() == []


def _error(door: Door, path: str, data: bytes, flags: int = 0) -> int:
    """What comes of a write that reaches the disk: 0, or its errno."""
    try:
        fd = door.os_open(path, os.O_WRONLY | flags, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or -1
    return 0


def _read(door: Door, path: str) -> bytes:
    with open(door.os_open(path, os.O_RDONLY), "rb") as stream:
        return stream.read()


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize(
    ("layers", "full"),
    [("tmpfs", errno.ENOSPC), pytest.param("btrfs", errno.EDQUOT, marks=machine_only(NO_DISKS))],
    indirect=["layers"],
)
def test_a_full_disk(layers: Layers, full: int, name: str) -> None:
    with DOORS[name](layers) as door:
        before = snapshot(door)
        assert _error(door, "big", b"x") == full
        assert snapshot(door) == before
        assert os.listdir(layers.upper) == []
        assert layers.leftovers() == []

        door.chmod("small", 0o600)
        assert _error(door, "filler", _BIG, os.O_CREAT) == full
        assert _read(door, "small") == b"small"
        assert _read(door, "big") == _BIG
        assert _error(door, "d/inner", b"x" * 8192) == full
        assert _read(door, "d/inner")[:5] in (b"inner", b"xxxxx")
        assert layers.leftovers() == []

        door.unlink("filler")
        assert _error(door, "d/inner", b"y" * 8192) == 0
        assert _read(door, "d/inner") == b"y" * 8192


@pytest.mark.parametrize("name", DOORS)
def test_a_filesystem_that_became_read_only(layers: Layers, name: str) -> None:
    """As ext4 does after an error."""
    with DOORS[name](layers) as door:
        assert _error(door, "mine", b"mine", os.O_CREAT) == 0
        before = snapshot(door)
        subprocess.run(["mount", "-o", "remount,ro", layers.base / "small"], check=True)
        try:
            for call, arguments in (
                (door.mkdir, ("new",)),
                (door.unlink, ("small",)),
                (door.unlink, ("mine",)),
                (door.rename, ("small", "renamed")),
                (door.rename, ("d", "renamed")),
                (door.chmod, ("small", 0o600)),
                (door.rmdir, ("empty",)),
                (door.symlink, ("small", "link")),
                (door.link, ("small", "link")),
                (door.setxattr, ("d", "user.name", b"value")),
                (door.truncate, ("small", 1)),
            ):
                with pytest.raises(OSError) as refused:
                    call(*arguments)
                assert refused.value.errno == errno.EROFS, f"{call.__name__}{arguments}"
            assert _error(door, "small", b"x") == errno.EROFS
            assert snapshot(door) == before
        finally:
            subprocess.run(["mount", "-o", "remount,rw", layers.base / "small"], check=True)
        door.mkdir("new")
        assert _error(door, "small", b"again") == 0
        assert _read(door, "small") == b"again"


@pytest.mark.parametrize("name", [name for name in DOORS if name != "kernel"])
def test_a_layer_that_vanished(layers: Layers, name: str) -> None:
    """Somebody removed its files; to the kernel that is undefined, to us they are gone."""
    with DOORS[name](layers) as door:
        assert _error(door, "mine", b"mine", os.O_CREAT) == 0
        assert _read(door, "small") == b"small"
        shutil.rmtree(f"{layers.lower[0]}/d")
        for path in ("big", "small"):
            os.unlink(f"{layers.lower[0]}/{path}")
        for path in ("small", "d/inner"):
            assert _error(door, path, b"x") in (errno.ENOENT, errno.ESTALE)
        assert _read(door, "mine") == b"mine"
        assert _error(door, "new", b"new", os.O_CREAT) == 0
        assert layers.leftovers() == []
        if isinstance(door, Folder):
            assert door.alive()


@contextmanager
def _nothing_left(small: Path, kind: str) -> Iterator[None]:
    """With neither a block nor an inode left, or with more in use than the quota allows."""
    if kind == "btrfs":
        _limit(small.resolve().parent, "1")
        yield
        _limit(small.resolve().parent, "none")
        return
    filler = small / "filler"
    filler.mkdir()
    with suppress(OSError), (filler / "blocks").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with suppress(OSError):
        for number in count():
            (filler / str(number)).touch()
    yield
    shutil.rmtree(filler)


def _changes(door: Door) -> dict[str, str]:
    """Make all changes of `tests/crashes.py`, one by one; the errors of those that fail."""
    found = {}
    for name, change in CHANGES.items():
        try:
            change(door)
        except OSError as error:
            found[name] = error_name(error)
    return found


@machine_only(NO_REDIRECTS)
@pytest.mark.parametrize("kind", ["tmpfs", "btrfs"])
def test_every_change_when_nothing_is_left(tmp_path: Path, kind: str) -> None:
    told = []
    for name in DOORS:
        folder = tmp_path / name
        folder.mkdir()
        with _limited(folder, kind, 4 << 20) as small:
            layers = Layers(folder)
            layers.make(upper_at=small)
            build(layers.lower[1], {"emptied/gone": file()})
            build(layers.lower[0], LOWER)
            build(layers.upper, UPPER)
            with DOORS[name](layers) as door:
                seen(door)  # the kernel writes its marks
                door.mkdir("before")  # the library makes its work directory
                with _nothing_left(small, kind):
                    failed = _changes(door)
                    tree = seen(door)
                    assert layers.leftovers() == []
                told.append((failed, tree, _changes(door), seen(door)))
            assert layers.complaints() == []
            assert shown_by_all(layers) == told[-1][-1]
    assert told[0][0]
    for name, found in zip(DOORS, told, strict=True):
        assert found == told[0], name
