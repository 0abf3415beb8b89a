"""Owners: what is mapped comes back, what has no number on either side is told."""

import errno

import pytest

from fuse_mount import owners
from unionfs.options import MountOptions, parse


def test_nothing_is_changed_unless_asked_for() -> None:
    ids = owners.users(MountOptions())
    assert [ids.shown(7), ids.on_disk(7), ids.on_disk(-1)] == [7, 7, -1]


def test_ranges_map_both_ways() -> None:
    options = parse("uidmapping=0:1000:1:1:100000:65536,gidmapping=:0:5:1").options
    ids = owners.users(options)
    assert [ids.shown(1000), ids.shown(100000), ids.shown(165535)] == [0, 1, 65536]
    assert [ids.on_disk(0), ids.on_disk(1), ids.on_disk(65536)] == [1000, 100000, 165535]
    assert ids.shown(1001) == 65534
    with pytest.raises(OSError, match="too large") as caught:
        ids.on_disk(65537)
    assert caught.value.errno == errno.EOVERFLOW
    assert owners.groups(options).shown(5) == 0


def test_one_owner_for_all() -> None:
    squashed = owners.users(MountOptions(squash_to_root=True, squash_to_uid=12))
    assert [squashed.shown(1000), squashed.on_disk(3)] == [12, 12]
    assert owners.groups(MountOptions(squash_to_root=True)).shown(1000) == 0
