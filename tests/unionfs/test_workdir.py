"""Work directories that another mount left behind: cleared, or refused as the kernel does."""

import errno
import os
from pathlib import Path

import pytest

from tests.faults import run, steps_in, watching
from unionfs import LayerStack, StackError, UnionFS, mount_api
from unionfs.options import MountOptions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts by the kernel")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    return tmp_path


def stack_of(folder: Path, *, volatile: bool = False, fsync: str = "auto") -> LayerStack:
    options = MountOptions(volatile=volatile, fsync=fsync)
    return LayerStack([folder / "base"], folder / "upper", folder / "work", options=options)


def mounted_by_kernel(folder: Path, more: str = "") -> None:
    """Mount and unmount."""
    options = f"lowerdir={folder}/base,upperdir={folder}/upper,workdir={folder}/work{more}"
    target = str(folder / "target")
    mount_api.mount("overlay", target, "overlay", set(), os.fsencode(options))
    mount_api.umount(target, lazy=False)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "work").rglob("*"))


VOLATILE = ["work/work", *(f"work/work/incompat{more}" for more in ("", "/volatile"))]
DIRTY = [*VOLATILE, "work/work/incompat/volatile/dirty"]


def test_what_the_kernel_wrote_without_syncs_is_refused(folder: Path) -> None:
    mounted_by_kernel(folder, ",volatile")
    with stack_of(folder, volatile=True) as stack:
        assert UnionFS(stack).listdir() == []  # it can be read
        with pytest.raises(StackError, match="incompat feature 'volatile' cannot") as caught:
            stack.claim()
    assert caught.value.errno == errno.EINVAL
    assert left(folder) == DIRTY


def test_what_the_library_wrote_without_syncs_is_refused(folder: Path) -> None:
    with stack_of(folder, volatile=True) as stack:
        UnionFS(stack).write_text("file", "data")
    assert left(folder) == DIRTY
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        mounted_by_kernel(folder)
    with stack_of(folder) as stack, pytest.raises(OSError, match="'volatile' cannot be mounted"):
        UnionFS(stack).write_text("new", "data")
    assert [path.name for path in (folder / "upper").iterdir()] == ["file"]


@pytest.mark.parametrize(("words", "synced"), [("auto", 1), ("strict", 3), ("volatile", 0)])
def test_what_a_copy_up_syncs(folder: Path, words: str, synced: int) -> None:
    """The file, and with `strict` the directories that it lies in."""
    (folder / "base/a/b").mkdir(parents=True)
    (folder / "base/a/b/file").write_text("data")

    def write() -> None:
        with stack_of(folder, fsync=words) as stack:
            UnionFS(stack).chmod("a/b/file", 0o600)

    assert run(write, *watching(folder / "log")) == 0
    steps = steps_in(folder / "log")
    assert [name for name, _ in steps].count("fsync") == synced


def test_once_the_sign_is_removed_it_is_like_any_other(folder: Path) -> None:
    with stack_of(folder, volatile=True) as stack:
        UnionFS(stack).write_text("file", "data")
    (folder / DIRTY[-1]).unlink()
    (folder / VOLATILE[-1]).rmdir()
    with stack_of(folder) as stack:
        UnionFS(stack).write_text("file", "more")
    mounted_by_kernel(folder)
