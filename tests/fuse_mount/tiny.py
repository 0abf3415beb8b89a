"""A filesystem that tells what it is asked: `python -m tests.fuse_mount.tiny TARGET OPTIONS`.

It holds a file, a set-id program, a symlink, and whatever name begins with "pair": those are
answered when two of them were asked for. Each request is a line on standard output.
"""

import errno
import os
import stat
import sys
from typing import final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from fuse_mount.connection import Connection
from fuse_mount.device import mount
from fuse_mount.terms import Terms, agree
from unionfs.options import parse

CONTENT = bytes(range(256)) * 8192  # 2 MiB
_ROOT = pyfuse3.ROOT_INODE
_NAMES = {b"file": 2, b"program": 3, b"link": 4, b"pair1": 5, b"pair2": 6}
_MODES = {
    _ROOT: stat.S_IFDIR | 0o777,
    3: stat.S_IFREG | stat.S_ISUID | 0o777,
    4: stat.S_IFLNK | 0o777,
}


@final
class Tiny(pyfuse3.Operations):
    """Nothing written is kept, and every time is another one."""

    enable_acl = True

    def __init__(self) -> None:
        super().__init__()
        self._second = trio.Event()
        self._pairs = 0
        self._clock = 0

    def _attributes(self, inode: int) -> EntryAttributes:
        found = EntryAttributes()
        found.st_ino = inode
        found.st_mode = _MODES.get(inode, stat.S_IFREG | 0o666)
        found.st_size = len(CONTENT) if stat.S_ISREG(found.st_mode) else 1
        self._clock += 1
        found.st_mtime_ns = self._clock * 10**9
        found.attr_timeout = 0
        return found

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode)

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if fields.update_mode:
            _tell(f"chmod {attr.st_mode:o}")
        return self._attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name.startswith(b"pair"):
            self._pairs += 1
            if self._pairs == 2:
                self._second.set()
            await self._second.wait()
        if name not in _NAMES:
            raise FUSEError(errno.ENOENT)
        return self._attributes(_NAMES[name])

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        _tell(f"mkdir {mode:o} umask {ctx.umask:o}")
        raise FUSEError(errno.EPERM)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        _tell("readlink")
        return b"file"

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        _tell(f"read {off} {size}")
        return CONTENT[off : off + size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        _tell(f"write {off} {len(buf)}")
        return len(buf)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def flush(self, fh: int) -> None:
        """Nothing is left to write."""

    async def release(self, fh: int) -> None:
        """There is nothing to close."""

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        """The inodes are always the same."""


def _tell(line: str) -> None:
    print(line, flush=True)


async def _serve(connection: Connection) -> None:
    _tell("ready")
    await connection.answer()


def main(target: str, text: str) -> None:
    """Serve until it is unmounted."""
    options = parse(text).options
    words = {name for name in ("allow_root", "debug") if getattr(options, name)}
    tiny = Tiny()
    terms = Terms(acl=tiny.enable_acl, writeback=tiny.enable_writeback_cache)
    device = mount(target, options)
    connection = Connection(tiny, words, device, agree(device, terms))
    try:
        trio.run(_serve, connection)
    finally:
        connection.close()
        os.close(device)
    _tell("unmounted")


if __name__ == "__main__":
    os.umask(0)
    main(*sys.argv[1:])
