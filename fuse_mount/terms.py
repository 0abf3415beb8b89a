"""The terms of a mount: what we decide of it, and agree with the kernel in its INIT request.

INIT is answered here, and libfuse is asked only afterwards, by the same request: so the mount
answers before pyfuse3 is imported. libfuse has no way to ask for part of it anyway: that the umask
is left to us, that directories are looked up in parallel, that cached pages are kept until we say
otherwise. For the rest the answer is the one that libfuse would give.

Rules: linux/fuse.h; Documentation/filesystems/fuse.rst; libfuse's do_init.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Final, final

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_IN_MORE: Final = struct.Struct("=I")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")
_MESSAGE_MAX: Final = 8192  # FUSE_MIN_READ_BUFFER: less is refused

_VERSION: Final = 7
# The newest layout of messages that our headers above know; between 13 and this one, nothing that
# the kernel sends differs unless a flag asks for it.
_MINOR: Final = 38
# What libfuse takes the kernel for. From 14 on it splices requests through a pipe, which costs two
# system calls more each and fails on the socket; below 12 it drops the umask.
_MINOR_FOR_LIBFUSE: Final = 13

# The flags of INIT that matter here.
_ASYNC_READ: Final = 1 << 0
_ATOMIC_O_TRUNC: Final = 1 << 3
_BIG_WRITES: Final = 1 << 5
_DONT_MASK: Final = 1 << 6
_DO_READDIRPLUS: Final = 1 << 13
_READDIRPLUS_AUTO: Final = 1 << 14
_ASYNC_DIO: Final = 1 << 15
_WRITEBACK_CACHE: Final = 1 << 16
_PARALLEL_DIROPS: Final = 1 << 18
_POSIX_ACL: Final = 1 << 20
_MAX_PAGES: Final = 1 << 22
_CACHE_SYMLINKS: Final = 1 << 23
_EXPLICIT_INVAL_DATA: Final = 1 << 25
_HANDLE_KILLPRIV_V2: Final = 1 << 28
_INIT_EXT: Final = 1 << 30
_PASSTHROUGH: Final = 1 << 37

# As libfuse answers. Not so AUTO_INVAL_DATA, which drops cached pages whenever a time differs.
_LIBFUSES: Final = (
    _ASYNC_READ | _ATOMIC_O_TRUNC | _BIG_WRITES | _DO_READDIRPLUS | _ASYNC_DIO | _MAX_PAGES
)
# What libfuse cannot ask for. A umask does not apply where a directory has a default ACL, so it is
# for us to apply; layers do not change behind our back, so pages and symlinks are kept.
_OURS: Final = _DONT_MASK | _PARALLEL_DIROPS | _CACHE_SYMLINKS | _EXPLICIT_INVAL_DATA

MAX_WRITE: Final = 1 << 20
"""Bytes of the largest write: libfuse's buffers hold 256 pages."""
_STACK_DEPTH: Final = 1
"""How many filesystems may be stacked on each other below this one, for passthrough."""
_BACKGROUND: Final = 64
"""How many requests that nobody waits for the kernel may have under way: read-ahead, releases."""
_NANOSECOND: Final = 1


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """How a mount is answered.

    acl: the kernel checks POSIX ACLs. writeback: it gathers writes in its cache. timeout: seconds
    that it may keep names and attributes.
    fast: C answers what is plain, and plain listings too. passthrough: the kernel reads and writes
    layers' files without us.
    """

    acl: bool = False
    writeback: bool = False
    timeout: float = 1.0
    fast: bool = False
    passthrough: bool = False

    def flags(self) -> int:
        """Those of INIT.

        With passthrough, pages of layers' files are not kept twice. Set-id bits are for the fast
        path to drop, so that the kernel does not ask for capabilities before each write. pyfuse3
        has no plain readdir.
        """
        found = _LIBFUSES | _OURS
        found |= _POSIX_ACL * self.acl | _WRITEBACK_CACHE * self.writeback
        found |= _PASSTHROUGH * self.passthrough | _READDIRPLUS_AUTO * self.fast
        return found | _HANDLE_KILLPRIV_V2 * self.fast


def agree(device: int, terms: Terms) -> bytes | None:
    """Answer the kernel's first request, so that the mount works; the request, for libfuse.

    None where it was unmounted already. Raises OSError.
    """
    try:
        request = os.read(device, _MESSAGE_MAX)
        os.write(device, _to_init(request, terms))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
        return None
    return _for_libfuse(request)


def _to_init(request: bytes, terms: Terms) -> bytes:
    """The flags are those that we want and the kernel offers."""
    unique = IN_HEADER.unpack_from(request)[2]
    _, minor, readahead, offered = _INIT_IN.unpack_from(request, IN_HEADER.size)
    if offered & _INIT_EXT:
        offered |= _INIT_IN_MORE.unpack_from(request, IN_HEADER.size + _INIT_IN.size)[0] << 32
    agreed = terms.flags() & offered
    depth = _STACK_DEPTH if agreed & _PASSTHROUGH else 0
    if agreed >> 32:
        agreed |= _INIT_EXT
    body = _INIT_OUT.pack(
        _VERSION,
        min(minor, _MINOR),
        readahead,
        agreed & 0xFFFFFFFF,
        _BACKGROUND,
        _BACKGROUND * 3 // 4,
        MAX_WRITE,
        _NANOSECOND,
        -(-MAX_WRITE // os.sysconf("SC_PAGESIZE")),
        0,
        agreed >> 32,
        depth,
    )
    return reply(unique, body)


def reply(unique: int, body: bytes, error: int = 0) -> bytes:
    """A message to the kernel that answers the request of that number. error: 0, or -errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), error, unique) + body


def _for_libfuse(request: bytes) -> bytes:
    """The kernel's INIT request, as a kernel of _MINOR_FOR_LIBFUSE would send it."""
    _, minor, readahead, flags = _INIT_IN.unpack_from(request, IN_HEADER.size)
    header = list(IN_HEADER.unpack_from(request))
    header[0] = IN_HEADER.size + _INIT_IN.size
    body = _INIT_IN.pack(
        _VERSION, min(minor, _MINOR_FOR_LIBFUSE), readahead, flags & ~_INIT_EXT & 0xFFFFFFFF
    )
    return IN_HEADER.pack(*header) + body
