"""A mount's root is like any directory: the kernel keeps what it was told of it."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from fuse_mount import subtree
from fuse_mount.terms import Terms
from tests.conformance.doors import DOORS, Folder, Layers
from tests.privilege import NO_OTHER_IDS, machine_only
from tests.tree import build, file
from unionfs import mount_api
from unionfs.mounting import list_mounts
from unionfs.options import MountOptions

_PATIENCE = 30  # seconds after which a call counts as waiting for the stopped program
_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@machine_only(NO_OTHER_IDS)
def test_who_does_not_own_the_root_waits_for_nobody(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    layers = Layers(tmp_path)
    layers.make()
    build(layers.lower[0], {"d/file": file()})
    look = [*_NOBODY, "stat", f"{layers.target}/d/file", f"{layers.target}/d/file"]
    with DOORS["fuse"](layers) as door:
        assert isinstance(door, Folder) and door.program
        subprocess.run(look, check=True, stdout=subprocess.DEVNULL)
        door.program.send_signal(signal.SIGSTOP)
        try:
            subprocess.run(look, check=True, stdout=subprocess.DEVNULL, timeout=_PATIENCE)
        finally:
            door.program.send_signal(signal.SIGCONT)


def test_it_is_listed_as_the_union_that_it_is(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    layers.make()
    with DOORS["fuse"](layers):
        (listed,) = [found for found in list_mounts() if found.target == layers.target]
        assert listed.lower == tuple(layers.lower) and not listed.dead


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_nothing_stays_where_the_kernel_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(mount_fd: int, path: str) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(mount_api, "open_tree", refuse)
    before = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
    assert subtree.mount(str(tmp_path), MountOptions(), Terms()) is None
    assert not os.path.ismount(tmp_path)
    assert (os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")) == before
