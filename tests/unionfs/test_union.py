"""UnionFS as a program uses it: by several threads, with paths of all shapes."""

import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unionfs import LayerStack, StackError, UnionFS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def union(folder: Path) -> Iterator[UnionFS]:
    with LayerStack([folder / "base"], folder / "upper", folder / "work") as stack:
        yield UnionFS(stack)


def test_threads_see_each_others_changes_whole(folder: Path, union: UnionFS) -> None:
    """Each copies up, renames and removes files of its own, below directories of all."""
    for number in range(8):
        directory = folder / f"base/shared/{number}"
        directory.mkdir(parents=True)
        for name in "abcdef":
            (directory / name).write_text(name * 1000)

    def work(number: int) -> None:
        own = f"shared/{number}"
        for name in "abc":
            union.write_text(f"{own}/{name}", f"{number}{name}")
            union.rename(f"{own}/{name}", f"{own}/new-{name}")
            union.link(f"{own}/new-{name}", f"shared/{number}-{name}")
        for name in "def":
            union.unlink(f"{own}/{name}")
        union.rename(own, f"moved-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(union.listdir("shared")) == sorted(f"{n}-{c}" for n in range(8) for c in "abc")
    for number in range(8):
        names = sorted(union.listdir(f"moved-{number}"))
        assert names == ["new-a", "new-b", "new-c"]
        assert union.read_text(f"moved-{number}/new-b") == f"{number}b"
    assert sorted(os.listdir(folder / "base/shared/0")) == list("abcdef")


def test_errors_name_the_path_that_was_given(folder: Path, union: UnionFS) -> None:
    (folder / "base/file").touch()
    for call, path, number in (
        (union.stat, "absent", errno.ENOENT),
        (union.listdir, "file", errno.ENOTDIR),
        (union.mkdir, "/file", errno.EEXIST),
        (union.rmdir, "file", errno.ENOTDIR),
        (union.readlink, "file", errno.EINVAL),
    ):
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            call(path)
        assert (caught.value.errno, caught.value.filename) == (number, path)


def test_no_path_leaves_the_stack(folder: Path, union: UnionFS) -> None:
    (folder / "secret").write_text("outside")
    (folder / "base/up").symlink_to("../secret")
    (folder / "base/absolute").symlink_to(folder / "secret")
    (folder / "base/dir").mkdir()
    union.makedirs(folder)  # of the same name, inside
    for path, inside in (
        ("up", "secret"),
        ("absolute", folder / "secret"),
        ("../secret", "secret"),
        ("dir/../../secret", "secret"),
        (folder / "secret", folder / "secret"),
    ):
        with pytest.raises(FileNotFoundError):
            union.read_text(path)
        union.write_text(path, "inside")
        assert union.read_text(inside) == "inside"
        union.unlink(inside)
    assert (folder / "secret").read_text() == "outside"


def test_lower_files_cannot_be_changed_by_a_descriptor(folder: Path, union: UnionFS) -> None:
    (folder / "base/file").write_text("lower")
    with union.open("file") as file, pytest.raises(OSError, match="Read-only"):
        os.fchmod(file.fileno(), 0o600)
    assert stat.S_IMODE((folder / "base/file").stat().st_mode) == 0o644


def test_trees_come_and_go(folder: Path, union: UnionFS) -> None:
    union.makedirs("a/b/c")
    union.write_bytes("a/b/file", b"1")
    (folder / "base/low/er").mkdir(parents=True)
    walked = [(top, sorted(names), files) for top, names, files in union.walk("/")]
    assert walked[0] == ("/", ["a", "low"], [])
    assert ("/a/b", ["c"], ["file"]) in walked
    union.rmtree("a")
    union.rmtree("low")
    assert union.listdir() == []
    assert (folder / "base/low/er").is_dir()


def test_a_stack_has_one_writer(folder: Path, union: UnionFS) -> None:
    union.mkdir("mine")
    with LayerStack([folder / "base"], folder / "upper", folder / "work") as other:
        assert UnionFS(other).listdir() == ["mine"]
        with pytest.raises(OSError, match="used by another union") as caught:
            UnionFS(other).mkdir("theirs")
        assert caught.value.errno == errno.EBUSY
        union.stack.release()
        UnionFS(other).mkdir("theirs")


def test_a_closed_or_read_only_stack_is_not_written(folder: Path) -> None:
    with LayerStack([folder / "base"]) as stack:
        with pytest.raises(OSError, match="Read-only"):
            UnionFS(stack).mkdir("new")
        with pytest.raises(StackError):
            stack.claim()


@pytest.mark.parametrize("layer", ["base", "upper"])
def test_paths_as_long_as_the_kernel_takes(folder: Path, union: UnionFS, layer: str) -> None:
    """Everything that works on a short path works on one of PATH_MAX bytes."""
    directory = "/".join(["d" * 255] * 15)
    path = f"{directory}/{'n' * 255}"
    assert len(path) == 4095
    inside = os.open(folder / layer, os.O_PATH)
    try:
        for end in range(255, len(directory) + 1, 256):
            os.mkdir(directory[:end], dir_fd=inside)
        os.close(os.open(path, os.O_CREAT, dir_fd=inside))
    finally:
        os.close(inside)
    union.setxattr(path, "user.name", b"value")
    union.chmod(path, 0o640)
    union.chown(path, 1, 2)
    union.utime(path, ns=(1, 2))
    assert union.getxattr(path, "user.name") == b"value"
    assert union.listxattr(path) == ["user.name"]
    status = union.stat(path)
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 1, 2)
    assert status.st_mtime_ns == 2
    union.write_bytes(path, b"data")
    union.truncate(path, 2)
    assert union.read_bytes(path) == b"da"
    union.removexattr(path, "user.name")
    union.unlink(path)
    assert union.listdir(directory) == []
    union.mkdir(path)
    assert union.listdir(path) == []
    union.rename(path, "short")
    union.rename("short", path)
    union.rmdir(path)
    assert union.listdir(directory) == []
