"""The terms that `fuse_mount.terms` agrees with the kernel, seen in what the kernel then asks.

Each test watches the requests that a filesystem of its own gets.
"""

import errno
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, final

import pytest

from fuse_mount.device import mount
from tests.fuse_mount.tiny import CONTENT
from unionfs import mount_api
from unionfs.options import MountOptions
from unionfs.overlayfs import MountError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

_PATIENCE = 30  # seconds after which the kernel counts as waiting for ever
_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@final
class Served:
    """The tiny filesystem, mounted at target."""

    def __init__(self, target: Path, told: IO[str]) -> None:
        self.target = target
        self._told = told

    def requests(self) -> list[str]:
        """What was asked; unmounts."""
        mount_api.umount(str(self.target), lazy=False)
        *asked, last = self._told.read().splitlines()
        assert last == "unmounted"
        return asked


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Mounts the tiny filesystem with options; at the end it is unmounted, used or not."""
    with ExitStack() as stack:

        def made(options: str = "") -> Served:
            target = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            target.chmod(0o755)
            command = [sys.executable, "-m", "tests.fuse_mount.tiny", str(target), options]
            child = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(child.kill)
            stack.callback(_detach, target)
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            return Served(target, child.stdout)

        yield made


def _detach(target: Path) -> None:
    with suppress(OSError):  # it is unmounted already
        mount_api.umount(str(target), lazy=True)


def test_the_umask_is_ours_to_apply(serve: Callable[..., Served]) -> None:
    """Where a directory has a default ACL, it does not apply at all."""
    served = serve()
    with pytest.raises(PermissionError):
        _with_umask(0o027, lambda: os.mkdir(served.target / "new", 0o777))
    assert served.requests() == ["mkdir 40777 umask 27"]


def _with_umask(mask: int, act: Callable[[], None]) -> None:
    before = os.umask(mask)
    try:
        act()
    finally:
        os.umask(before)


def test_a_mebibyte_is_one_request(serve: Callable[..., Served]) -> None:
    """As large as the buffer that libfuse has, written and read, and read back right."""
    served = serve()
    block = mmap.mmap(-1, 1 << 20)
    fd = os.open(served.target / "file", os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [block], 1 << 20) == 1 << 20
    assert block[:] == CONTENT[1 << 20 :]
    assert os.pwrite(fd, block, 1 << 20) == 1 << 20
    os.close(fd)
    assert served.requests() == ["read 1048576 1048576", "write 1048576 1048576"]


def test_a_symlink_is_read_once(serve: Callable[..., Served]) -> None:
    served = serve()
    assert [os.readlink(served.target / "link") for _ in range(3)] == ["file"] * 3
    assert served.requests() == ["readlink"]


def test_cached_pages_stay_though_the_times_differ(serve: Callable[..., Served]) -> None:
    served = serve()
    fd = os.open(served.target / "file", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    first, second = (os.fstat(fd).st_mtime for _ in range(2))
    assert first != second
    assert {os.pread(fd, 4096, 0) for _ in range(3)} == {CONTENT[:4096]}
    assert os.fstat(fd).st_mtime != second
    assert os.pread(fd, 4096, 0) == CONTENT[:4096]
    os.close(fd)
    assert served.requests() == ["read 0 4096"]


def test_two_names_of_a_directory_are_looked_up_at_once(serve: Callable[..., Served]) -> None:
    """Neither is answered before both were asked for."""
    served = serve()
    seekers = [
        subprocess.Popen(["stat", served.target / name], stdout=subprocess.DEVNULL)
        for name in ("pair1", "pair2")
    ]
    try:
        assert [seeker.wait(_PATIENCE) for seeker in seekers] == [0, 0]
    finally:
        for seeker in seekers:
            seeker.kill()


def test_the_kernel_takes_set_id_bits_off(serve: Callable[..., Served]) -> None:
    """When someone writes who may not keep them; we are told of the new mode."""
    served = serve("allow_other")
    write = ["sh", "-c", 'printf x >> "$0"', served.target / "program"]
    subprocess.run([*_NOBODY, *write], check=True)
    assert served.requests() == ["chmod 100777", f"write {len(CONTENT)} 1"]


def test_who_may_enter(serve: Callable[..., Served]) -> None:
    def enters(served: Served) -> bool:
        command = [*_NOBODY, "ls", "-d", served.target / "file"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert enters(serve("allow_other"))
    assert not enters(serve("allow_root"))
    assert not enters(serve())


def test_the_table_of_mounts_shows_it(serve: Callable[..., Served]) -> None:
    target = serve("fsname=a b\\,c,nosuid,nodev,noexec,noatime,nosymfollow,ro").target
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = (line for line in lines if f" {target} " in line)
    attributes, _, what = line.split(f" {target} ")[1].partition(" - ")
    assert attributes.strip() == "ro,nosuid,nodev,noexec,noatime,nosymfollow"
    assert what.startswith(r"fuse.unionmount a\040b,c ro,")


def test_a_mount_that_the_kernel_refuses(tmp_path: Path) -> None:
    """One error, and the device is closed again."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MountError) as caught:
        mount(str(tmp_path), MountOptions(context="no security module here knows this"))
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(tmp_path)
    assert os.listdir("/proc/self/fd") == before
    assert not os.path.ismount(tmp_path)


def test_a_mount_that_is_gone_before_it_was_answered(tmp_path: Path) -> None:
    """The session ends as if it had been answered."""
    script = """
import sys
import pyfuse3, trio
from fuse_mount.connection import Connection
from fuse_mount.device import mount
from fuse_mount.terms import Terms, agree
from unionfs import mount_api
from unionfs.options import MountOptions

device = mount(sys.argv[1], MountOptions())
mount_api.umount(sys.argv[1], lazy=False)
connection = Connection(pyfuse3.Operations(), set(), device, agree(device, Terms()))
trio.run(connection.answer)
connection.close()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
