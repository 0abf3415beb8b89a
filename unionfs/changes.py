"""Every change of a union: names made, linked, renamed and removed, attributes set.

Each is one small transaction on upper: what cannot be done by a single call is made whole in the
work directory, then one rename shows it. Nodes that the caller holds are kept right.

The caller holds the stack's lock, has looked the names up, and has checked that a directory is one
where it must be. Rules: fs/overlayfs/dir.c. Cost: the copy-up of the parent, then one call or two;
removing a name that lower layers hold costs a whiteout more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from unionfs import fileattr, index, markers, merge, override, system
from unionfs.copyup import Name, copy_attributes, copy_up, mark_impure, writable
from unionfs.inodes import file_id
from unionfs.place import Place, join, lstat, lstat_or_none
from unionfs.resolve import Node, exists_below, lookup, top
from unionfs.stack import LayerStack
from unionfs.xattrs import DEFAULT_ACL

_LINUX_IMMUTABLE = 9

Creator = AbstractContextManager[None]
"""Entered while a new file is made: who owns it, and the umask, are then the thread's own."""

_Make = Callable[[int, str], None]


def create_file(
    stack: LayerStack,
    parent: Node,
    name: str,
    mode: int,
    flags: int,
    creator: Creator | None = None,
) -> tuple[Node, int]:
    """Make a regular file under a new name; its node, and a descriptor opened with flags."""
    opened = -1

    def make(dir_fd: int, path: str) -> None:
        nonlocal opened
        made = flags & ~os.O_TRUNC | os.O_CREAT | os.O_EXCL
        opened = system.open_beneath(dir_fd, path, made, mode & 0o7777)

    try:
        return _create(stack, parent, name, make, creator), opened
    except BaseException:
        if opened >= 0:
            os.close(opened)
        raise


def mkdir(
    stack: LayerStack, parent: Node, name: str, mode: int, creator: Creator | None = None
) -> Node:
    """Make a directory under a new name."""
    return _create(
        stack, parent, name, lambda fd, path: os.mkdir(path, mode & 0o7777, dir_fd=fd), creator
    )


def mknod(
    stack: LayerStack,
    parent: Node,
    name: str,
    mode: int,
    device: int = 0,
    creator: Creator | None = None,
) -> Node:
    """Make a file, pipe, socket or device under a new name.

    Raises OSError EPERM for the device 0:0, which is a whiteout.
    """
    if stat.S_ISCHR(mode) and device == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)
    return _create(
        stack, parent, name, lambda fd, path: os.mknod(path, mode, device, dir_fd=fd), creator
    )


def symlink(
    stack: LayerStack, parent: Node, name: str, target: str, creator: Creator | None = None
) -> Node:
    """Make a symlink under a new name."""
    return _create(
        stack, parent, name, lambda fd, path: os.symlink(target, path, dir_fd=fd), creator
    )


def link(stack: LayerStack, node: Node, parent: Node, name: str) -> None:
    """Give a file, which is no directory, one name more."""
    writable(stack)
    _check_name(name)
    fileattr.refuse_names(stack, parent)
    fileattr.refuse(stack, node)
    copy_up(stack, node, data=False)
    _copy_up_directory(stack, parent)
    if node.origin:
        mark_impure(stack, parent)
    if node.data is not None:
        _set_redirect(stack, node, same_directory=False)
    if node.index is not None:
        index.keep_links(stack, node.index)
    source = top(stack, node)

    def make(dir_fd: int, path: str) -> None:
        os.link(
            source.path,
            path,
            src_dir_fd=source.layer.fd,
            dst_dir_fd=dir_fd,
            follow_symlinks=False,
        )

    _make(stack, parent, name, make, nullcontext())
    node.names.append((parent, name))


def _create(
    stack: LayerStack, parent: Node, name: str, make: _Make, creator: Creator | None
) -> Node:
    upper = writable(stack)
    _check_name(name)
    fileattr.refuse_names(stack, parent)
    _copy_up_directory(stack, parent)
    _make(stack, parent, name, make, creator or nullcontext())
    place = Place(upper, join(parent.path, name))
    status = place.status()
    node = Node([(parent, name)], stat.S_IFMT(status.st_mode), file_id(status), upper=True)
    node.guard = 0
    if node.is_dir:
        opaque = markers.of_directory(stack.prefix, upper.fd, place.path).opaque
        if not opaque and parent.is_merged:
            with contextlib.suppress(OSError):  # the layers below do not hold the name anyway
                _set_opaque(stack, place.path)
                opaque = True
        node.opaque = opaque
    return node


def _check_name(name: str) -> None:
    """AUFS' whiteouts cannot be made by name: they would hide other files in the next image."""
    if name.startswith(markers.AUFS_PREFIX):
        message = f"names that begin with {markers.AUFS_PREFIX} are whiteouts; choose another"
        raise OSError(errno.EINVAL, message, name)


def _copy_up_directory(stack: LayerStack, directory: Node) -> None:
    """Make upper hold a directory that is about to get or lose a name."""
    stack.claim()
    copy_up(stack, directory)


def _make(stack: LayerStack, parent: Node, name: str, make: _Make, creator: Creator) -> None:
    """Let make create name in upper, over a whiteout where there is one."""
    upper = writable(stack)
    path = join(parent.path, name)
    whiteout = lstat_or_none(upper, path)
    if whiteout is None:
        with creator:
            make(upper.fd, path)
        return
    if not markers.is_whiteout(stack.prefix, upper.fd, path, whiteout):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with _stand_in(stack, parent) as directory:
        workdir = stack.claim()
        draft = f"{directory}/new"
        with creator:
            make(workdir.fd, draft)
        if stat.S_ISDIR(os.stat(draft, dir_fd=workdir.fd, follow_symlinks=False).st_mode):
            system.set_xattr(workdir.fd, draft, stack.prefix + markers.OPAQUE, markers.YES)
            workdir.move_in(draft, upper.fd, path, system.RENAME_EXCHANGE)
        else:
            workdir.move_in(draft, upper.fd, path)


@contextlib.contextmanager
def _stand_in(stack: LayerStack, parent: Node) -> Iterator[str]:
    """A directory in work in which new files become what they would become in parent.

    That is its group, where it passes that on, and its default access control list.
    """
    upper, workdir = writable(stack), stack.claim()
    status = lstat(upper, parent.path)
    name = workdir.new_name()
    os.mkdir(name, 0o700, dir_fd=workdir.fd)
    try:
        if status.st_mode & stat.S_ISGID and not upper.owners:
            os.chown(name, -1, status.st_gid, dir_fd=workdir.fd)
            os.chmod(name, 0o2700, dir_fd=workdir.fd)
        acl = system.get_xattr(upper.fd, parent.path, DEFAULT_ACL)
        if acl is not None:
            system.set_xattr(workdir.fd, name, DEFAULT_ACL, acl)
        yield name
    finally:
        workdir.discard(name)


def _set_opaque(stack: LayerStack, path: str) -> None:
    upper = writable(stack)
    system.set_xattr(upper.fd, path, stack.prefix + markers.OPAQUE, markers.YES)


def unlink(stack: LayerStack, parent: Node, name: str, node: Node) -> None:
    """Remove a name of a file. Raises OSError EISDIR for a directory."""
    fileattr.refuse_removal(stack, parent, node)
    if node.is_dir:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), node.path)
    _remove(stack, parent, name, node)


def rmdir(stack: LayerStack, parent: Node, name: str, node: Node) -> None:
    """Remove an empty directory.

    Raises OSError: ENOTDIR; ENOTEMPTY where the union shows anything in it.
    """
    fileattr.refuse_removal(stack, parent, node)
    if not node.is_dir:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), node.path)
    _check_empty(stack, node)
    _remove(stack, parent, name, node)


def _check_empty(stack: LayerStack, directory: Node) -> None:
    if not merge.is_empty(stack, directory):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), directory.path)


def _remove(stack: LayerStack, parent: Node, name: str, node: Node) -> None:
    upper = writable(stack)
    _copy_up_directory(stack, parent)
    path = join(parent.path, name)
    with _losing(stack, node, (parent, name)):
        if not node.upper or exists_below(stack, parent, name):
            _cover(stack, parent, name, node)
        elif node.is_dir:
            _remove_directory(stack, path)
        else:
            os.unlink(path, dir_fd=upper.fd)
    node.names.remove((parent, name))


@contextlib.contextmanager
def _losing(stack: LayerStack, node: Node | None, at: Name) -> Iterator[None]:
    """Take a name away in the block: a file of the index shows one less then.

    How many it shows is kept with its copy, so it is copied up if need be (ovl_nlink_start).
    """
    if node is None or node.index is None:
        yield
        return
    copy_up(stack, node, data=False, at=at)
    links = index.keep_links(stack, node.index)
    yield
    if links == 1:
        index.drop(stack, node.index)


def _remove_directory(stack: LayerStack, path: str) -> None:
    """Remove a directory of upper that may hold whiteouts, in one step."""
    upper, workdir = writable(stack), stack.claim()
    try:
        os.rmdir(path, dir_fd=upper.fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        name = workdir.new_name()
        system.rename(upper.fd, path, workdir.fd, name)
        workdir.discard(name)


def _cover(stack: LayerStack, parent: Node, name: str, node: Node) -> None:
    """Put a whiteout in the place of what upper holds at a name, if it holds anything."""
    upper, workdir = writable(stack), stack.claim()
    path = join(parent.path, name)
    with workdir.draft() as draft:
        markers.make_whiteout(stack.prefix, workdir.fd, draft)
        if stat.S_ISREG(os.stat(draft, dir_fd=workdir.fd, follow_symlinks=False).st_mode):
            markers.announce_xwhiteouts(stack.prefix, upper.fd, parent.path)
        if not (node.upper and node.is_dir):
            workdir.move_in(draft, upper.fd, path)
            return
        workdir.move_in(draft, upper.fd, path, system.RENAME_EXCHANGE)
        workdir.discard(draft)


def rename(
    stack: LayerStack,
    old_parent: Node,
    old_name: str,
    old: Node,
    new_parent: Node,
    new_name: str,
    new: Node | None,
    flags: int = 0,
) -> None:
    """Move a name, over what the new one names, or exchange the two (RENAME_EXCHANGE).

    The caller has checked what the kernel's VFS checks of names: RENAME_NOREPLACE, a directory
    moved below itself.

    Raises OSError: ENOTDIR and EISDIR for what cannot replace the other; ENOTEMPTY; EXDEV for a
    lower directory that the options keep in its place.
    """
    upper = writable(stack)
    exchange = bool(flags & system.RENAME_EXCHANGE)
    _check_name(new_name)
    refuse_rename(stack, old_parent, old, new_parent, new)
    if new is not None and _same_file(stack, old, new):
        return
    if new is not None and not exchange and new.is_dir != old.is_dir:
        number = errno.EISDIR if new.is_dir else errno.ENOTDIR
        raise OSError(number, os.strerror(number), new.path)
    _make_movable(stack, old)
    if new is not None and exchange:
        _make_movable(stack, new)
    elif new is not None and new.is_dir:
        _check_empty(stack, new)
    copy_up(stack, old, data=False, at=(old_parent, old_name))
    _copy_up_directory(stack, old_parent)
    _copy_up_directory(stack, new_parent)
    if new is not None and exchange:
        copy_up(stack, new, data=False, at=(new_parent, new_name))
    same_directory = old_parent is new_parent
    if not same_directory and _comes_from_below(old):
        mark_impure(stack, new_parent)
    if exchange and not same_directory and new is not None and _comes_from_below(new):
        mark_impure(stack, old_parent)
    _keep_apart(stack, old, new_parent, same_directory)
    if exchange and new is not None:
        _keep_apart(stack, new, old_parent, same_directory)
    old_path, new_path = join(old_parent.path, old_name), join(new_parent.path, new_name)
    if exchange:
        system.rename(upper.fd, old_path, upper.fd, new_path, system.RENAME_EXCHANGE)
    else:
        with _losing(stack, new, (new_parent, new_name)):
            if new is not None and new.is_dir and new.upper:
                _empty(stack, new, new_path)
            _replace(stack, old_parent, old_name, old, new_path)
    old.names.remove((old_parent, old_name))
    old.names.append((new_parent, new_name))
    if new is not None:
        new.names.remove((new_parent, new_name))
        if exchange:
            new.names.append((old_parent, old_name))


def refuse_rename(
    stack: LayerStack, old_parent: Node, old: Node, new_parent: Node, new: Node | None
) -> None:
    """Raise PermissionError where flags of the files, or of what they lie in, forbid a rename."""
    fileattr.refuse_removal(stack, old_parent, old)
    if new is None:
        fileattr.refuse_names(stack, new_parent)
    else:
        fileattr.refuse_removal(stack, new_parent, new)


def _comes_from_below(node: Node) -> bool:
    """Whether its number is that of something lower, once it is in upper."""
    return node.origin or (node.is_dir and bool(node.lower))


def _same_file(stack: LayerStack, old: Node, new: Node) -> bool:
    """Whether both are names of one file: rename(2) does nothing then."""
    if old.index is not None or new.index is not None:
        return old.index == new.index
    if not (old.upper and new.upper):
        return False  # names of one lower file are copied up apart
    return file_id(top(stack, old).status()) == file_id(top(stack, new).status())


def _make_movable(stack: LayerStack, node: Node) -> None:
    """Let a directory that lower layers hold be renamed: by redirect, or copied up whole."""
    if moves_whole(stack, node):
        copy_up_tree(stack, node)
    elif node.is_dir and node.lower and not stack.redirects:
        message = "a directory of a lower layer stays in its place with redirect_dir off"
        raise OSError(errno.EXDEV, message, node.path)


def moves_whole(stack: LayerStack, node: Node) -> bool:
    """Whether a node is renamed by copying up all that is below it."""
    return node.is_dir and bool(node.lower) and not stack.redirects and stack.copies_directories


def copy_up_tree(stack: LayerStack, directory: Node) -> None:
    """Make upper hold a directory with all below it, and hide the lower ones.

    The view is the same at every step: whole directories are copied before they are made opaque.
    """
    copy_up(stack, directory)
    for name in merge.listing(stack, directory):
        node = lookup(stack, directory, name)
        if node is None:
            continue
        if node.is_dir:
            copy_up_tree(stack, node)
        else:
            copy_up(stack, node)
    if directory.lower:
        _set_opaque(stack, directory.path)
        directory.lower, directory.opaque = (), True


def _keep_apart(stack: LayerStack, node: Node, parent: Node, same_directory: bool) -> None:
    """Before a node gets a new name: let it find what is below it, and nothing else.

    That is what merges into a directory, and the data of a copy of metadata alone.
    """
    if node.data is not None:
        # Its other names may come to lie in other directories (ovl_need_absolute_redirect).
        alone = node.lower[0].status().st_nlink == 1
        _set_redirect(stack, node, same_directory and alone)
    elif node.is_dir and node.lower:
        _set_redirect(stack, node, same_directory)
    elif node.is_dir and not node.opaque and parent.is_merged:
        _set_opaque(stack, node.path)
        node.opaque = True


def _set_redirect(stack: LayerStack, node: Node, same_directory: bool) -> None:
    target = _redirect(node, same_directory)
    if target is None:
        return
    value = os.fsencode(target)
    if len(value) > markers.REDIRECT_MAX:
        message = "its path is too long for a redirect mark; copy it instead"
        raise OSError(errno.EXDEV, message, node.path)
    place = top(stack, node)
    system.set_xattr(place.layer.fd, place.path, stack.prefix + markers.REDIRECT, value)
    node.redirect = target


def _redirect(node: Node, same_directory: bool) -> str | None:
    """Where the lower layers hold a node; None where its mark says so already.

    Within one directory a name suffices (ovl_set_redirect).
    """
    if node.redirect is not None and (same_directory or node.redirect.startswith("/")):
        return None
    if same_directory:
        return node.names[0][1]
    path = ""
    while node.names:
        parent, name = node.names[0]
        path = f"/{(node.redirect or name).lstrip('/')}{path}"
        if node.redirect is not None and node.redirect.startswith("/"):
            break
        node = parent
    return path


def _replace(stack: LayerStack, old_parent: Node, old_name: str, old: Node, new_path: str) -> None:
    """Rename within upper, leaving a whiteout where the old name would show a lower file."""
    upper, workdir = writable(stack), stack.claim()
    old_path = join(old_parent.path, old_name)
    below = exists_below(stack, old_parent, old_name)
    there = lstat_or_none(upper, new_path)
    whiteout = there is not None and markers.is_whiteout(stack.prefix, upper.fd, new_path, there)
    if below and whiteout:
        system.rename(upper.fd, old_path, upper.fd, new_path, system.RENAME_EXCHANGE)
    elif below:
        _rename_and_cover(stack, old_parent, old_path, new_path)
    elif whiteout and old.is_dir:
        name = workdir.new_name()
        system.rename(upper.fd, old_path, upper.fd, new_path, system.RENAME_EXCHANGE)
        system.rename(upper.fd, old_path, workdir.fd, name)
        workdir.discard(name)
    else:
        system.rename(upper.fd, old_path, upper.fd, new_path)


def _rename_and_cover(stack: LayerStack, old_parent: Node, old_path: str, new_path: str) -> None:
    upper, workdir = writable(stack), stack.claim()
    try:
        system.rename(upper.fd, old_path, upper.fd, new_path, system.RENAME_WHITEOUT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        # The filesystem makes no whiteouts by itself: first the new name, then the old one's cover.
        system.rename(upper.fd, old_path, upper.fd, new_path)
        with workdir.draft() as draft:
            markers.make_whiteout(stack.prefix, workdir.fd, draft)
            markers.announce_xwhiteouts(stack.prefix, upper.fd, old_parent.path)
            workdir.move_in(draft, upper.fd, old_path)


def _empty(stack: LayerStack, directory: Node, path: str) -> None:
    """Exchange a directory of upper that holds nothing but whiteouts for an empty opaque one.

    It is to be replaced, but is seen until then, and stays if the process dies (ovl_clear_empty).
    """
    upper, workdir = writable(stack), stack.claim()
    if system.list_dir(upper.fd, path):
        place = Place(upper, path)
        with workdir.draft() as draft:
            os.mkdir(draft, 0o700, dir_fd=workdir.fd)
            copy_attributes(stack, place, place.status(), workdir.fd, draft)
            system.set_xattr(workdir.fd, draft, stack.prefix + markers.OPAQUE, markers.YES)
            workdir.move_in(draft, upper.fd, path, system.RENAME_EXCHANGE)
            directory.lower, directory.opaque = (), True
            workdir.discard(draft)


def chmod(stack: LayerStack, node: Node, mode: int) -> None:
    """Set the permission bits; EOPNOTSUPP for a symlink."""
    writable(stack)
    if node.kind == stat.S_IFLNK:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), node.path)
    fileattr.refuse(stack, node)
    copy_up(stack, node, data=False)
    place = top(stack, node)
    owners = place.layer.owners
    if owners and override.has(place.layer.fd, place.path):
        override.change(place.layer.fd, place.path, owners, place.status(), mode=mode)
    else:
        os.chmod(place.path or ".", mode & 0o7777, dir_fd=place.layer.fd)


def chown(stack: LayerStack, node: Node, uid: int, gid: int) -> None:
    """Set owner and group; -1 keeps one."""
    writable(stack)
    fileattr.refuse(stack, node, 0 if uid == gid == -1 else fileattr.GUARDS)
    copy_up(stack, node, data=False)
    place = top(stack, node)
    owners = place.layer.owners
    if owners and override.has(place.layer.fd, place.path):
        override.change(place.layer.fd, place.path, owners, place.status(), uid=uid, gid=gid)
    elif not owners:
        os.chown(place.path or ".", uid, gid, dir_fd=place.layer.fd, follow_symlinks=False)


def utime(stack: LayerStack, node: Node, ns: tuple[int, int] | None) -> None:
    """Set access and modification time, in nanoseconds; None is now.

    The caller has asked `fileattr` whether it may: not each change of times is a program's.
    """
    writable(stack)
    copy_up(stack, node, data=False)
    place = top(stack, node)
    path, fd = place.path or ".", place.layer.fd
    if ns is None:
        os.utime(path, dir_fd=fd, follow_symlinks=False)
    else:
        os.utime(path, ns=ns, dir_fd=fd, follow_symlinks=False)


def truncate(stack: LayerStack, node: Node, length: int) -> None:
    """Set the length of a regular file, in bytes.

    Raises OSError: EINVAL for a negative length, EISDIR, EFBIG, …
    """
    writable(stack)
    if length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), node.path)
    if node.kind != stat.S_IFREG:
        number = errno.EISDIR if node.is_dir else errno.EINVAL
        raise OSError(number, os.strerror(number), node.path)
    fileattr.refuse(stack, node, unmapped=errno.EACCES)
    copy_up(stack, node, length)
    place = top(stack, node)
    fd = system.open_beneath(place.layer.fd, place.path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.truncate(fd, length)
    finally:
        os.close(fd)


def set_flags(stack: LayerStack, node: Node, flags: int) -> None:
    """Set the flags of a file or directory, FS_…_FL of linux/fs.h.

    Raises OSError: ENOTTY for what has none; EPERM without CAP_LINUX_IMMUTABLE for the flags
    immutable and append-only; EOPNOTSUPP.
    """
    writable(stack)
    fileattr.refuse(stack, node, 0, errno.EPERM)
    changed = fileattr.get(stack, node) ^ flags
    if changed & fileattr.GUARDS and not system.capable(_LINUX_IMMUTABLE):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), node.path)
    copy_up(stack, node, data=False)
    fileattr.put(stack, node, flags)
