"""No space, a filesystem that became read-only, a layer that vanished: errnos are the kernel's.

Afterwards nothing half-made is visible, nothing is left in work, and the union goes on serving.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Door, Folder, Layers
from tests.tree import build, directory, file, snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

_SMALL = 512 << 10  # bytes of the filesystem that upper and work lie on
_BIG = os.urandom(1 << 20)


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    """Lower layers with room, upper and work on a small filesystem of their own."""
    layers = Layers(tmp_path)
    with ExitStack() as held:
        small = tmp_path / "small"
        for path in (*layers.lower, layers.target, small):
            Path(path).mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", small]
        subprocess.run(command, check=True)
        held.callback(subprocess.run, ["umount", "-l", small], check=True)
        for path in map(Path, (layers.upper, layers.work)):
            (small / path.name).mkdir()
            path.symlink_to(small / path.name)
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
def test_a_full_disk(layers: Layers, name: str) -> None:
    with DOORS[name](layers) as door:
        before = snapshot(door)
        assert _error(door, "big", b"x") == errno.ENOSPC
        assert snapshot(door) == before
        assert os.listdir(layers.upper) == []
        assert layers.leftovers() == []

        door.chmod("small", 0o600)
        assert _error(door, "filler", _BIG, os.O_CREAT) == errno.ENOSPC
        assert _read(door, "small") == b"small"
        assert _read(door, "big") == _BIG
        assert _error(door, "d/inner", b"x" * 8192) == errno.ENOSPC
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
