"""UnionFS: a stack of layers as one filesystem in this process, shaped like `os` and `pathlib`.

Paths begin at the union's root, with or without a slash. Symlinks and ".." resolve inside it, so
no path leaves the stack. Errors are OSError with the errno that kernel overlayfs gives and the
path as it was given. Everything is done with the rights of this process, and nothing more.

Methods may be called from any thread: each holds the stack's lock while it runs. A descriptor from
`os_open` is the layer's own file: one of a lower layer, opened for reading, keeps showing that
file when another opener changes the union's.

Cost: a dictionary access for each component that is known (`nodes`), else a lookup (`resolve`).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, Concatenate, ParamSpec, TypeVar, final

from unionfs import changes, copyup, fileattr, merge, override, resolve, system, xattrs
from unionfs.explanation import Explanation, explain
from unionfs.nodes import Nodes
from unionfs.resolve import Node, walk
from unionfs.stack import LayerStack

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _operation(
    method: Callable[Concatenate[UnionFS, str, _P], _R],
) -> Callable[Concatenate[UnionFS, str | os.PathLike[str], _P], _R]:
    """Run under the stack's lock; errors name the path that was given, not a layer's."""

    @functools.wraps(method)
    def run(
        self: UnionFS, path: str | os.PathLike[str], /, *args: _P.args, **keywords: _P.kwargs
    ) -> _R:
        text = os.fspath(path)
        try:
            with self.stack.lock:
                self._nodes.begin()
                try:
                    return method(self, text, *args, **keywords)
                finally:
                    self._nodes.end()
        except OSError as error:
            raise _of_path(error, text) from error

    return run


def _of_path(error: OSError, path: str) -> OSError:
    """The same error, of the path that was given."""
    return OSError(error.errno, error.strerror or os.strerror(error.errno or 0), path)


@final
class DirEntry:
    """One name of a directory, as `os.DirEntry` is."""

    __slots__ = ("_directory", "_listed", "_union", "name")

    def __init__(self, union: UnionFS, directory: str, listed: merge.Listed) -> None:
        self._union = union
        self._directory = directory
        self._listed = listed
        self.name = listed.name

    @property
    def path(self) -> str:
        """Its path: the directory's as it was given, and the name."""
        return os.path.join(self._directory, self.name)

    def inode(self) -> int:
        """The st_ino that stat gives."""
        listed = self._listed
        if listed.file is not None:
            directory = listed.kind == stat.S_IFDIR
            return self._union.stack.numbers.shown(listed.file, directory=directory)[1]
        return self._union.lstat(self.path).st_ino

    def is_symlink(self) -> bool:
        return self._listed.kind == stat.S_IFLNK

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._is(stat.S_IFREG, follow_symlinks)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._union.stat(self.path, follow_symlinks=follow_symlinks)

    def _is(self, kind: int, follow: bool) -> bool:
        followed = follow and self.is_symlink()
        # A file may stand in for another one (`override`).
        unsure = self._listed.kind == stat.S_IFREG and self._union.stack.options.xattr_permissions
        if not (followed or unsure):
            return self._listed.kind == kind
        try:
            return stat.S_IFMT(self.stat(follow_symlinks=followed).st_mode) == kind
        except FileNotFoundError:
            return False

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


@final
class UnionFS:
    """The union of a stack. It does not own the stack, which its user closes."""

    def __init__(self, stack: LayerStack) -> None:
        self.stack = stack
        with stack.lock:
            self._nodes = Nodes(stack)

    # Looking.

    def _node(self, path: str, *, follow: bool = True) -> Node:
        node = self._nodes.find(path, follow=follow) or self._walk(path, follow=follow)[2]
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _walk(self, path: str, *, follow: bool = False) -> tuple[Node, str, Node | None]:
        return walk(self.stack, self._nodes.root, path, follow=follow, child=self._nodes.child)

    def stat(self, path: str | os.PathLike[str], *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.stat."""
        return self._stat(os.fspath(path), follow_symlinks)

    def lstat(self, path: str | os.PathLike[str]) -> os.stat_result:
        """As os.lstat."""
        return self._stat(os.fspath(path), False)

    def _stat(self, path: str, follow: bool) -> os.stat_result:
        """An operation by itself: no other is called as often."""
        try:
            with self.stack.lock:
                known = self._nodes.recall(path)
                if known is not None:
                    return known
                node = self._nodes.find(path, follow=follow)
                if node is not None:
                    return self._nodes.status(node, path)
                return self._nodes.status(self._node(path, follow=follow))
        except OSError as error:
            raise _of_path(error, path) from error

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """As os.path.exists."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    @_operation
    def scandir(self, path: str = "/") -> list[DirEntry]:
        """The entries of a directory, in the layers' own order."""
        node = self._node(path)
        if not node.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        listed = merge.listing(self.stack, node)
        return [DirEntry(self, path, entry) for entry in listed.values()]

    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]:
        """As os.listdir."""
        return [entry.name for entry in self.scandir(path)]

    def walk(
        self, top: str | os.PathLike[str] = "/", topdown: bool = True
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """As os.walk: directories that cannot be listed are left out, symlinks not followed."""
        path = os.fspath(top)
        try:
            entries = self.scandir(path)
        except OSError:
            return
        directories = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        others = [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
        if topdown:
            yield path, directories, others
        for name in directories:
            yield from self.walk(os.path.join(path, name), topdown)
        if not topdown:
            yield path, directories, others

    @_operation
    def readlink(self, path: str) -> str:
        """As os.readlink."""
        node = self._node(path, follow=False)
        if node.kind != stat.S_IFLNK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return resolve.readlink(self.stack, node)

    def access(self, path: str | os.PathLike[str], mode: int) -> bool:
        """As os.access, by the real user and group of this process."""
        try:
            return self._access(path, mode)
        except OSError:
            return False

    @_operation
    def _access(self, path: str, mode: int) -> bool:
        node = self._node(path)
        if mode & os.W_OK and (self.stack.upper is None or self.stack.options.ro):
            return False
        place = resolve.top(self.stack, node)
        # By path: what a lower layer's descriptor leads to is read-only.
        return os.access(os.path.join(place.layer.path, place.path), mode)

    @_operation
    def statvfs(self, path: str = "/") -> os.statvfs_result:
        """As os.statvfs: that of the top layer."""
        self._node(path)
        return os.statvfs(self.stack.layers[0].fd)

    @_operation
    def explain(self, path: str) -> Explanation:
        """Which layer answers for a path, and why the others do not."""
        return explain(self.stack, path)

    # Files.

    @_operation
    def os_open(self, path: str, flags: int, mode: int = 0o777) -> int:
        """As os.open: a descriptor of the file in its layer, copied up where flags write."""
        node, parent, name = self._openable(path, flags)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if node is None:
            self._nodes.forget(parent, name)
            return changes.create_file(self.stack, parent, name, mode, flags)[1]
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if flags & os.O_CREAT and node.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            return self._temporary(node, flags, mode)
        if flags & os.O_PATH:
            return self._opened(node, flags)
        if node.kind == stat.S_IFLNK:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if flags & os.O_DIRECTORY and not node.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if node.is_dir and writes:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if writes and node.kind == stat.S_IFREG:
            copyup.writable(self.stack)
            fileattr.refuse_opening(self.stack, node, flags)
            copyup.copy_up(self.stack, node, 0 if flags & os.O_TRUNC else None)
        return self._opened(node, flags & ~os.O_CREAT)

    def _openable(self, path: str, flags: int) -> tuple[Node | None, Node, str]:
        creates = bool(flags & os.O_CREAT)
        exclusive = creates and bool(flags & os.O_EXCL)
        follow = not (flags & os.O_NOFOLLOW or exclusive)
        if creates and path.endswith("/"):
            self._walk(_bare(path))
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        parent, name, node = self._walk(path, follow=follow)
        if node is None and not creates:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node, parent, name

    def _opened(self, node: Node, flags: int) -> int:
        place = resolve.top(self.stack, node)
        if not flags & os.O_PATH:
            place = resolve.data(self.stack, node)
        if node.kind == stat.S_IFLNK:
            flags |= os.O_NOFOLLOW
        if node.is_dir and not flags & os.O_PATH:
            flags |= os.O_DIRECTORY
        if place.layer.owners and override.stands_in(place.layer.fd, place.path, node.kind):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), node.path)
        return system.open_beneath(place.layer.fd, place.path, flags)

    def _temporary(self, directory: Node, flags: int, mode: int) -> int:
        """O_TMPFILE: a file of upper without a name."""
        if not directory.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory.path)
        upper = copyup.writable(self.stack)
        fileattr.refuse_names(self.stack, directory)
        copyup.copy_up(self.stack, directory)
        return system.open_beneath(upper.fd, directory.path, flags, mode)

    def open(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As the built-in open."""

        def opener(_: str, flags: int) -> int:
            return self.os_open(path, flags, 0o666)

        return open(os.fspath(path), mode, buffering, encoding, errors, newline, opener=opener)

    def read_bytes(self, path: str | os.PathLike[str]) -> bytes:
        """All data of a file."""
        with self.open(path, "rb") as file:
            data: bytes = file.read()
            return data

    def write_bytes(self, path: str | os.PathLike[str], data: bytes) -> int:
        """Replace all data of a file, which is made where it is missing."""
        with self.open(path, "wb") as file:
            written: int = file.write(data)
            return written

    def read_text(self, path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
        """All text of a file."""
        return self.read_bytes(path).decode(encoding)

    def write_text(self, path: str | os.PathLike[str], text: str, encoding: str = "utf-8") -> int:
        """Replace all text of a file, which is made where it is missing."""
        return self.write_bytes(path, text.encode(encoding))

    @_operation
    def truncate(self, path: str, length: int) -> None:
        """As os.truncate; length in bytes."""
        if length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        changes.truncate(self.stack, self._node(path), length)

    @_operation
    def copy_up(self, path: str) -> None:
        """Make upper hold a file, as the first write does."""
        copyup.writable(self.stack)
        copyup.copy_up(self.stack, self._node(path, follow=False))

    # Names.

    def _new(self, path: str, *, directory: bool = False) -> tuple[Node, str]:
        """Parent and name for something to be made at path."""
        parent, name, node = self._walk(_bare(path))
        if node is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if path.endswith("/") and not directory:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        copyup.writable(self.stack)
        self._nodes.forget(parent, name)
        return parent, name

    @_operation
    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """As os.mkdir."""
        parent, name = self._new(path, directory=True)
        changes.mkdir(self.stack, parent, name, mode)

    def makedirs(
        self, path: str | os.PathLike[str], mode: int = 0o777, exist_ok: bool = False
    ) -> None:
        """As os.makedirs."""
        text = os.fspath(path).rstrip("/")
        head = os.path.dirname(text)
        if head and not self.exists(head):
            self.makedirs(head, exist_ok=True)
        try:
            self.mkdir(text, mode)
        except FileExistsError:
            if not exist_ok or not stat.S_ISDIR(self.stat(text).st_mode):
                raise

    @_operation
    def mknod(self, path: str, mode: int = 0o600, device: int = 0) -> None:
        """As os.mknod."""
        parent, name = self._new(path)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        changes.mknod(self.stack, parent, name, kind | stat.S_IMODE(mode), device)

    def mkfifo(self, path: str | os.PathLike[str], mode: int = 0o666) -> None:
        """As os.mkfifo."""
        self.mknod(path, stat.S_IFIFO | mode)

    def symlink(self, target: str, path: str | os.PathLike[str]) -> None:
        """As os.symlink."""
        if not target:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        self._symlink(path, target)

    @_operation
    def _symlink(self, path: str, target: str) -> None:
        if len(os.fsencode(target)) > resolve.PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        parent, name = self._new(path)
        changes.symlink(self.stack, parent, name, target)

    @_operation
    def link(self, src: str, dst: str | os.PathLike[str]) -> None:
        """As os.link, not following a symlink."""
        directory, old_name, node = self._walk(src)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), src)
        parent, name = self._new(os.fspath(dst))
        if node.is_dir:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), src)
        self._nodes.forget(directory, old_name)  # each name gets a node of its own
        changes.link(self.stack, node, parent, name)

    def _existing(self, path: str) -> tuple[Node, str, Node]:
        """Parent, name and node of something to be removed."""
        parent, name, node = self._walk(_bare(path))
        copyup.writable(self.stack)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if path.endswith("/") and not node.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self._nodes.forget(parent, name)
        return parent, name, node

    @_operation
    def unlink(self, path: str) -> None:
        """As os.unlink."""
        parent, name, node = self._existing(path)
        changes.unlink(self.stack, parent, name, node)

    @_operation
    def rmdir(self, path: str) -> None:
        """As os.rmdir."""
        parent, name, node = self._existing(path)
        number = {".": errno.EINVAL, "..": errno.ENOTEMPTY, "": errno.EBUSY}.get(name)
        if number is not None:
            raise OSError(number, os.strerror(number), path)
        changes.rmdir(self.stack, parent, name, node)

    def rmtree(self, path: str | os.PathLike[str]) -> None:
        """Remove a directory with all in it, as shutil.rmtree; symlinks are not followed."""
        for top, directories, others in self.walk(path, topdown=False):
            for name in others:
                self.unlink(os.path.join(top, name))
            for name in directories:
                self.rmdir(os.path.join(top, name))
        self.rmdir(path)

    @_operation
    def rename(self, src: str, dst: str | os.PathLike[str], flags: int = 0) -> None:
        """As renameat2(2); flags: 0 or of RENAME_NOREPLACE, RENAME_EXCHANGE.

        A lower directory is renamed too, by a redirect mark or copied up whole.
        """
        target = os.fspath(dst)
        exchange = bool(flags & system.RENAME_EXCHANGE)
        no_replace = bool(flags & system.RENAME_NOREPLACE)
        known = system.RENAME_EXCHANGE | system.RENAME_NOREPLACE
        if flags & ~known or (exchange and no_replace):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), src)
        old_parent, old_name, old = self._walk(_bare(src))
        new_parent, new_name, new = self._walk(_bare(target))
        if old_name in ("", ".", ".."):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), src)
        if new_name in ("", ".", ".."):
            number = errno.EEXIST if no_replace else errno.EBUSY
            raise OSError(number, os.strerror(number), src)
        copyup.writable(self.stack)
        if old is None or (exchange and new is None):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), src)
        if no_replace and new is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        if not old.is_dir and (src.endswith("/") or (target.endswith("/") and not exchange)):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), src)
        if _is_below(new_parent, old):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), src)
        if new is not None and _is_below(old_parent, new):
            number = errno.EINVAL if exchange else errno.ENOTEMPTY
            raise OSError(number, os.strerror(number), src)
        if old is new:
            return
        self._nodes.forget(old_parent, old_name)
        self._nodes.forget(new_parent, new_name)
        changes.rename(self.stack, old_parent, old_name, old, new_parent, new_name, new, flags)

    # Attributes.

    @_operation
    def chmod(self, path: str, mode: int) -> None:
        """As os.chmod."""
        changes.chmod(self.stack, self._node(path), mode)

    @_operation
    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """As os.chown."""
        changes.chown(self.stack, self._node(path, follow=follow_symlinks), uid, gid)

    @_operation
    def utime(
        self,
        path: str,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """As os.utime."""
        if times is not None:
            ns = (round(times[0] * 10**9), round(times[1] * 10**9))
        node = self._node(path, follow=follow_symlinks)
        copyup.writable(self.stack)
        if ns is None:
            fileattr.refuse(self.stack, node, fileattr.IMMUTABLE, errno.EACCES)
        else:
            fileattr.refuse(self.stack, node)
        changes.utime(self.stack, node, ns)

    @_operation
    def getflags(self, path: str) -> int:
        """The flags of a file or directory, as lsattr(1) shows them: FS_…_FL of linux/fs.h."""
        return fileattr.get(self.stack, self._node(path))

    @_operation
    def setflags(self, path: str, flags: int) -> None:
        """Set all of them, as chattr(1) does; immutable and append-only ask for a capability."""
        changes.set_flags(self.stack, self._node(path), flags)

    @_operation
    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes:
        """As os.getxattr; marks of the union are not shown."""
        return xattrs.get(self.stack, self._node(path, follow=follow_symlinks), name)

    @_operation
    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]:
        """As os.listxattr."""
        return xattrs.names(self.stack, self._node(path, follow=follow_symlinks))

    @_operation
    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """As os.setxattr."""
        node = self._node(path, follow=follow_symlinks)
        xattrs.set(self.stack, node, name, value, flags)

    @_operation
    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None:
        """As os.removexattr."""
        xattrs.remove(self.stack, self._node(path, follow=follow_symlinks), name)


def _bare(path: str) -> str:
    """A path without slashes at its end: its last component is then never followed."""
    return path.rstrip("/") or "/" if path else path


def _is_below(node: Node, ancestor: Node) -> bool:
    """Whether a directory is another one, or lies in it."""
    while node is not ancestor:
        if not node.names:
            return False
        node = node.names[0][0]
    return True
