"""Owners and modes in an attribute (xattr_permissions), as fuse-overlayfs has them too."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Layers
from tests.privilege import IN_USER_NAMESPACE, NO_TRUSTED, machine_only
from tests.tree import View
from unionfs import LayerStack, MountError, MountOptions, StackError, UnionFS, mount

_USER = 1234
_ATTRIBUTE = "user.fuseoverlayfs.override_stat"
_CONTAINERS = "user.containers.override_stat"

Opener = Callable[[Layers, int], AbstractContextManager[Path]]


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path)
    made.make()
    lower = Path(made.lower[0])
    for name, uid, gid, mode in (("file", 1, 2, 0o4755), ("kept", 3, 4, 0o640)):
        (lower / name).write_text(name)
        os.chown(lower / name, uid, gid)
        (lower / name).chmod(mode)
    (lower / "dir").mkdir()
    (lower / "dir").chmod(0o2770)
    os.chown(lower / "dir", 5, 6)
    (lower / "dir").chmod(0o2770)
    return made


@contextmanager
def ours(layers: Layers, value: int) -> Iterator[Path]:
    options = MountOptions(xattr_permissions=value, allow_other=True, userxattr=True)
    with (
        LayerStack(layers.lower, layers.upper, layers.work, options=options) as stack,
        mount(stack, layers.target),
    ):
        yield Path(layers.target)


@contextmanager
def theirs(layers: Layers, value: int) -> Iterator[Path]:
    options = f"{layers.options},xattr_permissions={value},allow_other"
    subprocess.run(["fuse-overlayfs", "-o", options, layers.target], check=True)
    try:
        yield Path(layers.target)
    finally:
        subprocess.run(["umount", layers.target], check=True)


def change(union: Path) -> None:
    """What a package manager does."""
    os.chown(union / "file", 10, 20)
    (union / "kept").chmod(0o4711)
    (union / "new").write_text("new")
    os.chown(union / "new", 30, 40)
    (union / "new").chmod(0o2711)
    (union / "made").mkdir(0o701)
    os.chown(union / "made", 50, 60)
    (union / "dir/in").write_text("in")


def shown(union: Path) -> dict[str, tuple[int, int, str]]:
    """Owner, group and mode by name."""
    found = {}
    for path in sorted(union.rglob("*")):
        status = path.stat()
        mode = stat.filemode(status.st_mode)
        found[str(path.relative_to(union))] = status.st_uid, status.st_gid, mode
    return found


EXPECTED = {
    "dir": (5, 6, "drwxrws---"),
    "dir/in": (0, 6, "-rw-r--r--"),
    "file": (10, 20, "-rwxr-xr-x"),
    "kept": (3, 4, "-rws--x--x"),
    "made": (50, 60, "drwx-----x"),
    "new": (30, 40, "-rwx--s--x"),
}


@pytest.mark.parametrize("value", [pytest.param(1, marks=machine_only(NO_TRUSTED)), 2])
def test_owners_are_shown_and_not_on_disk(layers: Layers, value: int) -> None:
    with ours(layers, value) as union:
        change(union)
        assert shown(union) == EXPECTED
        assert not [name for name in os.listxattr(union / "new") if "override" in name]
        with pytest.raises(PermissionError):
            os.setxattr(union / "new", _CONTAINERS, b"0:0:777")
    with ours(layers, value) as union:
        assert shown(union) == EXPECTED
    on_disk = os.stat(f"{layers.upper}/new")
    assert (on_disk.st_uid, stat.S_IMODE(on_disk.st_mode) & 0o7000) == (0, 0)


@pytest.mark.parametrize("value", [pytest.param(1, marks=machine_only(NO_TRUSTED)), 2])
@pytest.mark.parametrize(("writer", "reader"), [(ours, theirs), (theirs, ours)])
def test_fuse_overlayfs_and_we_agree(
    layers: Layers, writer: Opener, reader: Opener, value: int
) -> None:
    with writer(layers, value) as union:
        change(union)
        written = shown(union)
    with reader(layers, value) as union:
        assert shown(union) == written


def test_attributes_of_containers_storage(layers: Layers) -> None:
    """As it unpacks layers with force_mask, with a type behind the mode."""
    lower = layers.lower[0]
    os.setxattr(lower, _CONTAINERS, b"0:0:0755:dir")
    os.setxattr(f"{lower}/dir", _CONTAINERS, b"8:9:01777:dir")
    os.setxattr(f"{lower}/file", _CONTAINERS, b"7:7:4:file")
    with ours(layers, 2) as union:
        assert shown(union)["dir"] == (8, 9, "drwxrwxrwt")
        assert shown(union)["file"] == (7, 7, "-------r--")
        assert shown(union)["kept"] == (3, 4, "-rw-r-----")


SPECIAL = {
    "pipe": ("pipe", "prw-r-----", 0),
    "socket": ("socket", "srw-r-----", 0),
    "char": ("char-10-229", "crw-r-----", os.makedev(10, 229)),
    "block": ("block-7-300", "brw-r-----", os.makedev(7, 300)),
}


def special(union: View) -> dict[str, tuple[int, int, str, int]]:
    """Owner, group, mode and device by name, of those in SPECIAL."""
    return {
        name: (status.st_uid, status.st_gid, stat.filemode(status.st_mode), status.st_rdev)
        for name in SPECIAL
        for status in [union.lstat(name)]
    }


def _stand_in(layers: Layers) -> None:
    """Let files of a lower layer stand in for other ones, as containers/storage unpacks them."""
    lower = Path(layers.lower[0])
    os.setxattr(lower, _CONTAINERS, b"0:0:0755:dir")
    for name, (word, _, _) in SPECIAL.items():
        (lower / name).touch(0o700)
        os.setxattr(lower / name, _CONTAINERS, f"8:9:0640:{word}".encode())


@pytest.mark.parametrize("door", ["library", "fuse", "fuse-pure"])
def test_files_that_stand_in_for_others(layers: Layers, door: str) -> None:
    """They are what their attribute says, in their copies too; and no copy is opened for them."""
    _stand_in(layers)
    layers = replace(layers, more="xattr_permissions=2")
    expected = {name: (8, 9, mode, device) for name, (_, mode, device) in SPECIAL.items()}
    with DOORS[door](layers) as union:
        assert special(union) == expected
        kinds = {entry.name: entry.is_file() for entry in union.scandir(".")}
        assert not any(kinds[name] for name in SPECIAL)
        numbers = {name: union.lstat(name).st_ino for name in SPECIAL}
        for name in SPECIAL:
            union.chown(name, 10, -1)
            union.chmod(name, 0o604)
        with pytest.raises(OSError, match="No such device"):
            union.os_open("socket", os.O_RDONLY)
    expected = {
        name: (10, 9, f"{mode[0]}rw----r--", device) for name, (_, mode, device) in SPECIAL.items()
    }
    with DOORS[door](layers) as union:
        assert special(union) == expected
        if not IN_USER_NAMESPACE:  # where no file handles are
            assert {name: union.lstat(name).st_ino for name in SPECIAL} == numbers
    for name, (word, _, _) in SPECIAL.items():
        assert stat.S_ISREG(os.lstat(f"{layers.upper}/{name}").st_mode)
        kept = os.getxattr(f"{layers.upper}/{name}", _ATTRIBUTE)
        assert kept == f"10:9:0604:{word}".encode()


def _give_away() -> None:
    options = MountOptions(xattr_permissions=2, userxattr=True)
    with LayerStack(["lower"], "upper", "work", options=options) as stack:
        union = UnionFS(stack)
        union.chown("file", 5, 6)
        union.chmod("file", 0o4000)
        status = union.stat("file")
        assert (status.st_uid, status.st_gid) == (5, 6)
        assert union.read_text("file") == "data"


def test_an_ordinary_user_gives_files_away() -> None:
    """By the library, which has no more rights than the user."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        for part in ("lower", "upper", "work"):
            (base / part).mkdir()
        (base / "lower/file").write_text("data")
        for path in (base, *base.rglob("*")):
            os.chown(path, _USER, _USER)
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setresgid(_USER, _USER, _USER)
                os.setresuid(_USER, _USER, _USER)
                os.chdir(base)
                _give_away()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        status = os.stat(base / "upper/file")
        assert status.st_uid == _USER
        assert os.getxattr(base / "upper/file", _ATTRIBUTE) == b"5:6:4000:file"


@pytest.mark.parametrize("value", [b"me", b"0:0:644:dir", b"0:0:644:char", b"0:0:644:pipe-1-2"])
def test_an_attribute_that_tells_nothing(layers: Layers, value: bytes) -> None:
    os.setxattr(layers.lower[0], _ATTRIBUTE, b"0:0:755")
    os.setxattr(f"{layers.lower[0]}/file", _ATTRIBUTE, value)
    with ours(layers, 2) as union, pytest.raises(OSError, match="Invalid argument"):
        (union / "file").stat()


@pytest.mark.skipif(not IN_USER_NAMESPACE, reason="root of the machine sets security. attributes")
def test_an_attribute_that_is_not_permitted(layers: Layers) -> None:
    options = MountOptions(xattr_permissions=1)
    with (
        LayerStack(layers.lower, layers.upper, layers.work, options=options) as stack,
        pytest.raises(StackError, match=r"use xattr_permissions=2: .*/upper"),
    ):
        mount(stack, layers.target)


def test_the_kernel_cannot(layers: Layers) -> None:
    options = MountOptions(xattr_permissions=2)
    with (
        LayerStack(layers.lower, layers.upper, layers.work, options=options) as stack,
        pytest.raises(MountError, match="no option xattr_permissions"),
    ):
        mount(stack, layers.target, "overlayfs")
