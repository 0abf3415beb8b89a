"""The index beside the kernel's: what both refuse, clear and keep when a union is opened.

That linked files stay one file is told by tests/conformance.
"""

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts import private
from tests.privilege import NO_INDEX, machine_only
from unionfs import LayerStack, StackError, UnionFS, mount_api
from unionfs.options import MountOptions

pytestmark = machine_only(NO_INDEX)


@pytest.fixture(scope="module", autouse=True)
def own_mounts() -> Iterator[None]:
    with private():
        yield


INDEX = MountOptions(index=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two names of one lower file, of which one was written by the library."""
    for name in ("base", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "base/a").write_text("old")
    os.link(tmp_path / "base/a", tmp_path / "base/b")
    with stack_of(tmp_path) as stack:
        UnionFS(stack).write_text("a", "new")
    return tmp_path


def stack_of(folder: Path) -> LayerStack:
    return LayerStack([folder / "base"], folder / "upper", folder / "work", options=INDEX)


@contextmanager
def kernel(folder: Path) -> Iterator[Path]:
    """The union mounted by the kernel; OSError where it refuses."""
    options = f"lowerdir={folder}/base,upperdir={folder}/upper,workdir={folder}/work,index=on"
    target = folder / "target"
    mount_api.mount("overlay", str(target), "overlay", set(), os.fsencode(options))
    try:
        yield target
    finally:
        mount_api.umount(str(target), lazy=False)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "work/index").iterdir() if path.name[0] != "#")


def opened_by_kernel(folder: Path) -> None:
    with kernel(folder):
        pass


def opened_by_library(folder: Path) -> None:
    with stack_of(folder) as stack:
        stack.claim()


OPENERS = pytest.mark.parametrize("open_union", [opened_by_kernel, opened_by_library])
Opener = Callable[[Path], None]


@OPENERS
@pytest.mark.parametrize(
    ("damage", "number"),
    [
        (lambda folder: move_aside(folder / "base"), errno.ESTALE),
        (lambda folder: move_aside(folder / "upper"), errno.ESTALE),
        (lambda folder: rename_entry(folder, "not-hexadecimal-digits" * 2), errno.EINVAL),
        (lambda folder: rename_entry(folder, "00fb"), errno.EINVAL),
        (lambda folder: change_entry(folder, 1, 0xFA), errno.EINVAL),
        (lambda folder: change_entry(folder, 0, 9), errno.ENODATA),
        (lambda folder: change_entry(folder, 3, 1), errno.ENODATA),
        (lambda folder: os.removexattr(*entries(folder), "trusted.overlay.origin"), errno.ENODATA),
    ],
)
def test_what_could_damage_an_index_is_refused(
    folder: Path, damage: Callable[[Path], None], number: int, open_union: Opener
) -> None:
    damage(folder)
    left = entries(folder)
    with pytest.raises(OSError, match=r".+") as caught:
        open_union(folder)
    assert caught.value.errno == number
    assert entries(folder) == left


def move_aside(directory: Path) -> None:
    """Put another directory in the place of one; a copy has handles of its own."""
    directory.rename(directory.with_name("aside"))
    subprocess.run(["cp", "-a", directory.with_name("aside"), directory], check=True)


def rename_entry(folder: Path, name: str) -> None:
    (entry,) = entries(folder)
    entry.rename(entry.with_name(name))


def change_entry(folder: Path, position: int, byte: int) -> None:
    """Change one byte of the handle that is an entry's name."""
    (entry,) = entries(folder)
    handle = bytearray.fromhex(entry.name)
    handle[position] = byte
    rename_entry(folder, handle.hex())


@OPENERS
def test_what_is_of_no_use_is_cleared(folder: Path, open_union: Opener) -> None:
    """An unfinished file, a copy whose name tells of another, and one that lost all names."""
    index = folder / "work/index"
    (index / "#1").write_text("unfinished")
    (index / "#2").mkdir()
    (entry,) = entries(folder)
    other = bytearray.fromhex(entry.name)
    other[-1] ^= 1
    os.link(entry, index / other.hex())
    (folder / "upper/a").unlink()
    os.setxattr(entry, "trusted.overlay.nlink", b"U-1")
    open_union(folder)
    open_union(folder)  # the second time the entry has no link but its own
    assert not entries(folder)
    assert not (index / "#2").exists()


@OPENERS
def test_what_others_may_need_stays(folder: Path, open_union: Opener) -> None:
    """Whiteouts and directories, which the kernel keeps for NFS, and a copy with names below."""
    (entry,) = entries(folder)
    (folder / "upper/a").unlink()
    handle = bytearray.fromhex(entry.name)
    for last in (1, 2):
        handle[-1] ^= last
        path = folder / "work/index" / handle.hex()
        os.mknod(path, stat.S_IFCHR) if last == 1 else path.mkdir()
    before = entries(folder)
    open_union(folder)
    assert entries(folder) == before


def test_a_copy_up_that_was_cut_short_loses_nothing(folder: Path) -> None:
    """The copy is in the index, and no name of it in upper yet."""
    (folder / "upper/a").unlink()
    (entry,) = entries(folder)
    os.setxattr(entry, "trusted.overlay.nlink", b"L+0")
    with stack_of(folder) as stack:
        union = UnionFS(stack)
        assert union.read_text("b") == "new"
        assert union.stat("a").st_nlink == 2
        union.unlink("b")
        assert union.stat("a").st_nlink == 1
    with kernel(folder) as target:
        assert (target / "a").stat().st_nlink == 1
        assert (target / "a").read_text() == "new"


def test_an_entry_of_another_type_is_an_error(folder: Path) -> None:
    """Both say so, and neither shows the lower file in its place."""
    (entry,) = entries(folder)
    entry.unlink()
    os.mkfifo(entry)
    os.setxattr(entry, "trusted.overlay.origin", bytes.fromhex(entry.name))
    os.setxattr(entry, "trusted.overlay.nlink", b"U+1")
    os.link(entry, folder / "upper/keeps-it")
    with kernel(folder) as target, pytest.raises(OSError, match=r".+") as caught:
        (target / "b").stat()
    assert caught.value.errno == errno.EIO
    with stack_of(folder) as stack, pytest.raises(OSError, match="mount with index=off") as caught:
        UnionFS(stack).stat("b")
    assert caught.value.errno == errno.EIO


def test_the_index_is_not_needed_where_it_is_off(folder: Path) -> None:
    """Each name is then a file of its own, as the kernel has it."""
    with LayerStack([folder / "base"], folder / "upper", folder / "work") as stack:
        union = UnionFS(stack)
        assert union.read_text("a") == "new"
        assert union.read_text("b") == "old"
        assert union.stat("a").st_ino != union.stat("b").st_ino


def test_an_index_of_another_upper_is_refused_before_anything_is_read(folder: Path) -> None:
    move_aside(folder / "upper")
    with pytest.raises(StackError, match="remove the index directory, or mount with index=off"):
        stack_of(folder)
