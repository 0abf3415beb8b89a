"""What csrc/fast.c gives; csrc/ufs_table.h tells what it means."""

import mmap
from collections.abc import Callable
from typing import final

from unionfs.options import IdRange

REDO: int
UPPER: int
OPAQUE: int
IMPURE: int
ORIGIN: int
STALE: int

@final
class Table:
    def __init__(
        self,
        layers: list[tuple[int, int, bytes | mmap.mmap | None]],
        filesystems: list[tuple[int, int, int, int, bytes]],
        prefix: bytes,
        ask: Callable[[int, bytes], int],
        copy_up: Callable[[int], int],
        has_upper: bool,
        work: int,
        durable: bool,
        ordered: bool,
        strict: bool,
        passthrough: bool,
        writeback: bool,
        xattrs: bool,
        syncs: bool,
        idmapped: bool,
        redirects: bool,
        static_nlink: bool,
        users: tuple[tuple[IdRange, ...], int | None],
        groups: tuple[tuple[IdRange, ...], int | None],
        timeout: float,
    ) -> None: ...
    def lock(self) -> None: ...
    def unlock(self) -> None: ...
    def new(self, type: int, /) -> int: ...
    def put(
        self,
        id: int,
        flags: int,
        device: int,
        inode: int,
        number: int,
        places: tuple[tuple[int, str], ...],
        redirect: bytes | None,
        /,
    ) -> None: ...
    def facts(
        self, id: int, /
    ) -> tuple[
        int, int, int, int, list[tuple[int, str]], list[tuple[int, str]], bytes | None
    ]: ...
    def child(self, parent: int, name: bytes, /) -> int: ...
    def bind(self, id: int, parent: int, name: bytes, /) -> None: ...
    def unbind(self, parent: int, name: bytes, /) -> None: ...
    def changed(self, id: int, /) -> None: ...
    def invalidate(self, id: int, /) -> None: ...
    def relist(self, id: int, /) -> None: ...
    def tell(self, id: int, /) -> None: ...
    def is_copying(self, id: int, /) -> bool: ...
    def settle(self, id: int, /) -> None: ...
    def pin(self, id: int, /) -> None: ...
    def unpin(self, id: int, /) -> None: ...
    def linked(self, device: int, inode: int, /) -> int: ...
    def link(self, id: int, device: int, inode: int, /) -> None: ...
    def files(self, id: int, /) -> list[tuple[int, int, bool]]: ...
    def opened(self, id: int, fd: int, flags: int, /) -> None: ...
    def followed(self, fd: int, /) -> None: ...
    def set_last(
        self,
        id: int,
        mode: int,
        links: int,
        uid: int,
        gid: int,
        device: int,
        size: int,
        blocks: int,
        block_size: int,
        atime: int,
        mtime: int,
        ctime: int,
        /,
    ) -> None: ...
    def start(self, device: int, init: bytes | None, root: int, /) -> int: ...
    def serve(self) -> None: ...
    def carry(self) -> None: ...
