"""Copy-up: before anything changes it, a lower file becomes a file of upper, whole or not at all.

The copy is built in the work directory, with everything that a lower file has (data with its
holes, owner, mode, times, extended attributes, access control lists) and a mark of its origin;
then it is written to disk, and one rename shows it. A crash leaves the old view or the new one, and
leftovers only in work. Parents come first.

Rules: fs/overlayfs/copy_up.c. Cost: the data once (nothing where the filesystem can share it),
about fifteen system calls a file, and an fsync(2) unless the mount is volatile; one for each
directory too with fsync=strict.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs import fileattr, index, markers, override, resolve, system
from unionfs.inodes import file_id
from unionfs.place import Layer, Place, join, lstat, lstat_or_none
from unionfs.resolve import Node, top
from unionfs.stack import LayerStack

# What an ordinary user may not copy; the kernel leaves it too where it is not permitted.
_PRIVILEGED: Final = ("security.", "trusted.")


_CAPABILITIES: Final = "security.capability"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

Name = tuple[Node, str]
"""A directory, and a name in it."""


def copy_up(
    stack: LayerStack,
    node: Node,
    size: int | None = None,
    *,
    data: bool = True,
    at: Name | None = None,
) -> None:
    """Make upper hold a node and its parents; nothing is done where it does.

    size: how many bytes of a regular file's data are wanted, None for all. data: False where its
    metadata suffices, if the options allow that. at: the name of a file with several that upper is
    to hold; None for any that is known.

    Raises OSError: EROFS without an upper, ENOSPC, EDQUOT, EIO, … Then nothing has changed.
    """
    if is_in_upper(stack, node, data=data, at=at):
        return
    copy_up_parents(stack, node, at)
    if not node.upper:
        install(stack, node, build(stack, node, size, data=data), data=data, at=at)
    if not _has_name(stack, node, at):
        _link_up(stack, node, at)
    if data and node.data is not None:
        fill(stack, node, size)


def is_in_upper(
    stack: LayerStack, node: Node, *, data: bool = True, at: Name | None = None
) -> bool:
    """Whether nothing of a node is left to be copied up. data, at: as for `copy_up`."""
    return node.upper and not (data and node.data is not None) and _has_name(stack, node, at)


def _has_name(stack: LayerStack, node: Node, at: Name | None) -> bool:
    """Whether upper has a name for a node that it holds: the index may have the file alone."""
    return node.index is None or any(
        _holds(stack, parent, name) for parent, name in ([at] if at else node.names)
    )


def _holds(stack: LayerStack, parent: Node, name: str) -> bool:
    upper = writable(stack)
    return parent.upper and lstat_or_none(upper, join(parent.path, name)) is not None


def copy_up_parents(stack: LayerStack, node: Node, at: Name | None = None) -> None:
    """Make upper hold the directories that a node lies in, and let it be written."""
    stack.claim()
    missing = []
    above = at or next(iter(node.names), None)
    while above and not above[0].upper:
        missing.append(above[0])
        above = next(iter(above[0].names), None)
    for directory in reversed(missing):
        install(stack, directory, build(stack, directory))


def build(stack: LayerStack, node: Node, size: int | None = None, *, data: bool = True) -> str:
    """Copy a node that upper lacks; the name of the copy in the work directory.

    size, data: as for `copy_up`. May run beside anything else that uses the stack.
    """
    workdir = stack.claim()
    source = node.lower[0]
    if stack.idmapped:
        fileattr.refuse(stack, node, 0)
    status = lstat(source.layer, source.path)  # as it is, whatever an index says
    kind = stat.S_IFMT(status.st_mode)
    below = resolve.data(stack, node)
    with workdir.draft() as draft:
        if kind == stat.S_IFREG:
            copy = os.open(draft, _NEW, 0o600, dir_fd=workdir.fd)
            try:
                if data or not _leaves_data(stack, status):
                    _copy_data(below, copy, status.st_size, size, synced=_syncs(stack))
                else:
                    os.ftruncate(copy, status.st_size)
                    system.set_xattr(copy, "", stack.prefix + markers.METACOPY, b"")
            finally:
                os.close(copy)
        elif kind == stat.S_IFDIR:
            os.mkdir(draft, 0o700, dir_fd=workdir.fd)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(source.path, dir_fd=source.layer.fd), draft, dir_fd=workdir.fd)
        elif source.layer.owners and override.stands_in(source.layer.fd, source.path, kind):
            os.close(os.open(draft, _NEW, 0o600, dir_fd=workdir.fd))
        else:
            os.mknod(draft, kind | 0o600, status.st_rdev, dir_fd=workdir.fd)
        copy_attributes(stack, source, status, workdir.fd, draft)
        if fileattr.has_flags(node):
            fileattr.copy(stack.prefix, source, workdir.fd, draft)
        indexed = index.name_of(stack, source.layer.fd, source.path, status) is not None
        if kind == stat.S_IFDIR or status.st_nlink == 1 or indexed:
            mark = stack.numbers.handle_mark(source.layer.fd, source.path)
            _mark(workdir.fd, draft, stack.prefix + markers.ORIGIN, mark)
        if kind == stat.S_IFREG or (kind == stat.S_IFDIR and stack.options.strict):
            _sync_draft(stack, draft)
    return draft


def _leaves_data(stack: LayerStack, status: os.stat_result) -> bool:
    """Whether metadata alone may be copied of a lower file (ovl_need_meta_copy_up)."""
    return stack.metacopy and stat.S_ISREG(status.st_mode)


def _syncs(stack: LayerStack) -> bool:
    """Whether copies are on disk before they are shown."""
    return not stack.options.volatile


def _copy_data(source: Place, copy: int, length: int, size: int | None, *, synced: bool) -> None:
    """Copy the first size bytes of a file that is length bytes long."""
    wanted = length if size is None else min(size, length)
    if not wanted:
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    original = system.open_beneath(source.layer.fd, source.path, flags)
    try:
        if wanted < length or not system.clone(original, copy):
            system.copy_data(original, copy, wanted, synced=synced)
    finally:
        os.close(original)


def fill(stack: LayerStack, node: Node, size: int | None = None) -> None:
    """Give a copy of metadata alone its data; size: 0 where none of it is wanted.

    In place, for it may have several names. Its mark goes last: until then the data below counts.
    May run beside anything else that uses the stack.
    """
    place = top(stack, node)
    assert node.data is not None
    fd = system.open_beneath(place.layer.fd, place.path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        # What is written to a file takes its capabilities away.
        capabilities = system.get_xattr(fd, "", _CAPABILITIES)
        if size == 0:
            os.ftruncate(fd, 0)
        else:
            length = os.fstat(fd).st_size
            _copy_data(resolve.data(stack, node), fd, length, None, synced=_syncs(stack))
        if capabilities is not None:
            system.set_xattr(fd, "", _CAPABILITIES, capabilities)
        _sync(stack, fd)
        system.remove_xattr(fd, "", stack.prefix + markers.METACOPY)
    finally:
        os.close(fd)
    node.data, node.lower, node.redirect = None, (), None


def _sync_draft(stack: LayerStack, draft: str) -> None:
    fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=stack.claim().fd)
    try:
        _sync(stack, fd)
    finally:
        os.close(fd)


def _sync(stack: LayerStack, fd: int) -> None:
    """Have a copy outlive a loss of power if what shows it does, unless nothing is to be synced."""
    if not _syncs(stack):
        return
    if stack.claim().ordered and not stack.options.strict:
        system.write_out(fd)
    else:
        os.fsync(fd)


def copy_attributes(
    stack: LayerStack, source: Place, status: os.stat_result, dir_fd: int, copy: str
) -> None:
    """Give a new file the owner, attributes, mode and times of the one at source.

    In this order: a change of owner drops set-id bits and capabilities.
    """
    owners = writable(stack).owners
    if not owners and (os.geteuid(), os.getegid()) != (status.st_uid, status.st_gid):
        os.chown(copy, status.st_uid, status.st_gid, dir_fd=dir_fd, follow_symlinks=False)
    for name in system.list_xattr(source.layer.fd, source.path):
        if markers.in_union(stack.prefix, name) is not None and name != source.layer.owners:
            value = system.get_xattr(source.layer.fd, source.path, name)
            if value is not None:
                set_attribute(dir_fd, copy, name, value)
    if owners and override.has(dir_fd, copy):
        override.put(dir_fd, copy, owners, status)
        os.chmod(copy, override.on_disk(status.st_mode), dir_fd=dir_fd)
    elif not stat.S_ISLNK(status.st_mode):
        os.chmod(copy, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(copy, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def set_attribute(dir_fd: int, copy: str, name: str, value: bytes) -> None:
    """Set an extended attribute of a new file, unless it is one that this process may not set."""
    try:
        system.set_xattr(dir_fd, copy, name, value)
    except OSError as error:
        if not name.startswith(_PRIVILEGED) or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


def _mark(dir_fd: int, path: str, name: str, value: bytes) -> bool:
    """Set a mark that a union can do without; whether the filesystem takes it."""
    try:
        system.set_xattr(dir_fd, path, name, value)
    except OSError as error:
        # user. attributes: not on symlinks and special files, and not on every filesystem.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        return False
    return True


def install(
    stack: LayerStack,
    node: Node,
    draft: str,
    *,
    data: bool = True,
    at: Name | None = None,
) -> None:
    """Show what `build` copied for a node, whose parents are in upper, in the lower file's place.

    data: as for `build`. at: as for `copy_up`.

    Raises FileNotFoundError for a node that was removed meanwhile: no name can show it.
    """
    upper = writable(stack)
    workdir = stack.claim()
    try:
        path = node.path
    except FileNotFoundError:
        workdir.discard(draft)
        raise
    if node.index is not None:
        _install_in_index(stack, node, draft, data)
        _link_up(stack, node, at)
        return
    parent = node.names[0][0]
    directory = lstat(upper, parent.path)
    status = node.lower[0].status()
    with workdir.discarding(draft):
        mark_impure(stack, parent)
        workdir.move_in(draft, upper.fd, path, system.RENAME_NOREPLACE)
    node.upper = True
    if not node.is_dir:
        _note_data(stack, node, status, data)
        node.origin = status.st_nlink == 1
        if not node.origin:
            # Its links below stay together without it, so it is a file of its own.
            node.file = file_id(lstat(upper, path))
    restore_times(upper, parent.path, directory)


def _note_data(stack: LayerStack, node: Node, status: os.stat_result, data: bool) -> None:
    """After a file was copied up: where its data is. status: that of the lower file."""
    if data or not _leaves_data(stack, status):
        node.lower, node.data = (), None
    else:
        node.data = node.data or node.lower[0]


def _install_in_index(stack: LayerStack, node: Node, draft: str, data: bool) -> None:
    workdir = stack.claim()
    assert node.index is not None and stack.index is not None
    status = node.lower[0].status()
    with workdir.discarding(draft):
        name = stack.prefix + markers.NLINK
        _mark(workdir.fd, draft, name, index.links_mark(status.st_nlink, 1))
        workdir.move_in(draft, stack.index.fd, node.index, system.RENAME_NOREPLACE)
    node.upper = node.origin = True
    _note_data(stack, node, status, data)


def _link_up(stack: LayerStack, node: Node, at: Name | None) -> None:
    """Make a name of a file of the index one in upper; the parent is there.

    What tells how many names there are is true at every step (ovl_link_up).
    """
    upper = writable(stack)
    parent, name = at or node.names[0]
    assert node.index is not None and stack.index is not None
    links = index.keep_links(stack, node.index, "L")
    mark_impure(stack, parent)
    directory = lstat(upper, parent.path)
    os.link(
        node.index,
        join(parent.path, name),
        src_dir_fd=stack.index.fd,
        dst_dir_fd=upper.fd,
        follow_symlinks=False,
    )
    restore_times(upper, parent.path, directory)
    index.set_links(stack, node.index, links)


def writable(stack: LayerStack) -> Layer:
    """The upper layer; OSError EROFS where there is none."""
    if stack.upper is None or stack.options.ro:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return stack.upper


def mark_impure(stack: LayerStack, directory: Node) -> None:
    """Say that files in a directory of upper may come from below, so that their numbers do too."""
    if not directory.impure:
        _mark(writable(stack).fd, directory.path, stack.prefix + markers.IMPURE, markers.YES)
        directory.impure = True


def restore_times(layer: Layer, path: str, status: os.stat_result) -> None:
    """Give a directory the times back that it had."""
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(path or ".", ns=times, dir_fd=layer.fd, follow_symlinks=False)
