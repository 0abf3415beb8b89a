"""/dev/fuse: mounted by ourselves, and the terms agreed with the kernel before pyfuse3 has it.

pyfuse3 and libfuse decide most of the kernel's INIT request on their own, and have no way to ask
for the rest: that the umask is left to us, that directories are looked up in parallel, that cached
pages are kept until we say otherwise. So pyfuse3 is given one end of a socket pair as its device,
libfuse's answer to INIT is corrected on its way to the kernel, and then the real device takes the
socket's descriptor. From there on no request costs more than with libfuse's own mount; less, in
fact, as libfuse does not splice where it takes the kernel for an old one.

Rules: linux/fuse.h; Documentation/filesystems/fuse.rst; libfuse's do_init and fusermount3(1).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from enum import IntFlag
from typing import TYPE_CHECKING, Final, final

import pyfuse3
import trio

from unionfs import mount_api, system
from unionfs.mounting import FUSE_TYPE
from unionfs.options import MountOptions
from unionfs.overlayfs import SOURCE, MountError, attributes

if TYPE_CHECKING:
    from fuse_mount._fast import Table

_DEVICE: Final = "/dev/fuse"
_SECURITY: Final = ("context", "fscontext", "defcontext", "rootcontext")

_REMEDIES: Final = {
    errno.ENOENT: "load the kernel's module (modprobe fuse), or give the container the device",
    errno.ENXIO: "load the kernel's module: modprobe fuse",
    errno.ENODEV: "load the kernel's module: modprobe fuse",
    errno.EACCES: "let users read and write it, as udev does: chmod 666 /dev/fuse",
    errno.EPERM: "let this container use the device",
}

_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_IN_MORE: Final = struct.Struct("=I")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")
_INIT_OUT_SHORT: Final = struct.Struct("=IIIIHHI")
_MESSAGE_MAX: Final = 8192  # FUSE_MIN_READ_BUFFER: less is refused

_VERSION: Final = 7
# The newest layout of messages that our headers above know; between 13 and this one, nothing that
# the kernel sends differs unless a flag asks for it.
_MINOR: Final = 38
# What libfuse takes the kernel for. From 14 on it splices requests through a pipe, which costs two
# system calls more each and fails on the socket; below 12 it drops the umask.
_MINOR_FOR_LIBFUSE: Final = 13


class _Init(IntFlag):
    """The flags of INIT that matter here."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


# Left to libfuse and the attributes of pyfuse3.Operations. Not among them: AUTO_INVAL_DATA, which
# drops cached pages whenever a time differs; HANDLE_KILLPRIV, as the kernel takes set-id bits off
# by itself; READDIRPLUS_AUTO, as pyfuse3 has no plain readdir.
_FROM_LIBFUSE: Final = (
    _Init.ASYNC_READ
    | _Init.ATOMIC_O_TRUNC
    | _Init.EXPORT_SUPPORT
    | _Init.BIG_WRITES
    | _Init.DO_READDIRPLUS
    | _Init.ASYNC_DIO
    | _Init.WRITEBACK_CACHE
    | _Init.POSIX_ACL
    | _Init.MAX_PAGES
)
# What the fast path adds: listed names come with their attributes while those are wanted. With
# passthrough, pages of layers' files are not kept twice. Without, set-id bits are for us to drop,
# so that the kernel does not ask for capabilities before each write; but of writes that are passed
# through we would not hear.
_FAST: Final = _Init.READDIRPLUS_AUTO
_STACK_DEPTH: Final = 1
"""How many filesystems may be stacked on each other below this one, for passthrough."""
_BACKGROUND: Final = 64
"""How many requests that nobody waits for the kernel may have under way: read-ahead, releases."""
_TASKS: Final = 5
"""How many of pyfuse3's tasks stay when idle: each new one has to set up a buffer of a megabyte."""
_THREADS: Final = 4
"""How many threads answer the kernel by the fast path: one does, unless it waits for a disk."""

# What pyfuse3 cannot ask for. A umask does not apply where a directory has a default ACL, so it is
# for us to apply; layers do not change behind our back, so pages and symlinks are kept.
_OURS: Final = (
    _Init.DONT_MASK | _Init.PARALLEL_DIROPS | _Init.CACHE_SYMLINKS | _Init.EXPLICIT_INVAL_DATA
)


def mount(target: str, options: MountOptions) -> int:
    """Mount a FUSE filesystem at the directory target; its /dev/fuse descriptor.

    Nothing at target answers until INIT was answered on it. Without the privilege to mount,
    fusermount3 does it.

    Raises MountError, with nothing mounted.
    """
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.EIO
        words = [os.strerror(number), *filter(None, [_REMEDIES.get(number)])]
        raise MountError(number, "; ".join(words), _DEVICE) from error
    asked = attributes(options)
    source = options.fsname or SOURCE
    data = os.fsencode(",".join(_parameters(device, target, options)))
    try:
        mount_api.mount(source, target, FUSE_TYPE, asked, data)
    except PermissionError:
        os.close(device)
        return _mount_by_fusermount(target, source, asked, options)
    except OSError as error:
        os.close(device)
        message = f"FUSE: cannot mount: {error.strerror}"
        raise MountError(error.errno, message, target) from error
    return device


def _parameters(device: int, target: str, options: MountOptions) -> list[str]:
    """What fs/fuse/inode.c and the security modules are told."""
    words = [
        f"fd={device}",
        f"rootmode={stat.S_IFMT(os.stat(target).st_mode):o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        *_shared_parameters(options),
    ]
    # The kernel's security modules know quotes, and nothing else holds a comma.
    words += [f'{name}="{value}"' for name in _SECURITY if (value := getattr(options, name))]
    return words


def _shared_parameters(options: MountOptions) -> list[str]:
    """What mount(2) and fusermount3 are told alike.

    Of allow_root the kernel knows nothing: it lets everyone in, and libfuse refuses the others.
    """
    return ["default_permissions", *["allow_other"] * (options.allow_other or options.allow_root)]


def _mount_by_fusermount(
    target: str, source: str, asked: set[str], options: MountOptions
) -> int:
    """As an ordinary user: the program mounts, and sends the descriptor through a socket."""
    words = [*_shared_parameters(options), *sorted(asked)]
    words += [f"{name}={getattr(options, name)}" for name in _SECURITY if getattr(options, name)]
    words += [f"fsname={source}", f"subtype={SOURCE}"]
    text = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            child = subprocess.run(
                ["fusermount3", "-o", text, "--", target],
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            message = "users mount by the program fusermount3; install the package fuse3"
            raise MountError(errno.EPERM, message, target) from None
        if child.returncode:
            lines = os.fsdecode(child.stderr).strip().splitlines() or ["fusermount3 failed"]
            raise MountError(errno.EPERM, lines[-1], target)
        _, (device,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(device, False)
    return device


@final
class Connection:
    """pyfuse3's one session, and the mount that it answers.

    options: of libfuse, `debug` and `allow_root`. table: of the fast path, if that is to answer.
    passthrough: whether it may have the kernel read and write layers' files without us.

    Raises RuntimeError where libfuse fails.
    """

    def __init__(
        self,
        operations: pyfuse3.Operations,
        options: set[str],
        table: Table | None = None,
        *,
        passthrough: bool = False,
    ) -> None:
        self._table = table
        self._added = _Init(0) if table is None else _FAST
        if passthrough:
            self._added |= _Init.PASSTHROUGH
        elif table is not None:
            self._added |= _Init.HANDLE_KILLPRIV_V2
        self._device = -1
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._session = theirs.detach()  # libfuse's, from now on
        pyfuse3.init(operations, f"/dev/fd/{self._session}", options)

    def mount(self, target: str, options: MountOptions) -> None:
        """`mount`; whatever uses the mount waits until `negotiate`."""
        self._device = mount(target, options)

    async def negotiate(self) -> None:
        """Agree with the kernel, so that `answer` can."""
        try:
            await self._agree(self._device)
        except OSError as error:
            # Unmounted already; `answer` will learn so too.
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
        if self._table is None:
            os.dup2(self._device, self._session, inheritable=False)
            self.disown()

    async def answer(self) -> None:
        """Answer the kernel until the mount is gone."""
        if self._table is None:
            await pyfuse3.main(min_tasks=_TASKS)
            return
        # C has the device, pyfuse3 the socket; threads carry what C does not answer.
        self._table.start(self._device, self._ours.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, self._table)
            nursery.start_soon(_in_thread, self._table.carry)
            await pyfuse3.main(min_tasks=_TASKS)
            self._ours.shutdown(socket.SHUT_RDWR)
            nursery.cancel_scope.cancel()

    async def _serve(self, table: Table) -> None:
        def serve() -> None:
            system.keep_capabilities()
            table.serve()

        async with trio.open_nursery() as nursery:
            for _ in range(_THREADS):
                nursery.start_soon(_in_thread, serve)
        pyfuse3.terminate()

    def disown(self) -> None:
        """Leave the mount to the session, or in a forked process to the other one."""
        self._ours.close()
        if self._device >= 0:
            os.close(self._device)
        self._device = -1

    def close(self) -> None:
        """End it: unless it was unmounted, the mount is dead from now on."""
        pyfuse3.close(unmount=False)
        self.disown()

    async def _agree(self, device: int) -> None:
        """Have libfuse answer INIT by the socket, so that the answer can be corrected.

        pyfuse3's loop runs for the one request and is taken down again, so that nothing waits for
        the socket when the device takes its place.
        """
        request = os.read(device, _MESSAGE_MAX)
        self._ours.send(_for_libfuse(request))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(self._ours.fileno())
            reply = self._ours.recv(_MESSAGE_MAX)
            nursery.cancel_scope.cancel()
        os.write(device, _for_kernel(request, reply, self._added))


async def _in_thread(function: Callable[[], None]) -> None:
    """Run what may outlive us: a mount that is in use when it is detached."""
    await trio.to_thread.run_sync(function, abandon_on_cancel=True)


def _for_libfuse(request: bytes) -> bytes:
    """The kernel's INIT request, as a kernel of _MINOR_FOR_LIBFUSE would send it."""
    _, minor, readahead, flags = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    header = list(_IN_HEADER.unpack_from(request))
    header[0] = _IN_HEADER.size + _INIT_IN.size
    body = _INIT_IN.pack(
        _VERSION, min(minor, _MINOR_FOR_LIBFUSE), readahead, flags & ~_Init.INIT_EXT & 0xFFFFFFFF
    )
    return _IN_HEADER.pack(*header) + body


def _for_kernel(request: bytes, reply: bytes, added: _Init) -> bytes:
    """Libfuse's reply to it, with the flags that we want and the kernel offers.

    The size of writes is the one that libfuse has a buffer for.
    """
    _, minor, _, offered = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if offered & _Init.INIT_EXT:
        offered |= _INIT_IN_MORE.unpack_from(request, _IN_HEADER.size + _INIT_IN.size)[0] << 32
    _, number, unique = _OUT_HEADER.unpack_from(reply)
    if number:
        raise OSError(-number, f"libfuse refused the kernel's terms: {os.strerror(-number)}")
    _, _, readahead, flags, _, _, max_write = _INIT_OUT_SHORT.unpack_from(
        reply, _OUT_HEADER.size
    )
    wanted = (flags & _FROM_LIBFUSE | _OURS | added) & offered
    depth = _STACK_DEPTH if wanted & _Init.PASSTHROUGH else 0
    if wanted >> 32:
        wanted |= _Init.INIT_EXT
    pages = -(-max_write // os.sysconf("SC_PAGESIZE"))
    nanosecond = 1
    body = _INIT_OUT.pack(
        _VERSION,
        min(minor, _MINOR),
        readahead,
        wanted & 0xFFFFFFFF,
        _BACKGROUND,
        _BACKGROUND * 3 // 4,
        max_write,
        nanosecond,
        pages,
        0,
        wanted >> 32,
        depth,
    )
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body
