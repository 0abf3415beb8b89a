"""The union as FUSE requests: each handler finds the nodes and calls the library.

The kernel keeps names, attributes and pages for as long as it likes, since everything that changes
them comes through it; what a copy-up changes behind its back is invalidated. It checks permissions
(default_permissions), and gives us the caller's IDs and umask, under which new files are made.

Handlers run one at a time, but for where they wait: for the copy-up of a large file, for fsync(2)
and for reads that need the disk, which other threads do.

Rules: pyfuse3.Operations; linux/fuse.h; libfuse's fuse_lowlevel.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from fuse_mount import owners
from fuse_mount.inodes import File, Inode, Inodes
from fuse_mount.terms import Terms
from unionfs import (
    changes,
    copyup,
    fileattr,
    index,
    markers,
    merge,
    override,
    resolve,
    system,
    xattrs,
)
from unionfs.stack import LayerStack

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger(__name__)

_AT_ONCE: Final = 256 << 10
"""Bytes that are copied while other requests wait; more is left to another thread."""
_FOR_LAYERS: Final = (
    os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NONBLOCK | os.O_NOFOLLOW
)
"""The flags that concern a layer's file; the kernel has others of its own, as one for execve(2)."""
_INVALID_ID: Final = 2**32 - 1
_FSETID: Final = 4


def _find_id() -> int:
    """Where in an EntryAttributes the ID of its node lies, in bytes.

    pyfuse3 sets the ID and st_ino to one number. They are the first and the third field of what it
    keeps (struct fuse_entry_param): an ID, a generation, and a struct stat.
    """
    entry = EntryAttributes()
    entry.st_ino, entry.generation = 0x1122334455667788, 0x99AABBCCDDEEFF00
    size = type(entry).__basicsize__
    memory = ctypes.string_at(id(entry), size)
    wanted = entry.st_ino.to_bytes(8, "little") + entry.generation.to_bytes(8, "little")
    return memory.index(wanted)


_ID_OFFSET: Final = _find_id()


def _answered(
    handler: Callable[Concatenate[Operations, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[Operations, _P], Coroutine[Any, Any, _R]]:
    """Turn errors into the errno of the reply; what we did not expect is logged, and EIO."""

    @functools.wraps(handler)
    async def answer(self: Operations, *args: _P.args, **keywords: _P.kwargs) -> _R:
        try:
            with self.inodes.held():
                return await handler(self, *args, **keywords)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("%s%s failed", handler.__name__, args)
            raise FUSEError(errno.EIO) from None

    return answer  # type: ignore[return-value]  # mypy loses that it takes self by position


@final
class _Directory:
    """One open directory: its inode, and its names as they were when it was last read from 0."""

    __slots__ = ("inode", "names")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.names: list[str] = []


@final
class Operations(pyfuse3.Operations):
    """The filesystem over a stack, neither of which it closes. inodes: of that stack."""

    def __init__(self, stack: LayerStack, terms: Terms, inodes: Inodes) -> None:
        super().__init__()
        self._stack = stack
        self._owners = stack.upper.owners if stack.upper else None
        self._no_acl = not terms.acl
        self._timeout = terms.timeout
        self.enable_acl = terms.acl
        self.enable_writeback_cache = terms.writeback
        self.supports_dot_lookup = False
        self._users = owners.users(stack.options)
        self._groups = owners.groups(stack.options)
        self._squashed = any(ids.squash is not None for ids in (self._users, self._groups))
        self.inodes = inodes
        inodes.attach(self.find, self._copy_up_directory)
        self._directories: dict[int, _Directory] = {}
        self._next_directory = 1
        self._copying: dict[Inode, trio.Lock] = {}

    def init(self) -> None:
        """Called by pyfuse3 in the thread that will answer."""
        system.keep_capabilities()

    # Replies.

    def _status(self, inode: Inode) -> os.stat_result:
        """The status of a node's file; of a removed one that of an open file, or the last known."""
        node = inode.node
        named = node.names or node.is_root
        if named or node.index is not None:  # which has names that nobody looked up, it may be
            try:
                return resolve.status(self._stack, node)
            except FileNotFoundError:
                if named and not self.inodes.files(inode):
                    raise
        if files := self.inodes.files(inode):
            return self._open_status(files[0])
        if inode.last is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode.last

    def _open_status(self, file: File) -> os.stat_result:
        """That of an open file without a name."""
        status = os.fstat(file.fd)
        return override.applied(file.fd, "", self._owners, status) if self._owners else status

    def _attributes(self, inode: Inode, status: os.stat_result | None = None) -> EntryAttributes:
        found = status or self._status(inode)
        node = inode.node
        entry = EntryAttributes()
        entry.st_ino = self._stack.numbers.number(node.file)
        entry.st_mode = found.st_mode
        entry.st_nlink = self._links(inode, found)
        entry.st_uid = self._users.shown(found.st_uid)
        entry.st_gid = self._groups.shown(found.st_gid)
        if self._stack.idmapped and not self._is_removed(inode):
            self._unmap(node, entry)
        entry.st_rdev = found.st_rdev
        entry.st_size = found.st_size
        entry.st_blocks = found.st_blocks
        entry.st_blksize = found.st_blksize
        entry.st_atime_ns = found.st_atime_ns
        entry.st_mtime_ns = found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        entry.entry_timeout = entry.attr_timeout = self._timeout
        ctypes.c_uint64.from_address(id(entry) + _ID_OFFSET).value = inode.id
        return entry

    def _unmap(self, node: resolve.Node, entry: EntryAttributes) -> None:
        """Let the kernel know of owners without a number: it refuses to change the file."""
        if fileattr.is_unmapped(self._stack, node):
            if entry.st_uid == fileattr.OVERFLOW_ID:
                entry.st_uid = _INVALID_ID
            if entry.st_gid == fileattr.OVERFLOW_ID:
                entry.st_gid = _INVALID_ID

    def _links(self, inode: Inode, status: os.stat_result) -> int:
        node = inode.node
        if node.is_merged or (node.is_dir and self._stack.options.static_nlink):
            return 1
        if node.upper and node.index is not None:
            return index.links(self._stack, node.index, status)
        return status.st_nlink

    def _told(self, inode: Inode, status: os.stat_result | None = None) -> EntryAttributes:
        """The reply that makes an inode known to the kernel."""
        entry = self._attributes(inode, status)
        self.inodes.told(inode)
        return entry

    def _missing(self) -> EntryAttributes:
        """The reply for a name that does not exist, which the kernel keeps too."""
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._timeout
        return entry

    def _listed(self, parent: Inode, name: str) -> EntryAttributes:
        """An entry that is listed and cannot be looked up: without a node, so the kernel asks."""
        listed = merge.listing(self._stack, parent.node)[name]
        entry = EntryAttributes()
        entry.st_ino = self._stack.numbers.number(listed.file) if listed.file else 1
        entry.st_mode = listed.kind
        ctypes.c_uint64.from_address(id(entry) + _ID_OFFSET).value = 0
        return entry

    def find(self, parent: Inode, name: str) -> Inode | None:
        """The inode at a name: the one that the kernel knows, or else a new one."""
        known = self.inodes.known(parent, name)
        if known is not None:
            return known
        found = resolve.find(self._stack, parent.node, name)
        if found is None:
            return None
        return self.inodes.child(parent, name, *found)

    def _existing(self, parent: int, name: bytes) -> tuple[Inode, str, Inode]:
        directory, text = self.inodes[parent], os.fsdecode(name)
        found = self.find(directory, text)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return directory, text, found

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self.find(self.inodes[parent_inode], os.fsdecode(name))
        return self._missing() if inode is None else self._told(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            self.inodes.forget(self.inodes[number], lookups)

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.inodes[inode])

    @_answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return os.fsencode(resolve.readlink(self._stack, self.inodes[inode].node))

    @_answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found = os.statvfs(self._stack.layers[0].fd)
        reply = StatvfsData()
        for name in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        ):
            setattr(reply, name, getattr(found, name))
        return reply

    async def _apart(self, function: Callable[..., _R], *args: Any) -> _R:
        """Let another thread do what takes long; other requests are answered meanwhile."""
        with self.inodes.apart():
            return await trio.to_thread.run_sync(function, *args)

    # Copy-up.

    async def _copy_up(self, inode: Inode, size: int | None = None, *, data: bool = True) -> None:
        """Make upper hold a node; other requests go on while much data is copied.

        size, data: as for `copyup.copy_up`.
        """
        copyup.writable(self._stack)
        if copyup.is_in_upper(self._stack, inode.node, data=data):
            return
        lock = self._copying.setdefault(inode, trio.Lock())
        try:
            with self.inodes.apart():
                await lock.acquire()
            try:
                await self._copy_up_locked(inode, size, data)
            finally:
                lock.release()
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._copying.pop(inode, None)

    async def _copy_up_locked(self, inode: Inode, size: int | None, data: bool) -> None:
        node, stack = inode.node, self._stack
        file = node.file
        with self._following(inode):
            if not node.upper:
                copyup.copy_up_parents(stack, node)
                build = functools.partial(copyup.build, stack, node, size, data=data)
                draft = await self._copied(node, size, data, build)
                copyup.install(stack, node, draft, data=data)
            elif data and node.data is not None:
                fill = functools.partial(copyup.fill, stack, node, size)
                await self._copied(node, size, data, fill)
            copyup.copy_up(stack, node, size, data=data)  # at most a name is left to be made
        if node.file != file:
            with self.inodes.apart():
                self.inodes.renumbered(inode)

    async def _copied(
        self, node: resolve.Node, size: int | None, data: bool, copy: Callable[[], _R]
    ) -> _R:
        """The result of copy, which is left to another thread where it copies much."""
        length = resolve.top(self._stack, node).status().st_size
        if data and node.kind == stat.S_IFREG and min(length, size or length) > _AT_ONCE:
            return await self._apart(copy)
        with self.inodes.apart():  # fsync(2) takes its time
            return copy()

    def _copy_up_directory(self, inode: Inode) -> None:
        with self._following(inode):
            copyup.copy_up(self._stack, inode.node)

    @contextlib.contextmanager
    def _following(self, *inodes: Inode) -> Iterator[None]:
        """Afterwards, bring open files and the kernel up to date with what was copied up."""
        lower = {
            each
            for inode in inodes
            for each in (inode, *self.inodes.above(inode))
            if not each.node.upper or each.node.data
        }
        try:
            yield
        finally:
            for inode in lower:
                if inode.node.upper:
                    self._follow(inode)

    def _follow(self, inode: Inode) -> None:
        """After its copy-up: files opened before read the copy, as on kernel overlayfs."""
        for file in self.inodes.files(inode):
            if file.lower and inode.node.data is None:
                fd = self._opened(inode, file.flags)
                os.dup2(fd, file.fd, inheritable=False)
                os.close(fd)
                self.inodes.followed(file)
        # Link counts of directories, change times, and the numbers of hard links differ.
        self.inodes.invalidate(inode)

    # Names.

    @contextlib.contextmanager
    def _creating(self, ctx: RequestContext) -> Iterator[None]:
        """Make files as the caller: its owner, group and umask, but our own rights."""
        if self._owners:
            mask = os.umask(0)
            try:
                yield
            finally:
                os.umask(mask)
            return
        uid, gid = self._users.on_disk(ctx.uid), self._groups.on_disk(ctx.gid)
        mask = os.umask(ctx.umask)
        ours = os.geteuid(), os.getegid()
        try:
            if (uid, gid) == ours:
                yield
                return
            with self._giving():
                system.set_fs_ids(uid, gid)
            try:
                yield
            finally:
                system.set_fs_ids(*ours)
        finally:
            os.umask(mask)

    @contextlib.contextmanager
    def _giving(self) -> Iterator[None]:
        """Around a change of owner, which may be refused where it would not be seen anyway."""
        try:
            yield
        except OSError as error:
            if not self._squashed or error.errno not in (errno.EPERM, errno.EINVAL):
                raise

    def _made(self, parent: Inode, name: str, node: resolve.Node) -> EntryAttributes:
        status = resolve.top(self._stack, node).status()
        self.inodes.made(parent)
        return self._told(self.inodes.child(parent, name, node, status), status)

    def _for_disk(self, mode: int, ctx: RequestContext) -> int:
        """The mode that a new file gets in its layer."""
        return override.on_disk(mode & ~ctx.umask) if self._owners else mode

    def _give(self, parent: Inode, node: resolve.Node, mode: int, ctx: RequestContext) -> None:
        """Write down whom a new file belongs to, where that is kept in an attribute."""
        if self._owners is None or not fileattr.has_flags(node):
            return
        above = self._status(parent)
        mode = stat.S_IMODE(mode & ~ctx.umask)
        uid, gid = self._users.on_disk(ctx.uid), self._groups.on_disk(ctx.gid)
        if above.st_mode & stat.S_ISGID:
            gid = above.st_gid
            mode |= stat.S_ISGID * node.is_dir
        place = resolve.top(self._stack, node)
        override.give(place.layer.fd, place.path, self._owners, uid, gid, node.kind | mode)

    def _new(self, parent_inode: int, name: bytes) -> tuple[Inode, str]:
        parent, text = self.inodes[parent_inode], os.fsdecode(name)
        copyup.writable(self._stack)
        if self.find(parent, text) is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        return parent, text

    @_answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent, text = self._new(parent_inode, name)
        with self._following(parent):
            real = self._for_disk(mode, ctx)
            node = changes.mkdir(self._stack, parent.node, text, real, self._creating(ctx))
        self._give(parent, node, mode, ctx)
        return self._made(parent, text, node)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent, text = self._new(parent_inode, name)
        with self._following(parent):
            real = stat.S_IFMT(mode) | self._for_disk(mode, ctx)
            node = changes.mknod(self._stack, parent.node, text, real, rdev, self._creating(ctx))
        self._give(parent, node, mode, ctx)
        return self._made(parent, text, node)

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent, text = self._new(parent_inode, name)
        link = os.fsdecode(target)
        with self._following(parent):
            node = changes.symlink(self._stack, parent.node, text, link, self._creating(ctx))
        return self._made(parent, text, node)

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        linked = self.inodes[inode]
        copyup.writable(self._stack)
        fileattr.refuse_names(self._stack, self.inodes[new_parent_inode].node)
        fileattr.refuse(self._stack, linked.node)
        await self._copy_up(linked, data=False)
        parent, name = self._new(new_parent_inode, new_name)
        with self._following(parent):
            changes.link(self._stack, linked.node, parent.node, name)
        self.inodes.bind(parent, name, linked)
        self.inodes.link(linked, self._status(linked))
        return self._told(linked)

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent, text, inode = self._existing(parent_inode, name)
        copyup.writable(self._stack)
        if inode.node.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        await self._complete(inode)
        self._remove(parent, text, inode, changes.unlink)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent, text, inode = self._existing(parent_inode, name)
        copyup.writable(self._stack)
        if not inode.node.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._remove(parent, text, inode, changes.rmdir)

    async def _complete(self, inode: Inode) -> None:
        """Before a name goes: once it has none, an open file is one with data and metadata."""
        if inode.node.data is not None and self.inodes.files(inode):
            await self._copy_up(inode)

    def _remove(
        self,
        parent: Inode,
        name: str,
        inode: Inode,
        change: Callable[[LayerStack, resolve.Node, str, resolve.Node], None],
    ) -> None:
        status = self._status(inode)
        with self._following(parent):
            change(self._stack, parent.node, name, inode.node)
        self._lost(parent, name, inode, status)

    def _lost(self, parent: Inode, name: str, inode: Inode, status: os.stat_result) -> None:
        """After a name of an inode was removed. status: from before."""
        self.inodes.unbind(parent, name)
        if not inode.node.names:
            gone = inode.node.is_dir or inode.node.index is not None
            links = 0 if gone else status.st_nlink - 1
            last = system.renumbered(status, status.st_ino, status.st_dev, links)
            self.inodes.removed(inode, last)
        self.inodes.drop_unused(inode)

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(system.RENAME_EXCHANGE | system.RENAME_NOREPLACE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        exchange = bool(flags & system.RENAME_EXCHANGE)
        copyup.writable(self._stack)
        old_parent, _, old = self._existing(parent_inode_old, name_old)
        new_parent, new_name = self.inodes[parent_inode_new], os.fsdecode(name_new)
        new = self.find(new_parent, new_name)
        changes.refuse_rename(
            self._stack, old_parent.node, old.node, new_parent.node, new.node if new else None
        )
        await self._copy_up_data(parent_inode_old, name_old)
        if exchange:
            await self._copy_up_data(parent_inode_new, name_new)
        old_parent, old_name, old = self._existing(parent_inode_old, name_old)
        new_parent = self.inodes[parent_inode_new]
        new = self.find(new_parent, new_name)
        if flags & system.RENAME_NOREPLACE and new is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if new is old:
            return
        if new is not None and not exchange:
            await self._complete(new)
        status = None if new is None else self._status(new)
        inodes = [old, old_parent, new_parent] + ([new] if new is not None else [])
        self._copy_up_known(old)
        if exchange and new is not None:
            self._copy_up_known(new)
        with self._following(*inodes):
            changes.rename(
                self._stack,
                old_parent.node,
                old_name,
                old.node,
                new_parent.node,
                new_name,
                None if new is None else new.node,
                flags,
            )
        if (old_parent.node, old_name) in old.node.names:
            return  # two names of one file
        self.inodes.unbind(old_parent, old_name)
        if new is not None and status is not None:
            if exchange:
                self.inodes.unbind(new_parent, new_name)
                self.inodes.bind(old_parent, old_name, new)
            else:
                self._lost(new_parent, new_name, new, status)
        self.inodes.bind(new_parent, new_name, old)

    def _copy_up_known(self, directory: Inode) -> None:
        """What the kernel knows of below a directory, where that is to be copied up whole."""
        if not changes.moves_whole(self._stack, directory.node):
            return
        for name in [*merge.listing(self._stack, directory.node)]:
            inode = self.inodes.known(directory, name)
            if inode is None:
                continue
            with self._following(inode):
                if inode.node.is_dir:
                    self._copy_up_known(inode)
                    changes.copy_up_tree(self._stack, inode.node)
                else:
                    copyup.copy_up(self._stack, inode.node)

    async def _copy_up_data(self, parent_inode: int, name: bytes) -> None:
        """What may take long, before names are looked up: they may change meanwhile."""
        _, _, inode = self._existing(parent_inode, name)
        if inode.node.kind == stat.S_IFREG:
            await self._copy_up(inode, data=False)

    # Attributes.

    @_answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changed = self.inodes[inode]
        copyup.writable(self._stack)
        size = attr.st_size if fields.update_size else None
        if not self._is_removed(changed):
            fileattr.refuse(self._stack, changed.node, self._refused(fields, fh))
            await self._copy_up(changed, size, data=size is not None)
            self.inodes.hand_back()
            self._set(changed, attr, fields)
        else:
            self._set_open(self._upper_file_of(changed, fh), attr, fields)
        return self._attributes(changed)

    def _refused(self, fields: SetattrFields, fh: int | None) -> int:
        """The flags of a file that is not to be changed so.

        When an append-only file was written through its writeback cache, the kernel sets its times.
        """
        if fields.update_mode or fields.update_uid or fields.update_gid:
            return fileattr.GUARDS
        if _is_chown(fields):
            return 0
        if fields.update_size:  # fh: by one who was let open it
            return fileattr.GUARDS if fh is None else fileattr.APPEND
        appended = self.enable_writeback_cache and not fields.update_atime
        return fileattr.IMMUTABLE if appended else fileattr.GUARDS

    @staticmethod
    def _is_removed(inode: Inode) -> bool:
        return not (inode.node.names or inode.node.is_root)

    def _file_of(self, inode: Inode, fh: int | None) -> File:
        """An open file of a removed inode."""
        for file in self.inodes.files(inode):
            if fh is None or file.fd == fh:
                return file
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _upper_file_of(self, inode: Inode, fh: int | None) -> File:
        """The same, whose file is upper's from now on: no lower one is changed."""
        file = self._file_of(inode, fh)
        if file.lower:
            self._copy_nameless(inode)
        return file

    def _set(self, inode: Inode, attr: EntryAttributes, fields: SetattrFields) -> None:
        node = inode.node
        if fields.update_size:
            changes.truncate(self._stack, node, attr.st_size)
        if _is_chown(fields):
            with self._giving():
                changes.chown(self._stack, node, *self._owner(attr, fields))
        if fields.update_mode:
            changes.chmod(self._stack, node, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            changes.utime(self._stack, node, _times(attr, fields, self._status(inode)))

    def _set_open(self, file: File, attr: EntryAttributes, fields: SetattrFields) -> None:
        """The same for a file that has no name any more."""
        path = f"/proc/self/fd/{file.fd}"
        if fields.update_size:
            os.truncate(path, attr.st_size)
        uid, gid = self._owner(attr, fields)
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        if self._owners and (uid, gid, mode) != (-1, -1, None):
            status = self._open_status(file)
            override.change(file.fd, "", self._owners, status, uid=uid, gid=gid, mode=mode)
            mode = None
        elif _is_chown(fields):
            with self._giving():
                os.chown(path, uid, gid)
        if mode is not None:
            os.chmod(path, mode)
        if fields.update_atime or fields.update_mtime:
            os.utime(path, ns=_times(attr, fields, os.fstat(file.fd)))

    def _copy_nameless(self, inode: Inode) -> None:
        """Copy up a removed file for those who have it open."""
        workdir = self._stack.claim()
        draft = copyup.build(self._stack, inode.node)
        try:
            for file in self.inodes.files(inode):
                fd = system.open_beneath(workdir.fd, draft, file.flags)
                os.dup2(fd, file.fd, inheritable=False)
                os.close(fd)
                self.inodes.followed(file)
        finally:
            workdir.discard(draft)

    def _owner(self, attr: EntryAttributes, fields: SetattrFields) -> tuple[int, int]:
        return (
            self._users.on_disk(attr.st_uid) if fields.update_uid else -1,
            self._groups.on_disk(attr.st_gid) if fields.update_gid else -1,
        )

    def _nameless(self, inode: Inode) -> int | None:
        """A descriptor of a removed inode's file."""
        return self._file_of(inode, None).fd if self._is_removed(inode) else None

    def _check_xattr(self, name: str) -> None:
        options = self._stack.options
        if options.noxattrs or (self._no_acl and name in xattrs.ACLS):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        text = os.fsdecode(name)
        self._check_xattr(text)
        found = self.inodes[inode]
        return xattrs.get(self._stack, found.node, text, self._nameless(found))

    @_answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if self._stack.options.noxattrs:
            return []
        found = self.inodes[inode]
        names = xattrs.names(self._stack, found.node, self._nameless(found))
        hidden = xattrs.ACLS if self._no_acl else ()
        return [os.fsencode(name) for name in names if name not in hidden]

    async def _to_change(
        self, inode: int, name: str, ctx: RequestContext
    ) -> tuple[Inode, int | None]:
        """The inode whose attribute is to change, with a descriptor if it was removed."""
        self._check_xattr(name)
        copyup.writable(self._stack)
        changed = self.inodes[inode]
        fd = self._upper_file_of(changed, None).fd if self._is_removed(changed) else None
        if name == xattrs.ACCESS_ACL:
            await self._drop_set_gid(changed, fd, ctx)
        return changed, fd

    async def _drop_set_gid(self, inode: Inode, fd: int | None, ctx: RequestContext) -> None:
        """From a file whose access list is changed by its owner, who is not of its group.

        fd: as `_to_change` has it. Rule: ovl_set_acl (fs/overlayfs/inode.c).
        """
        status = self._status(inode)
        group = self._groups.shown(status.st_gid)
        if not status.st_mode & stat.S_ISGID or _may_keep_set_gid(ctx, group):
            return
        kept = stat.S_IMODE(status.st_mode & ~stat.S_ISGID)
        if fd is not None:
            os.fchmod(fd, kept)
            return
        fileattr.refuse(self._stack, inode.node)
        await self._copy_up(inode, data=False)
        changes.chmod(self._stack, inode.node, kept)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        text = os.fsdecode(name)
        changed, fd = await self._to_change(inode, text, ctx)
        if fd is not None:
            system.set_xattr(fd, "", markers.on_disk(self._stack.prefix, text), value)
            return
        fileattr.refuse(self._stack, changed.node)
        await self._copy_up(changed, data=False)
        xattrs.set(self._stack, changed.node, text, value)

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        text = os.fsdecode(name)
        changed, fd = await self._to_change(inode, text, ctx)
        if fd is not None:
            system.remove_xattr(fd, "", markers.on_disk(self._stack.prefix, text))
            return
        with self._following(changed):
            xattrs.remove(self._stack, changed.node, text)

    # Files.

    def _layer_flags(self, flags: int) -> int:
        """The flags for the file in its layer of those that the kernel opens with."""
        flags &= _FOR_LAYERS
        if self.enable_writeback_cache and flags & os.O_ACCMODE != os.O_RDONLY:
            # The kernel reads what it writes in part, and appends by itself.
            flags = flags & ~(os.O_ACCMODE | os.O_APPEND) | os.O_RDWR
        return flags

    def _opened(self, inode: Inode, flags: int) -> int:
        place = resolve.data(self._stack, inode.node)
        return system.open_beneath(place.layer.fd, place.path, flags)

    def _keep(self, inode: Inode, fd: int, flags: int) -> FileInfo:
        self.inodes.opened(inode, fd, flags & ~os.O_TRUNC)
        return FileInfo(fh=fd, keep_cache=True)

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        opened, asked = self.inodes[inode], flags
        flags = self._layer_flags(flags)
        if self._is_removed(opened):
            # By an open file, as /proc/PID/fd leads to it.
            file = self._file_of(opened, None)
            return self._keep(opened, os.open(f"/proc/self/fd/{file.fd}", flags), flags)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            copyup.writable(self._stack)
            if opened.node.kind == stat.S_IFREG:
                fileattr.refuse_opening(self._stack, opened.node, asked)
            await self._copy_up(opened, 0 if flags & os.O_TRUNC else None)
            self.inodes.hand_back()
        fd = self._opened(opened, flags)
        if flags & os.O_TRUNC:
            self._drop_set_id(opened, ctx)
        return self._keep(opened, fd, flags)

    def _drop_set_id(self, inode: Inode, ctx: RequestContext) -> None:
        """As the kernel does by itself where a file is truncated by another call than open(2)."""
        mode = self._status(inode).st_mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode and not _may_keep_set_id(ctx.pid):
            changes.chmod(self._stack, inode.node, stat.S_IMODE(kept))
            self.inodes.invalidate(inode)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent, text = self._new(parent_inode, name)
        layer_flags = self._layer_flags(flags)
        with self._following(parent):
            real = self._for_disk(mode, ctx)
            node, fd = changes.create_file(
                self._stack, parent.node, text, real, layer_flags, self._creating(ctx)
            )
        self._give(parent, node, mode, ctx)
        entry = self._made(parent, text, node)
        made = self.inodes.known(parent, text)
        assert made is not None
        return self._keep(made, fd, layer_flags), entry

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        try:
            data = bytearray(size)
            length = os.preadv(fh, [data], off, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return os.pread(fh, size, off)
            if error.errno != errno.EAGAIN:
                raise
        else:
            if length == size or off + length >= os.fstat(fh).st_size:
                return bytes(memoryview(data)[:length])
        # The rest is on disk: another thread waits for it.
        return await self._apart(os.pread, fh, size, off)

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        written = os.pwrite(fh, buf, off)
        # What a short answer leaves out of pages that the kernel kept is forgotten: nobody would
        # hear of a full disk.
        while self.enable_writeback_cache and written < len(buf):
            written += os.pwrite(fh, memoryview(buf)[written:], off + written)
        return written

    @_answered
    async def flush(self, fh: int) -> None:
        return

    @_answered
    async def release(self, fh: int) -> None:
        inode = self.inodes.closed(fh)
        if not self.inodes.files(inode) and self._is_removed(inode):
            self.inodes.removed(inode, self._open_status(File(inode, fh, 0, lower=False)))
        os.close(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        # Not os.fdatasync: on ext4 that leaves out the rename by which a copy came into upper.
        if self._stack.options.syncs:
            await self._apart(os.fsync, fh)

    # Directories.

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        number = self._next_directory
        self._next_directory += 1
        self._directories[number] = _Directory(self.inodes[inode])
        return number

    @_answered
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._directories[fh]
        inode = directory.inode
        if start_id == 0:
            directory.names = [".", "..", *merge.listing(self._stack, inode.node)]
        for position in range(start_id, len(directory.names)):
            name = directory.names[position]
            if position < 2:
                shown: Inode | None = inode
                if position and inode.node.names:
                    shown = next(self.inodes.above(inode))
            else:
                try:
                    shown = self.find(inode, name)
                except OSError:
                    entry = self._listed(inode, name)
                    if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, position + 1):
                        return
                    continue
            if shown is None:
                continue  # removed since it was listed
            entry = self._attributes(shown)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, position + 1):
                self.inodes.drop_unused(shown)
                return
            if position >= 2:
                self.inodes.told(shown)

    @_answered
    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        node = self._directories[fh].inode.node
        if not node.upper or not self._stack.options.syncs:
            return
        fd = self._opened(self._directories[fh].inode, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await self._apart(os.fsync, fd)
        finally:
            os.close(fd)


def _may_keep_set_id(process: int) -> bool:
    """Whether a process has CAP_FSETID; not, where nobody can tell."""
    try:
        return system.capable(_FSETID, process)
    except OSError:
        return False


def _may_keep_set_gid(ctx: RequestContext, group: int) -> bool:
    """Whether a process may have files of that group with the set-gid bit."""
    try:
        member = group == ctx.gid or group in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:
        member = False
    return member or _may_keep_set_id(ctx.pid)


def _is_chown(fields: SetattrFields) -> bool:
    """Whether chown(2) was called, perhaps for nobody else, which takes set-id bits off."""
    return (
        fields.update_uid
        or fields.update_gid
        or not any(
            (
                fields.update_size,
                fields.update_mode,
                fields.update_atime,
                fields.update_mtime,
            )
        )
    )


def _times(attr: EntryAttributes, fields: SetattrFields, status: os.stat_result) -> tuple[int, int]:
    """Access and modification time to set, in nanoseconds; the one not asked for stays."""
    return (
        attr.st_atime_ns if fields.update_atime else status.st_atime_ns,
        attr.st_mtime_ns if fields.update_mtime else status.st_mtime_ns,
    )
