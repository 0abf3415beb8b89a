"""Many clients at once, and system calls that a FUSE mount rarely sees."""

import ctypes
import fcntl
import mmap
import os
import select
import shutil
import socket
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conformance.doors import Layers, fallocate, fuse, kernel
from tests.privilege import IN_USER_NAMESPACE
from tests.tree import build, error_name, file
from unionfs import system

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

_CLIENTS = 64
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    made = Layers(tmp_path)
    made.make()
    return made


@pytest.fixture
def union(layers: Layers) -> Iterator[Path]:
    """The mount; afterwards its log must be clean."""
    build(layers.lower[0], {f"shared/{number}": file(b"lower") for number in range(_CLIENTS)})
    with fuse(layers):
        yield Path(layers.target)
    assert layers.complaints() == []


def test_many_clients(union: Path) -> None:
    """Each with files of its own and with those of all, in one directory: nothing is lost."""
    shared = union / "shared"

    def work(number: int) -> None:
        for _ in range(4):
            names = set(os.listdir(shared))
            assert {f"{other}" for other in range(_CLIENTS)} <= names, "none is ever missing"
            own = shared / f"own-{number}"
            own.mkdir()
            assert own.name in os.listdir(shared), "nor a new one, once it is made"
            (own / "file").write_bytes(b"x" * number)
            assert (own / "file").read_bytes() == b"x" * number
            (own / "file").rename(own / "renamed")
            os.link(own / "renamed", own / "linked")
            with open(shared / f"{number}", "ab") as mine:
                mine.write(b"+")
            with suppress(FileExistsError):
                os.symlink("0", shared / "link")
            assert (shared / "link").read_bytes().startswith(b"lower")
            (shared / "all").write_bytes(b"whole")
            for name in ("renamed", "linked"):
                (own / name).unlink()
            own.rmdir()

    with ThreadPoolExecutor(_CLIENTS) as clients:
        list(clients.map(work, range(_CLIENTS)))
    assert set(os.listdir(shared)) == {*map(str, range(_CLIENTS)), "link", "all"}
    assert (shared / "all").read_bytes() == b"whole"
    for number in range(_CLIENTS):
        assert (shared / str(number)).read_bytes() == b"lower++++"


def test_files_that_the_disk_has_yet_to_bring(layers: Layers) -> None:
    """Opened by many for the first time while they are changed: nobody waits for ever, and what is
    read in the end is what was written."""
    names = [f"file-{number}" for number in range(400)]
    for name in names:
        path = Path(layers.lower[0], name)
        path.write_bytes(b"lower" * 1000)
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with fuse(layers):
        union = Path(layers.target)

        def read(_: int) -> None:
            for name in names:
                assert (union / name).read_bytes() in (b"lower" * 1000, b"upper" * 1000)

        def write() -> None:
            for name in names[::-3]:
                with open(union / name, "r+b") as opened:
                    opened.write(b"upper" * 1000)

        with ThreadPoolExecutor(_CLIENTS) as clients:
            written = clients.submit(write)
            list(clients.map(read, range(_CLIENTS // 4)))
            written.result()
        for number, name in enumerate(reversed(names)):
            word = b"lower" if number % 3 else b"upper"
            assert (union / name).read_bytes() == word * 1000
    assert layers.complaints() == []


def test_attributes_of_a_removed_file_are_not_set_in_its_layer(layers: Layers) -> None:
    lower = f"{layers.lower[0]}/f"
    build(layers.lower[0], {"f": file(b"data", xattrs={"user.old": b"1"})})
    with fuse(layers):
        fd = os.open(f"{layers.target}/f", os.O_RDONLY)
        try:
            os.unlink(f"{layers.target}/f")
            os.setxattr(fd, "user.new", b"1")
            os.removexattr(fd, "user.old")
            assert os.listxattr(fd) == ["user.new"]
            assert os.pread(fd, 9, 0) == b"data"
        finally:
            os.close(fd)
    assert os.listxattr(lower) == ["user.old"]


Opener = Callable[..., int]
"""Opens a name in the directory; "" is the directory itself."""


def _raw(function: str, *arguments: object) -> None:
    """Call the C library."""
    if getattr(_libc, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _connect(directory: int) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"/proc/self/fd/{directory}/socket")
        server.listen()
        client.connect(f"/proc/self/fd/{directory}/socket")


def _run(program: str) -> None:
    Path(program).write_text("no program")
    os.chmod(program, 0o755)
    os.posix_spawn(program, ["program"], {})


_FAR = 1 << 62
_READ, _WRITE = os.O_RDONLY, os.O_RDWR
CALLS: dict[str, Callable[[Opener, Path], object]] = {
    "FIONREAD": lambda at, top: fcntl.ioctl(at("0"), termios.FIONREAD, bytes(8)),
    "unknown ioctl": lambda at, top: fcntl.ioctl(at("0"), 0x5EADBEEF, bytes(8)),
    "FIBMAP": lambda at, top: fcntl.ioctl(at("0"), 1, struct.pack("i", 0)),
    "hole punched": lambda at, top: fallocate(at("0"), 3, 0, 2),
    "SEEK_HOLE": lambda at, top: os.lseek(at("0"), 0, os.SEEK_HOLE),
    "SEEK_DATA past the end": lambda at, top: os.lseek(at("0"), 1 << 40, os.SEEK_DATA),
    "copy_file_range": lambda at, top: os.copy_file_range(at("0"), at("1"), 3),
    "flock": lambda at, top: fcntl.flock(at("0"), fcntl.LOCK_EX | fcntl.LOCK_NB),
    "lockf": lambda at, top: fcntl.lockf(at("0"), fcntl.LOCK_EX | fcntl.LOCK_NB),
    "F_NOTIFY": lambda at, top: fcntl.fcntl(at("", _READ), fcntl.F_NOTIFY, 0),
    "epoll": lambda at, top: select.epoll().register(at("0")),
    "O_DIRECT": lambda at, top: os.preadv(at("0", _WRITE | os.O_DIRECT), [mmap.mmap(-1, 4096)], 0),
    "O_TMPFILE": lambda at, top: at("", os.O_TMPFILE | _WRITE),
    "odd flags": lambda at, top: at("0", _WRITE | os.O_NOATIME | os.O_ASYNC | 1 << 30),
    "access mode 3": lambda at, top: at("0", 3),
    "execve of no program": lambda at, top: _run(f"{top}/program"),
    "read of a directory": lambda at, top: os.read(at("", _READ), 10),
    "getdents of a file": lambda at, top: os.listdir(at("0")),
    "huge read": lambda at, top: os.pread(at("0"), 1 << 26, 0),
    "read past the end": lambda at, top: os.pread(at("0"), 10, _FAR),
    "truncate too far": lambda at, top: os.truncate(f"{top}/0", _FAR),
    "huge attribute": lambda at, top: os.setxattr(f"{top}/0", "user.big", bytes(65537)),
    "attribute without a name": lambda at, top: os.setxattr(f"{top}/0", "user.", b""),
    "attribute of no namespace": lambda at, top: os.setxattr(f"{top}/0", "nothing.such", b""),
    "attribute of the system": lambda at, top: os.getxattr(f"{top}/0", "system.nothing"),
    "corrupt ACL": lambda at, top: os.setxattr(f"{top}/0", "system.posix_acl_access", b"no"),
    "socket": lambda at, top: _connect(at("", os.O_PATH)),
    "whiteout made": lambda at, top: os.mknod(f"{top}/whiteout", stat.S_IFCHR, 0),
    "RENAME_WHITEOUT": lambda at, top: system.rename(
        at("", _READ), "0", at("", _READ), "new", system.RENAME_WHITEOUT
    ),
    "unknown rename flag": lambda at, top: system.rename(
        at("", _READ), "0", at("", _READ), "n", 64
    ),
    "syncfs": lambda at, top: _raw("syncfs", at("", _READ)),
    "opened by a descriptor": lambda at, top: at(f"/proc/self/fd/{at('2')}"),
}
"""System calls and flags that programs rarely use; top is the directory's path."""


def _outcomes(union: Path) -> dict[str, str]:
    """What comes of each call: "done", or the name of its errno."""
    found = {}
    for name, call in CALLS.items():
        with ExitStack() as held:

            def at(name: str, flags: int = _WRITE, held: ExitStack = held) -> int:
                fd = os.open(union / "shared" / name, flags, 0o600)
                held.callback(os.close, fd)
                return fd

            try:
                call(at, union / "shared")
                found[name] = "done"
            except OSError as error:
                found[name] = error_name(error)
    return found


def test_calls_that_are_rare(union: Path, layers: Layers, tmp_path: Path) -> None:
    """Each is done or refused as by the kernel, and the mount goes on."""
    reference = Layers(tmp_path / "reference")
    reference.make()
    shutil.copytree(layers.lower[0], reference.lower[0], dirs_exist_ok=True)
    with kernel(reference):
        expected = _outcomes(Path(reference.target))
    assert _outcomes(union) == expected | LACKING
    assert (union / "shared/9").read_bytes() == b"lower"


# The kernel answers these by itself.
LACKING = {
    "FIBMAP": "EPERM" if IN_USER_NAMESPACE else "done",
    "epoll": "done",
}
