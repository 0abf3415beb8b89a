"""The fast path: what costs no request, what passes the program by, and what is left to Python.

That its answers are right is the conformance suite's to show, which plays it with passthrough and
without, the doors fuse and fuse-cached.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuse_mount import accelerate
from tests.conformance.doors import Folder, Layers, Opener, fuse, fuse_cached
from tests.privilege import NO_PASSTHROUGH, machine_only
from tests.tree import build, file

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts"),
    pytest.mark.skipif(not accelerate.AVAILABLE, reason="the fast path was not built"),
]

_LARGE = 4 << 20  # bytes
_FEW = 1 << 16  # bytes that requests and replies come to, beside the data


@contextmanager
def _mounted(layers: Layers, opener: Opener = fuse) -> Iterator[Folder]:
    with opener(layers) as door:
        assert isinstance(door, Folder)
        while ": mounted" not in layers.log.read_text():
            os.statvfs(layers.target)  # what it does to start is not to be measured
        yield door
    assert layers.complaints() == []


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path)
    made.make()
    return made


def _moved(door: Folder) -> dict[str, int]:
    """What the mount's program has read and written so far: calls and bytes."""
    assert door.program
    text = Path(f"/proc/{door.program.pid}/io").read_text()
    return {name: int(value) for name, value in (line.split(": ") for line in text.splitlines())}


def test_a_known_tree_costs_no_request(layers: Layers) -> None:
    build(layers.lower[0], {f"d/{number}": file(b"x") for number in range(50)})
    with _mounted(layers) as door:
        folder = Path(layers.target, "d")

        def look() -> list[os.stat_result]:
            assert not folder.joinpath("absent").exists()
            return [folder.joinpath(name).stat() for name in os.listdir(folder)]

        def cost() -> int:
            """How often the program reads; it may still be starting, but not for ever."""
            before = _moved(door)["syscr"]
            assert look() == look()
            return _moved(door)["syscr"] - before

        assert 0 in [cost() for _ in range(100)]


def test_what_the_kernel_forgets_is_given_back(layers: Layers) -> None:
    folder = Path(layers.lower[0])
    for number in range(40_000):
        os.close(os.open(folder / f"{number:0200}", os.O_CREAT))
    with _mounted(layers) as door:

        def resident() -> int:
            """Bytes of the program."""
            assert door.program
            pages = int(Path(f"/proc/{door.program.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGESIZE")

        before = resident()
        assert sum(entry.stat().st_size for entry in os.scandir(layers.target)) == 0
        known = resident()
        assert known - before > 40_000 * 200

        def given_back() -> bool:
            # the kernel drops the names that nobody uses, and sends what it forgets in its own time
            subprocess.run(["mount", "-i", "-o", "remount", layers.target], check=True)
            for _ in range(1000):
                os.statvfs(layers.target)
            return known - resident() > (known - before) / 4

        assert any(given_back() for _ in range(200))


def test_names_that_have_just_changed_are_not_kept(layers: Layers) -> None:
    """The kernel may have put some from before the change among those that it was told last."""
    with _mounted(layers) as door:
        folder = Path(layers.target, "d")
        folder.mkdir()
        (folder / "new").touch()
        assert os.listdir(folder) == ["new"]
        before = _moved(door)["syscr"]
        assert os.listdir(folder) == ["new"]
        assert _moved(door)["syscr"] > before


def test_a_linked_file_is_listed_with_its_new_number(layers: Layers) -> None:
    """Its copy is a file of its own, and the kernel keeps what it was told of the directory."""
    build(layers.lower[0], {"d/one": file(b"x")})
    os.link(f"{layers.lower[0]}/d/one", f"{layers.lower[0]}/d/two")
    with _mounted(layers):
        folder = Path(layers.target, "d")
        assert len({entry.inode() for entry in os.scandir(folder)}) == 1
        with open(folder / "one", "ab") as one:
            one.write(b"y")
        assert {entry.name: entry.inode() for entry in os.scandir(folder)} == {
            name: (folder / name).stat().st_ino for name in ("one", "two")
        }


@machine_only(NO_PASSTHROUGH)
def test_data_of_upper_passes_the_program_by(layers: Layers) -> None:
    with _mounted(layers) as door:
        path = Path(layers.target, "large")
        before = _moved(door)
        path.write_bytes(b"x" * _LARGE)
        assert path.read_bytes() == b"x" * _LARGE
        after = _moved(door)
    assert after["rchar"] - before["rchar"] < _FEW
    assert after["wchar"] - before["wchar"] < _FEW


def test_without_passthrough_data_is_read_once(layers: Layers) -> None:
    build(layers.lower[0], {"large": file(b"x" * _LARGE)})
    with _mounted(layers, fuse_cached) as door:
        path = Path(layers.target, "large")
        assert path.read_bytes() == b"x" * _LARGE
        before = _moved(door)
        assert path.read_bytes() == b"x" * _LARGE
        assert _moved(door)["rchar"] - before["rchar"] < _FEW


@machine_only(NO_PASSTHROUGH)
def test_a_known_lower_file_is_opened_when_it_is_read(layers: Layers) -> None:
    """And stays readable when its name goes before that."""
    build(layers.lower[0], {"file": file(b"lower"), "other": file(b"other")})
    with _mounted(layers) as door:
        target = Path(layers.target)
        assert door.program
        descriptors = Path(f"/proc/{door.program.pid}/fd")

        def held() -> int:
            targets = [os.readlink(descriptor) for descriptor in descriptors.iterdir()]
            return sum(target.endswith("/file") for target in targets)

        assert target.joinpath("file").read_bytes() == b"lower"
        opened = [os.open(target / "file", os.O_RDONLY) for _ in range(20)]
        assert held() == 0
        target.joinpath("file").unlink()
        assert [os.pread(fd, 9, 0) for fd in opened] == [b"lower"] * 20
        assert held() == 1
        other = os.open(target / "other", os.O_RDONLY)
        os.rename(target / "other", target / "file")
        target.joinpath("file").write_bytes(b"upper")
        assert os.pread(other, 9, 0) == b"upper"
        for fd in [*opened, other]:
            os.close(fd)


def test_a_listing_goes_on_while_names_come_and_go(layers: Layers) -> None:
    """No name that stays is left out or listed twice, wherever the reading stands."""
    stay = {f"stay-{number:04}" for number in range(2000)}
    build(layers.lower[0], {f"d/{name}": file(b"") for name in stay})
    build(layers.lower[0], {f"d/go-{number}": file(b"") for number in range(500)})
    with _mounted(layers):
        folder = Path(layers.target, "d")
        seen = []
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                seen.append(entry.name)
                if number % 100 == 0 and number < 40000:
                    folder.joinpath(f"come-{number}").touch()
                    folder.joinpath(f"go-{number // 100}").unlink(missing_ok=True)
        assert sorted(name for name in seen if name.startswith("stay")) == sorted(stay)


@pytest.mark.parametrize("option", ["debug", "index=on", "xattr_permissions=2"])
def test_options_that_only_python_knows(layers: Layers, option: str) -> None:
    """The mount is slower and right."""
    build(layers.lower[0], {"d/file": file(b"lower")})
    layers = Layers(layers.base, more=option)
    with fuse(layers):
        path = Path(layers.target, "d/file")
        path.write_bytes(b"new")
        assert path.read_bytes() == b"new"
