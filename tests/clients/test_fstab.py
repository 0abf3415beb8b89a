"""mount(8) and fstab mount our unions by type, through libfuse's mount.fuse3.

For the type `fuse.NAME`, mount.fuse3 has /bin/sh run `NAME SOURCE TARGET -o OPTIONS,dev,suid`.
PATH is gone by then, so NAME must lie in a folder of the shell's built-in path; the room puts it
into the first one, and whoever uses fstab links it into /usr/local/bin.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.room import CommandFailed, Room


class Union(NamedTuple):
    """The folders of a union, and its options for mount(8)."""

    lower: Path
    upper: Path
    work: Path
    target: Path

    @property
    def options(self) -> str:
        """-o for a writable mount."""
        return f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"


@pytest.fixture
def room(program: Path, folder: Path) -> Iterator[Room]:
    """A room, for what it mounts; `folder` has checked that the machine can have one."""
    assert folder.is_dir()
    with Room(program) as made:
        yield made


@pytest.fixture
def union(tmp_path: Path) -> Union:
    """Folders with a file below."""
    made = Union(*(tmp_path / name for name in Union._fields))
    for path in made:
        path.mkdir()
    (made.lower / "file").write_text("lower\n")
    return made


def _type_at(room: Room, target: Path) -> list[str]:
    return [mount.fstype for mount in room.mounts() if mount.target == str(target)]


def _fstab(path: Path, program: Path, union: Union, options: str) -> Path:
    escaped = [str(text).replace(" ", "\\040") for text in (union.target, options)]
    path.write_text(f"{program.name} {escaped[0]} fuse.{program.name} {escaped[1]} 0 0\n")
    return path


def test_mount_by_type(room: Room, program: Path, union: Union) -> None:
    """mount -t fuse.NAME: mounted when mount(8) returns, written through, gone after umount."""
    kind = f"fuse.{program.name}"
    room.run("mount", "-t", kind, program.name, union.target, "-o", union.options)
    assert _type_at(room, union.target) == [kind]
    room.run("sh", "-ec", f"cd {union.target}; cat file; echo upper > file; echo new > new")
    assert (union.lower / "file").read_text() == "lower\n"
    assert (union.upper / "file").read_text() == "upper\n"
    assert (union.upper / "new").read_text() == "new\n"

    room.run("umount", union.target)
    assert _type_at(room, union.target) == []
    assert room.wait_for_end(f"lowerdir={union.lower}") == []


@pytest.mark.parametrize("how", ["target", "all"])
def test_mount_from_fstab(
    room: Room, program: Path, union: Union, tmp_path: Path, how: str
) -> None:
    """As an administrator types it, and as the boot does it; with options only mount(8) reads."""
    options = f"defaults,nofail,x-test.note=1,_netdev,{union.options}"
    table = _fstab(tmp_path / "fstab", program, union, options)
    room.run("mount", "--fstab", table, "--all" if how == "all" else union.target)

    assert _type_at(room, union.target) == [f"fuse.{program.name}"]
    assert room.run("cat", union.target / "file") == "lower\n"
    room.run("umount", union.target)


def test_read_only_entry(room: Room, program: Path, union: Union, tmp_path: Path) -> None:
    """ro, several layers and no upper; a folder with a space in its name."""
    above = tmp_path / "with space"
    above.mkdir()
    (above / "above").write_text("above\n")
    table = _fstab(tmp_path / "fstab", program, union, f"ro,lowerdir={above}:{union.lower}")
    room.run("mount", "--fstab", table, union.target)

    assert room.run("cat", union.target / "file", union.target / "above") == "lower\nabove\n"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        room.run("touch", union.target / "new")
    room.run("umount", union.target)


def test_missing_layer(room: Room, program: Path, union: Union, tmp_path: Path) -> None:
    """mount(8) fails, with the reason that the program prints, and nothing is mounted."""
    absent = tmp_path / "absent"
    kind = f"fuse.{program.name}"
    with pytest.raises(CommandFailed, match="No such file or directory"):
        room.run("mount", "-t", kind, program.name, union.target, "-o", f"lowerdir={absent}")
    assert _type_at(room, union.target) == []
