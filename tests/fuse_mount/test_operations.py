"""What is the FUSE mount's own, beside what every door does (tests/conformance)."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.doors import Folder, Layers, Opener, fuse, fuse_pure, kernel
from tests.crashes import write
from tests.privilege import NO_CACHES, NO_OTHER_IDS, machine_only
from tests.tree import build, file, hard_link, snapshot
from unionfs import LayerStack, MountOptions, mount


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path)
    made.make()
    return made


@contextmanager
def mounted(layers: Layers, **options: object) -> Iterator[Path]:
    """The union by FUSE, with options by name."""
    chosen = MountOptions(**options)  # type: ignore[arg-type]
    with ExitStack() as held:
        stack = held.enter_context(
            LayerStack(layers.lower, layers.upper, layers.work, options=chosen)
        )
        held.enter_context(mount(stack, layers.target, "fuse"))
        yield Path(layers.target)


@machine_only(NO_OTHER_IDS)
def test_owners_are_mapped(layers: Layers) -> None:
    lower = Path(layers.lower[0]) / "file"
    lower.touch()
    os.chown(lower, 100005, 100006)
    ranges = ((100000, 0, 65536),)
    with mounted(layers, uidmapping=ranges, gidmapping=ranges) as union:
        status = (union / "file").stat()
        assert (status.st_uid, status.st_gid) == (5, 6)
        (union / "new").touch()
        os.chown(union / "file", 7, -1)
        assert (union / "new").stat().st_uid == 0
    new, changed = (os.stat(f"{layers.upper}/{name}") for name in ("new", "file"))
    assert (new.st_uid, new.st_gid) == (100000, 100000)
    assert (changed.st_uid, changed.st_gid) == (100007, 100006)


def test_all_belongs_to_one(layers: Layers) -> None:
    lower = Path(layers.lower[0]) / "file"
    lower.touch()
    os.chown(lower, 5, 6)
    with mounted(layers, squash_to_uid=12, squash_to_gid=13) as union:
        assert ((union / "file").stat().st_uid, (union / "file").stat().st_gid) == (12, 13)


def test_options_of_attributes(layers: Layers) -> None:
    (Path(layers.lower[0]) / "d/e").mkdir(parents=True)
    os.setxattr(f"{layers.lower[0]}/d", "user.mine", b"1")
    with mounted(layers, noxattrs=True, static_nlink=True) as union:
        assert (union / "d").stat().st_nlink == 1
        assert os.listxattr(union / "d") == []
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(union / "d", "user.other", b"2")


def _answers(layers: Layers, door: Opener, commands: list[list[str]]) -> list[tuple[int, str]]:
    """What programs say of files in the union: exit codes and output."""
    Path(layers.lower[0], "file").write_text("data")
    Path(layers.lower[0], "dir").mkdir()
    with door(layers):
        ran = [
            subprocess.run(
                command,
                cwd=layers.target,
                check=False,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for command in commands
        ]
    return [(each.returncode, each.stdout) for each in ran]


def test_chattr_and_lsattr(tmp_path: Path) -> None:
    """They work as through kernel overlayfs, by both ways that the kernel has to tell of flags."""
    commands = [
        command.split()
        for command in (
            "lsattr -d dir file",
            "lsattr -p file",
            "chattr +ia file",
            "lsattr file",
            "lsattr -p file",
            "touch file",
            "rm -f file",
            "chattr -i -p 0 file",
            "lsattr -p file",
            "chattr +Ad -a file",
            "lsattr file",
            "rm file",
            "chattr +a dir",
            "touch dir/new",
            "rm dir/new",
            "lsattr -d dir",
            "chattr -a dir",
            "rm -r dir",
        )
    ]
    by_kernel, by_fuse = Layers(tmp_path / "kernel"), Layers(tmp_path / "fuse")
    by_kernel.make()
    by_fuse.make()
    assert _answers(by_fuse, fuse, commands) == _answers(by_kernel, kernel, commands)


def test_when_a_file_was_made(layers: Layers) -> None:
    """That is the layer's file's, and the copy's once it is copied up, as of kernel overlayfs."""
    made = Path(layers.lower[0], "file")
    made.write_text("data")

    def birth(path: Path) -> str:
        return subprocess.check_output(["stat", "-c%w", path], text=True)

    for door in (fuse, kernel):
        with door(layers):
            union, upper = Path(layers.target, "file"), Path(layers.upper, "file")
            assert birth(union) == birth(made) != "-\n"
            union.chmod(0o600)
            assert birth(union) == birth(upper)
            os.remove(upper)


def test_other_requests_go_on_during_a_long_copy_up(layers: Layers) -> None:
    """While one file's data is copied, names that the kernel does not know yet are answered."""
    lower = Path(layers.lower[0])
    chunk = os.urandom(1 << 20)
    with open(lower / "large", "wb") as file:
        for _ in range(512):
            file.write(chunk)
    for number in range(200):
        (lower / f"file{number}").touch()
    with fuse(layers) as door:
        assert isinstance(door, Folder)
        done = threading.Event()

        def write() -> None:
            os.close(door.os_open("large", os.O_WRONLY))
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        answered = 0
        for number in range(200):
            if done.is_set():
                break
            door.stat(f"file{number}")
            answered += 1
        writer.join()
    assert answered > 20
    assert os.stat(f"{layers.upper}/large").st_size == 512 << 20


def test_files_opened_before_a_copy_up_read_what_is_written_after_it(layers: Layers) -> None:
    (Path(layers.lower[0]) / "file").write_text("before")
    with mounted(layers) as union, open(union / "file") as reader:
        (union / "file").write_text("after!")
        assert reader.read() == "after!"
    assert (Path(layers.lower[0]) / "file").read_text() == "before"


@pytest.mark.parametrize("opener", [fuse, fuse_pure])
def test_what_is_known_of_a_directory_that_is_copied_up_whole(
    layers: Layers, opener: Opener
) -> None:
    """Its files were looked at before, and are files of upper afterwards."""
    below = {"d/file": file(b"before"), "d/linked": file(), "z": hard_link("d/linked")}
    build(layers.lower[0], below | {"d/e/removed": file()})
    with opener(replace(layers, more="userxattr")) as door:
        snapshot(door)
        door.rename("d", "moved")
        write(door, "moved/file", b"after!")
        assert door.lstat("moved/linked").st_nlink == 1
        door.unlink("moved/e/removed")
        door.rmdir("moved/e")
        shown = snapshot(door)
    assert Path(layers.upper, "moved/file").read_bytes() == b"after!"
    with opener(replace(layers, more="userxattr")) as door:
        assert snapshot(door) == shown


def test_hard_links_are_one_file(layers: Layers) -> None:
    with mounted(layers) as union:
        (union / "a").write_text("one")
        os.link(union / "a", union / "b")
        (union / "b").write_text("two")
        assert (union / "a").read_text() == "two"
        (union / "a").unlink()
        assert (union / "b").stat().st_nlink == 1
    with mounted(layers) as union:
        os.link(union / "b", union / "c")
        with open(union / "c", "a") as stream:
            stream.write("!")
        assert (union / "b").read_text() == "two!"
        assert os.path.samefile(union / "b", union / "c")


@machine_only(NO_CACHES)
def test_nothing_stays_known_that_the_kernel_forgot(layers: Layers) -> None:
    for number in range(50):
        (Path(layers.lower[0]) / f"file{number}").touch()
    with mounted(layers) as union:
        for _ in range(3):
            assert len(os.listdir(union)) == 50
            Path("/proc/sys/vm/drop_caches").write_text("2")
        for name in os.listdir(union):
            (union / name).unlink()
        assert os.listdir(union) == []
        (union / "file1").mkdir()
        assert os.listdir(union / "file1") == []


def test_layers_are_free_for_another_mount_once_it_is_unmounted(layers: Layers) -> None:
    for number in range(3):
        with mounted(layers) as union:
            (union / f"file{number}").touch()
    assert sorted(os.listdir(layers.upper)) == ["file0", "file1", "file2"]
