"""A disk that records every write and flush, and answers EIO to those that it is told to.

It is a file in a FUSE filesystem, `python -m tests.disk TARGET IMAGE LOG`, below a loop device that
opens it for direct I/O. So requests arrive as the filesystem on that device sends them: what was
answered before a flush is on the disk once that is answered, of later writes any may be, in any
order. `outages` makes the disks that a loss of power can leave, as the kernel's dm-log-writes does
(Documentation/admin-guide/device-mapper/log-writes.rst). Cost: 0.3 s, and 50 µs a request.
"""

import errno
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

_NAME = "disk"
_INODE = 2
_MARK = "user.mark"
_FAIL = {"write": "user.fail-write", "read": "user.fail-read"}
_HEADER = struct.Struct("<cQI")  # kind, offset, length of what follows
_WRITE, _FLUSH, _DONE = b"w", b"f", b"d"


@final
class _Server(pyfuse3.Operations):
    """One file, which is the image. Requests are answered one by one, in the order they come.

    Its attributes tell what to do: a mark goes into the log; writes, or reads, of data that holds
    some bytes fail for as long as an attribute holds these.
    """

    def __init__(self, image: str, log: str) -> None:
        super().__init__()
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._failing: dict[str, bytes] = {}

    def _note(self, kind: bytes, offset: int = 0, data: bytes = b"") -> None:
        os.write(self._log, _HEADER.pack(kind, offset, len(data)) + data)

    def _fails(self, what: str, data: bytes) -> None:
        pattern = self._failing.get(_FAIL[what])
        if pattern is not None and pattern in data:
            raise FUSEError(errno.EIO)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        found = EntryAttributes()
        found.st_ino = inode
        found.st_mode = stat.S_IFREG | 0o600 if inode == _INODE else stat.S_IFDIR | 0o700
        found.st_size = os.fstat(self._image).st_size if inode == _INODE else 0
        return found

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return await self.getattr(inode, ctx)  # of times, which nobody looks at

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if os.fsdecode(name) != _NAME:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(_INODE, ctx)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=self._image, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = os.pread(fh, size, off)
        self._fails("read", data)
        return data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._fails("write", buf)
        self._note(_WRITE, off, buf)
        return os.pwrite(fh, buf, off)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._note(_FLUSH)

    async def flush(self, fh: int) -> None:
        """Closing keeps nothing back."""

    async def release(self, fh: int) -> None:
        """The image stays open."""

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if os.fsdecode(name) == _MARK:
            self._note(_DONE)
        else:
            self._failing[os.fsdecode(name)] = value

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._failing.pop(os.fsdecode(name), None)


@final
@dataclass(frozen=True, slots=True)
class Disk:
    """A disk in use. device: what to mount. log: what it records, for `recorded`. file: itself."""

    device: str
    log: Path
    file: Path

    def mark(self) -> None:
        """Note that a step has come to its end: what it promised must outlive an outage."""
        os.setxattr(self.file, _MARK, b"")

    @contextmanager
    def failing(self, what: str, data: bytes = b"") -> Iterator[None]:
        """Answer EIO to each "write", or "read", of blocks that hold data."""
        os.setxattr(self.file, _FAIL[what], data)
        try:
            yield
        finally:
            os.removexattr(self.file, _FAIL[what])


@contextmanager
def disk(folder: Path, image: Path) -> Iterator[Disk]:
    """A disk that holds what image does, which is written to. It lies in folder, made for it."""
    folder.mkdir()
    served, log = folder / "served", folder / "log"
    served.mkdir()
    command = [sys.executable, "-m", "tests.disk", str(served), str(image), str(log)]
    with ExitStack() as held:
        server = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        held.callback(subprocess.run, ["umount", "-l", str(served)], check=True)
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        with looped(served / _NAME, "--direct-io=on") as device:
            yield Disk(device, log, served / _NAME)


@contextmanager
def looped(file: Path, *options: str) -> Iterator[str]:
    """A loop device over a file, gone when nothing uses it after the block."""
    command = ["losetup", "--find", "--show", *options, str(file)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(what: str | Path, target: Path, *options: str) -> Iterator[Path]:
    """A device, or an image, mounted at target, a directory that is made where it is missing."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, what, target], check=True)
    try:
        yield target
    finally:
        if subprocess.run(["umount", target], capture_output=True).returncode:
            subprocess.run(["umount", "-l", target], check=True)


def write_log(folder: Path) -> None:
    """Have the filesystem of folder write what was done in it, but no file's data."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.mkdir("log", dir_fd=fd)
        os.fsync(fd)
        os.rmdir("log", dir_fd=fd)
    finally:
        os.close(fd)


_MAKE = {
    "ext4": ("64M", ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", "-J", "size=4"]),
    "xfs": ("300M", ["mkfs.xfs", "-q"]),
    "xfs without reflinks": ("300M", ["mkfs.xfs", "-q", "-m", "reflink=0"]),
    "btrfs": ("128M", ["mkfs.btrfs", "-q", "--mixed"]),
}


def make_image(image: Path, kind: str) -> None:
    """An empty filesystem: ext4, xfs or btrfs."""
    size, command = _MAKE[kind]
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run([*command, image], check=True, capture_output=True)


Write = tuple[int, bytes]
"""The offset in bytes, and the data."""


@final
@dataclass(frozen=True, slots=True)
class Stretch:
    """What a disk was told from one flush to the next. done: the marks made by its end."""

    writes: list[Write]
    done: int


def recorded(log: Path) -> list[Stretch]:
    """All that a disk was told, in its order."""
    stretches: list[Stretch] = []
    writes: list[Write] = []
    done = 0
    with log.open("rb") as stream:
        while header := stream.read(_HEADER.size):
            kind, offset, length = _HEADER.unpack(header)
            data = stream.read(length)
            if kind == _WRITE:
                writes.append((offset, data))
            elif kind == _DONE:
                done += 1
            else:
                stretches.append(Stretch(writes, done))
                writes = []
    return [*stretches, Stretch(writes, done)]


@final
@dataclass(frozen=True, slots=True)
class Outage:
    """A loss of power. image: the disk then. done: the marks that came before. what: for people."""

    image: Path
    done: int
    what: str


def outages(
    image: Path, stretches: Sequence[Stretch], scratch: Path, subsets: int, seed: int = 0
) -> Iterator[Outage]:
    """The disks that are left when the power goes, at any point between two flushes.

    image: the disk before, to which the writes are made. Of each stretch none of the writes is
    there, or random ones, in as many cases as subsets says; all of them are what the next begins
    with. scratch: a file for the outage's image; it is the caller's until the next one.
    """
    choose = random.Random(seed)
    for number, stretch in enumerate(stretches):
        every = range(len(stretch.writes))
        cases = {tuple(index for index in every if choose.random() < 0.5) for _ in range(subsets)}
        if every:
            for chosen in sorted({(), *cases}):
                copy_image(image, scratch)
                _write(scratch, [stretch.writes[index] for index in chosen])
                what = f"after flush {number}, of {len(every)} writes these: {chosen}"
                yield Outage(scratch, stretch.done, what)
            _write(image, stretch.writes)
    yield Outage(image, stretches[-1].done, "after everything")


def copy_image(image: Path, copy: Path) -> None:
    """With its holes."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, copy], check=True)


def _write(image: Path, writes: Sequence[Write]) -> None:
    with image.open("r+b", buffering=0) as file:
        for offset, data in writes:
            os.pwrite(file.fileno(), data, offset)


async def _serve() -> None:
    print("ready", flush=True)
    await pyfuse3.main()


def main(target: str, image: str, log: str) -> None:
    """Serve until it is unmounted."""
    pyfuse3.init(_Server(image, log), target, {"fsname=disk"})
    trio.run(_serve)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
