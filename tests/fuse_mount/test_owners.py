"""Owners: what is mapped comes back, what has no number on either side is told.

Options and what they show and write are fuse-overlayfs', which is asked.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_mount import owners
from tests.conformance.doors import Layers
from tests.privilege import NO_OTHER_IDS, machine_only
from unionfs.options import MountOptions, parse

_Seen = dict[str, tuple[int, int]]


def _owners(folder: Path) -> _Seen:
    return {
        str(path.relative_to(folder)): (path.lstat().st_uid, path.lstat().st_gid)
        for path in folder.rglob("*")
        if not path.name.startswith(".wh.")  # which only they make, to say that it is opaque
    }


def _story(program: list[str], folder: Path, options: str, **environment: str) -> list[_Seen]:
    """Owners that a union shows before and after changes, and those on disk then."""
    layers = Layers(folder)
    layers.make()
    lower, union = Path(layers.lower[0]), Path(layers.target)
    for name, owner in (("mapped", 100005), ("first", 100000), ("root's", 0), ("beyond", 7)):
        (lower / name).touch()
        os.chown(lower / name, owner, owner)
    options = f"{layers.options},{options},allow_other"
    command = [*program, "-o", options, layers.target]
    subprocess.run(command, check=True, env=os.environ | environment)
    try:
        seen = [_owners(union)]
        os.chown(union / "mapped", 3, -1)
        os.chown(union / "first", 9, 9)
        (union / "root's").chmod(0o700)
        (union / "file").write_bytes(b"written")
        (union / "file").rename(union / "renamed")
        (union / "made").mkdir()
        os.mkfifo(union / "pipe")
        (union / "link").symlink_to("made")
        os.chown(union / "link", 99, 70000, follow_symlinks=False)
        seen.append(_owners(union))
    finally:
        subprocess.run(["umount", layers.target], check=True)
    return [*seen, _owners(Path(layers.upper))]


@machine_only(NO_OTHER_IDS)
@pytest.mark.parametrize(
    "options",
    [
        "uidmapping=100000:0:65536,gidmapping=100000:0:65536",
        "uidmapping=0:1:1000,gidmapping=0:1:1000",
        "uidmapping=100000:0:100:0:1000:50,gidmapping=100000:0:100",
        "squash_to_root",
        "squash_to_uid=12",
        "squash_to_uid=12,squash_to_gid=13",
    ],
)
def test_owners_are_those_of_fuse_overlayfs(options: str, tmp_path: Path) -> None:
    theirs = _story(["fuse-overlayfs"], tmp_path / "theirs", options)
    assert theirs[0]["mapped"] != (100005, 100005)
    ours = [sys.executable, "-m", "fuse_mount"]
    assert _story(ours, tmp_path / "ours", options) == theirs
    assert _story(ours, tmp_path / "pure", options, UNIONMOUNT_PURE="1") == theirs


def test_nothing_is_changed_unless_asked_for() -> None:
    ids = owners.users(MountOptions())
    assert [ids.shown(7), ids.on_disk(7), ids.on_disk(-1)] == [7, 7, -1]


def test_ranges_map_both_ways() -> None:
    options = parse("uidmapping=1000:0:1:100000:1:65536,gidmapping=:5:0:1").options
    ids = owners.users(options)
    assert [ids.shown(1000), ids.shown(100000), ids.shown(165535)] == [0, 1, 65536]
    assert [ids.on_disk(0), ids.on_disk(1), ids.on_disk(65536)] == [1000, 100000, 165535]
    assert ids.shown(1001) == 65534
    assert ids.on_disk(65537) == 65534
    assert owners.groups(options).shown(5) == 0


def test_one_owner_for_all() -> None:
    squashed = owners.users(MountOptions(squash_to_root=True, squash_to_uid=12))
    assert [squashed.shown(1000), squashed.on_disk(3)] == [12, 3]
    assert owners.groups(MountOptions(squash_to_root=True)).shown(1000) == 0
