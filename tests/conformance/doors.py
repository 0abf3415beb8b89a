"""The doors into one union, each with the same operations: kernel, library, FUSE.

DOORS is the one list of what the suite runs. The kernel's door comes first, because the others
are measured by it. A mount door costs a mount (2 ms) or a child process (half a second); so the
suite opens a door once for many scenarios.
"""

import ctypes
import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, final

from tests.privilege import IN_USER_NAMESPACE
from tests.tree import Snapshot, View, get_flags, set_flags, snapshot
from unionfs import markers
from unionfs.options import parse

LOWERS = 3
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_PATIENCE = 60  # seconds that one scenario or one mount may take before it counts as hung
_KERNEL_OPTIONS = (
    "redirect_dir=on,index=off,metacopy=off,xino=off"
    if markers.trusted_permitted()
    else "userxattr,index=off,xino=on"  # without redirects xino has it mark new directories
)
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str | None = None) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which Python lacks."""
    _check(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


class Door(View, Protocol):
    """The operations of a union; names and arguments are those of unionfs.UnionFS."""

    def stat(self, path: str) -> os.stat_result: ...
    def access(self, path: str, mode: int) -> bool: ...
    def mkdir(self, path: str, mode: int = 0o777) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def mknod(self, path: str, mode: int = 0o600, device: int = 0) -> None: ...
    def mkfifo(self, path: str, mode: int = 0o666) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def link(self, src: str, dst: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, src: str, dst: str, flags: int = 0) -> None: ...
    def truncate(self, path: str, length: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None: ...
    def utime(
        self,
        path: str,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None: ...
    def statvfs(self, path: str = "/") -> os.statvfs_result: ...
    def getflags(self, path: str) -> int: ...
    def setflags(self, path: str, flags: int) -> None: ...
    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None: ...
    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None: ...


@final
class Folder:
    """A door by plain system calls below a directory: a mount point, or a layer on disk.

    program: the process that serves the mount, if one does.
    """

    def __init__(self, root: str, program: "subprocess.Popen[bytes] | None" = None) -> None:
        self._root = root
        self.program = program

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Kill the program when the block takes longer than any honest scenario."""
        if self.program is None:
            yield
            return
        timer = threading.Timer(_PATIENCE, self.program.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def confined(self) -> Iterator[None]:
        """Make the root the process' root: an absolute symlink then stays in the union."""
        outside = os.open("/", os.O_PATH)
        here = os.open(".", os.O_PATH)
        root, self._root = self._root, ""
        os.chroot(root)
        try:
            yield
        finally:
            os.fchdir(outside)
            os.chroot(".")
            os.fchdir(here)
            self._root = root
            os.close(outside)
            os.close(here)

    def alive(self) -> bool:
        """Whether the mount still answers."""
        try:
            os.statvfs(self._root)  # the kernel keeps no answer to that
        except OSError:
            return False
        return True

    def stat(self, path: str) -> os.stat_result:
        return os.stat(self._at(path))

    def lstat(self, path: str) -> os.stat_result:
        return os.lstat(self._at(path))

    def scandir(self, path: str) -> Iterable[os.DirEntry[str]]:
        with os.scandir(self._at(path)) as entries:
            return list(entries)

    def access(self, path: str, mode: int) -> bool:
        return os.access(self._at(path), mode)

    def os_open(self, path: str, flags: int, mode: int = 0o777) -> int:
        return os.open(self._at(path), flags, mode)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def mknod(self, path: str, mode: int = 0o600, device: int = 0) -> None:
        os.mknod(self._at(path), mode, device)

    def mkfifo(self, path: str, mode: int = 0o666) -> None:
        os.mkfifo(self._at(path), mode)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def link(self, src: str, dst: str) -> None:
        os.link(self._at(src), self._at(dst), follow_symlinks=False)

    def link_open(self, fd: int, path: str) -> None:
        os.link(f"/proc/self/fd/{fd}", self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, src: str, dst: str, flags: int = 0) -> None:
        source, target = os.fsencode(self._at(src)), os.fsencode(self._at(dst))
        _check(_libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flags), src)

    def truncate(self, path: str, length: int) -> None:
        os.truncate(self._at(path), length)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=follow_symlinks)

    def utime(
        self,
        path: str,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        if ns is None:
            os.utime(self._at(path), times, follow_symlinks=follow_symlinks)
        else:
            os.utime(self._at(path), ns=ns, follow_symlinks=follow_symlinks)

    def statvfs(self, path: str = "/") -> os.statvfs_result:
        return os.statvfs(self._at(path))

    def getflags(self, path: str) -> int:
        return get_flags(self._at(path))

    def setflags(self, path: str, flags: int) -> None:
        set_flags(self._at(path), flags)

    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=follow_symlinks)

    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=follow_symlinks)

    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]:
        return os.listxattr(self._at(path), follow_symlinks=follow_symlinks)

    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=follow_symlinks)


def confined(door: Door) -> AbstractContextManager[None]:
    """Run with the union as the root of the filesystem, as the library always does."""
    return door.confined() if isinstance(door, Folder) else nullcontext()


def watched(door: Door) -> AbstractContextManager[None]:
    """Run with a mount that hangs torn down; the library runs in this process, unwatched."""
    return door.watched() if isinstance(door, Folder) else nullcontext()


def alive(door: Door) -> bool:
    """Whether the door still answers."""
    return not isinstance(door, Folder) or door.alive()


@final
@dataclass(frozen=True, slots=True)
class Layers:
    """The directories of one union below base, and the place to mount it.

    writable: False for a union without an upper. more: mount options that all doors are given.
    data: whether the last lower layer is of data alone.
    """

    base: Path
    writable: bool = True
    more: str = ""
    data: bool = False

    @property
    def lower(self) -> list[str]:
        """Top first."""
        return [f"{self.base}/lower{number}" for number in range(1, LOWERS + 1)]

    @property
    def upper(self) -> str:
        return f"{self.base}/upper"

    @property
    def work(self) -> str:
        return f"{self.base}/workdir"

    @property
    def target(self) -> str:
        return f"{self.base}/union"

    @property
    def log(self) -> Path:
        """Where a FUSE mount of these layers complains."""
        return self.base / "log"

    @property
    def options(self) -> str:
        *merged, last = self.lower
        options = f"lowerdir={':'.join(merged)}:{':' * self.data}{last}"
        if self.writable:
            options += f",upperdir={self.upper},workdir={self.work}"
        return f"{options},{self.more}" if self.more else options

    def make(self, upper_at: Path | None = None, lower_at: Path | None = None) -> None:
        """Make the directories, empty.

        upper_at: another folder for upper and work to lie in. lower_at: for the lower layers.
        """
        places = {self.upper: upper_at, self.work: upper_at}
        places |= dict.fromkeys(self.lower, lower_at)
        os.makedirs(self.target)
        for path, place in places.items():
            if place is None:
                os.mkdir(path)
            else:
                (place / os.path.basename(path)).mkdir()
                os.symlink(place / os.path.basename(path), path)

    def leftovers(self) -> list[str]:
        """What stays in work: nothing but the whiteout that the kernel keeps to link from."""
        return [
            entry.name
            for folder in ("work", "index")
            if os.path.isdir(f"{self.work}/{folder}")
            for entry in Folder(f"{self.work}/{folder}").scandir(".")
            if folder == "work" or entry.name.startswith("#")
            if not stat.S_ISCHR(entry.stat(follow_symlinks=False).st_mode)
        ]

    def complaints(self) -> list[str]:
        """Lines of a FUSE mount's log that no good run writes."""
        if not self.log.exists():
            return []
        bad = ("Traceback", "WARNING", "ERROR", "CRITICAL")
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if any(word in line for word in bad)]

    def indexed(self) -> Snapshot:
        """The files in the index, in the order of what they hold: their names are handles."""
        folder = f"{self.work}/index"
        found = snapshot(Folder(folder)) if os.path.isdir(folder) else {}
        entries = sorted(str(seen) for name, seen in found.items() if name[0] not in "#.")
        return {f"index {number}": seen for number, seen in enumerate(entries)}


def _unmount(target: str) -> None:
    """Detach what is mounted at target, even when a mount is dead or busy.

    Where it is neither, its layers are free for another mount afterwards.
    """
    if subprocess.run(["umount", target], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "-l", target], check=False, capture_output=True)


@contextmanager
def kernel(layers: Layers) -> Iterator[Door]:
    """Kernel overlayfs."""
    options = f"{_KERNEL_OPTIONS},{layers.options}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, layers.target], check=True)
    try:
        yield Folder(layers.target)
    finally:
        _unmount(layers.target)


@contextmanager
def library(layers: Layers) -> Iterator[Door]:
    """The library, in this process."""
    unionfs: Any = import_module("unionfs")
    upper, work = (layers.upper, layers.work) if layers.writable else (None, None)
    parsed = parse(layers.options)
    with unionfs.LayerStack(
        parsed.lower, upper, work, options=parsed.options, data=parsed.data
    ) as stack:
        yield cast(Door, unionfs.UnionFS(stack))


@contextmanager
def fuse(layers: Layers) -> Iterator[Door]:
    """The FUSE mount, with the C extension where it is built."""
    with _fuse_mount(layers, {}) as door:
        yield door


@contextmanager
def fuse_cached(layers: Layers) -> Iterator[Door]:
    """Our FUSE mount as an ordinary user has it: its data goes through the kernel's cache."""
    with _fuse_mount(layers, {}, "passthrough=0") as door:
        yield door


@contextmanager
def fuse_pure(layers: Layers) -> Iterator[Door]:
    """The FUSE mount in Python alone."""
    with _fuse_mount(layers, {"UNIONMOUNT_PURE": "1"}) as door:
        yield door


@contextmanager
def _fuse_mount(layers: Layers, environment: dict[str, str], *more: str) -> Iterator[Door]:
    options = ",".join([layers.options, "allow_other", *more])
    command = [sys.executable, "-m", "fuse_mount", "-f", "--log", str(layers.log), "-o", options]
    with subprocess.Popen([*command, layers.target], env={**os.environ, **environment}) as daemon:
        try:
            _await_mount(daemon, layers.target)
            yield Folder(layers.target, daemon)
        finally:
            _unmount(layers.target)
            try:
                daemon.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _await_mount(daemon: subprocess.Popen[bytes], target: str) -> None:
    """Return once something is mounted at target: the kernel tells of every change."""
    pidfd = os.pidfd_open(daemon.pid)
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
            changes = select.poll()
            changes.register(mounts, select.POLLPRI)
            changes.register(pidfd, select.POLLIN)
            while f" {target} " not in mounts.read():
                ready = changes.poll(_PATIENCE * 1000)
                if not ready or daemon.poll() is not None:
                    raise RuntimeError(f"{target}: the FUSE mount did not come up")
                mounts.seek(0)
    finally:
        os.close(pidfd)


Opener = Callable[[Layers], AbstractContextManager[Door]]

DOORS: dict[str, Opener] = {
    "kernel": kernel,
    "library": library,
    "fuse": fuse,
    "fuse-cached": fuse_cached,
    "fuse-pure": fuse_pure,
}
if IN_USER_NAMESPACE:
    del DOORS["fuse-cached"]  # none of the mounts has passthrough, so it would be fuse once more
