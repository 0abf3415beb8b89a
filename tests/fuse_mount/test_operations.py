"""What is the FUSE mount's own, beside what every door does (tests/conformance)."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.doors import Folder, Layers, fuse
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


def test_owners_are_mapped(layers: Layers) -> None:
    lower = Path(layers.lower[0]) / "file"
    lower.touch()
    os.chown(lower, 100005, 100006)
    ranges = ((0, 100000, 65536),)
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
        with open(union / "c", "a") as file:
            file.write("!")
        assert (union / "b").read_text() == "two!"
        assert os.path.samefile(union / "b", union / "c")


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
