"""Entries of an archive as files below one directory, and never elsewhere.

An archive is not trusted. Names lead from the directory's root, whatever they look like; those that
climb out of it are refused. Symlinks in the directory are followed as in a chroot, so none leads
out: a name's parents are opened by `open_beneath`, which follows none, after those in them were
read and resolved here. What an entry finds in its place, it replaces, for the last one counts.

Directories get owners, modes, attributes and times at the very end: what is made in a directory
changes its time, and its access control list would be inherited.

Cost: four system calls a file, six where owner or mode are not what a new file has by itself, and
an open of its directory where that was not among the last. Small files are completed by a second
thread, those without attributes among them by C.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import queue
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, final

from unionfs import copyup, markers, system
from unionfs.layers.streams import LayerError
from unionfs.layers.tar import HARD_LINK, Entry
from unionfs.place import join
from unionfs.resolve import SYMLINKS_MAX

_DIRECTORIES_OPEN: Final = 64
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
NOT_SHIPPED: Final = ("trusted.", "security.selinux", *markers.PREFIXES)
"""What others neither pack nor unpack: this machine's own, and marks, which would act here."""

_NO_NAMES: Final = ("", ".", "..")
_SMALL: Final = 1 << 16  # bytes of a file that another thread completes
_BATCH: Final = 32  # files that it is handed at once
_BATCHES: Final = 2  # that may wait for it: a descriptor a file

_NS: Final = 10**9


_Content = bytes | memoryview
_Pieces = Iterable[tuple[int, _Content]]


class Data(Protocol):
    """An entry's content, to be read once: in pieces with their offsets, or at once."""

    def data(self) -> _Pieces: ...
    def whole(self) -> _Content: ...


@final
@dataclass(frozen=True, slots=True)
class Rights:
    """What of an archive is left out where this process may not make it, as podman does.

    devices: whether device nodes are made; where the kernel permits none they are left out.
    ignore_chown_errors: whether a file may keep this process's owner.
    """

    devices: bool = True
    ignore_chown_errors: bool = False


def cleaned(name: str, what: str = "name") -> str:
    """An archive's name as a path from the root, "" for that. Raises LayerError where it climbs."""
    path = posixpath.normpath(name.lstrip("/"))
    if path == ".":
        return ""
    if path == ".." or path.startswith("../"):
        raise LayerError(errno.EINVAL, f"the {what} climbs out of the layer; do not trust it")
    return path


@final
class Unpacker:
    """Makes files below a directory.

    root: its descriptor. rights: what may be left out. implicit: the attributes of a directory
    that an entry lies in and that no entry describes, by its path. fresh: whether root is empty,
    and nothing made in it inherits a group or an access control list. under: the directory that
    names lead from.

    implied: the directories that it has made and no entry has described.

    `close` lets go of the directories that are held open, and `finish` must come before it. Every
    method raises LayerError that names the entry.
    """

    def __init__(
        self,
        root: int,
        rights: Rights,
        implicit: Callable[[str], Entry],
        *,
        fresh: bool = False,
        under: str = "",
    ) -> None:
        self._root = root
        self._fresh = fresh
        self._ids = (os.geteuid(), os.getegid())
        self._not_by_itself = umask() | 0o7000
        self._under = self._resolved(under)
        self._completing = _Completing(self._complete_files, self._complete)
        self._rights = rights
        self._implicit = implicit
        self._open: OrderedDict[str, int] = OrderedDict()
        self._places: dict[str, str] = {}  # by what stands before an entry's last component
        self._directories: dict[str, Entry] = {}
        self.implied: set[str] = set()

    def close(self) -> None:
        """Let go of the directories and the thread; what waits for that is dropped."""
        self._forget()
        self._completing.stop()

    def _forget(self) -> None:
        self._places.clear()
        while self._open:
            os.close(self._open.popitem()[1])

    def parent(self, path: str) -> tuple[int, str, str]:
        """The directory that a path lies in, made where it is missing.

        Its descriptor, which is good until the next call, its path with all symlinks resolved, and
        the last component of path.
        """
        directory, _, name = path.rpartition("/")
        fd = self._open.get(directory)
        if fd is not None:
            return fd, directory, name
        if not directory:
            return self._root, "", name
        try:
            fd = self._opened(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            directory = self._resolved(directory)
            if directory in self._open or not directory:
                return self._open.get(directory, self._root), directory, name
            fd = self._made(directory)
        if len(self._open) >= _DIRECTORIES_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[directory] = fd
        return fd, directory, name

    def _opened(self, directory: str) -> int:
        return system.open_beneath(self._root, directory, _DIRECTORY)

    def _made(self, directory: str) -> int:
        """A directory without symlinks in its path, opened; what is missing of it is made."""
        fd = os.dup(self._root)
        try:
            path = ""
            for name in directory.split("/"):
                path = join(path, name)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                    self.imply(path)
                below = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def imply(self, path: str) -> None:
        """Have a directory get the attributes of one that no entry describes."""
        self._directories[path] = self._implicit(path)
        self.implied.add(path)

    def _resolved(self, path: str) -> str:
        """A path without symlinks, each followed as in a chroot. Its end may be missing."""
        links = 0
        found: list[str] = []
        pending = path.split("/")[::-1]
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del found[-1:]
                continue
            found.append(name)
            target = self._link("/".join(found))
            if target is None:
                continue
            links += 1
            if links > SYMLINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            del found[0 if target.startswith("/") else -1 :]
            pending += target.split("/")[::-1]
        return "/".join(found)

    def _link(self, path: str) -> str | None:
        """The target of the symlink at a path whose parents are none; None for anything else."""
        try:
            fd = system.open_beneath(self._root, path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def place(self, name: str) -> str:
        """The path that an entry's name leads to: its parents made, and symlinks among them gone.

        The last component stays as it is.
        """
        prefix, _, last = name.rpartition("/")
        known = self._places.get(prefix)
        if known is not None and last not in _NO_NAMES:
            return join(known, last)
        path = join(self._under, cleaned(name)).rstrip("/")
        if not path:
            return ""
        _, directory, base = self.parent(path)
        if base == last:
            self._places[prefix] = directory
        return join(directory, base)

    def make(self, path: str, entry: Entry, data: Data) -> None:
        """Make an entry's file at a path that `place` gave, in place of what is there."""
        if not path and entry.kind != stat.S_IFDIR:
            raise LayerError(errno.EISDIR, "the layer's root is a directory; do not trust it")
        if entry.kind == stat.S_IFDIR:
            self.make_directory(path, entry)
            return
        source = self._source(entry) if entry.kind == HARD_LINK else None
        fd, _, name = self.parent(path)
        try:
            self._make_file(fd, name, entry, data, source)
        except FileExistsError:
            if source == path:
                return
            self.remove(path)
            fd, _, name = self.parent(path)
            self._make_file(fd, name, entry, data, source)

    def make_directory(self, path: str, entry: Entry) -> None:
        """Make a directory, or let one that is there have the entry's attributes at the end."""
        if path:
            fd, _, name = self.parent(path)
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    self.remove(path)
                    fd, _, name = self.parent(path)
                    os.mkdir(name, 0o700, dir_fd=fd)
        self._directories[path] = entry
        self.implied.discard(path)

    def _source(self, entry: Entry) -> str:
        """Where the file lies that a hard link names."""
        target = cleaned(entry.target, f"hard link's target {entry.target!r}")
        path = join(self._under, target).rstrip("/")
        directory, _, name = path.rpartition("/")
        directory = self._resolved(directory)
        return join(directory, name)

    def _make_file(self, fd: int, name: str, entry: Entry, data: Data, source: str | None) -> None:
        if source is not None:
            self._link_to(source, fd, name, entry)
        elif entry.kind == stat.S_IFREG:
            self._make_regular(fd, name, entry, data)
        elif entry.kind == stat.S_IFLNK:
            os.symlink(entry.target, name, dir_fd=fd)
            self._describe(fd, name, entry)
        elif entry.kind == stat.S_IFIFO or self._permits_device(entry):
            try:
                os.mknod(name, entry.kind | 0o600, entry.rdev, dir_fd=fd)
            except PermissionError:
                if entry.kind == stat.S_IFIFO:
                    raise
                return
            self._describe(fd, name, entry)

    def _permits_device(self, entry: Entry) -> bool:
        if entry.kind == stat.S_IFCHR and entry.rdev == 0:
            message = "a device 0:0, which on disk is a whiteout; do not trust it"
            raise LayerError(errno.EINVAL, message)
        return self._rights.devices

    def _link_to(self, source: str, fd: int, name: str, entry: Entry) -> None:
        directory, _, base = source.rpartition("/")
        try:
            if not base:
                raise IsADirectoryError
            parent = self._opened(directory)
            try:
                os.link(base, name, src_dir_fd=parent, dst_dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(parent)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            message = f"a hard link to {entry.target!r}, which is no file of the layer"
            raise LayerError(error.errno or errno.EISDIR, message) from error

    def _make_regular(self, fd: int, name: str, entry: Entry, data: Data) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        # what a new file has by itself needs no calls: most files are so
        owned = self._fresh and (entry.uid, entry.gid) == self._ids
        plain = owned and not entry.xattrs and not entry.mode & self._not_by_itself
        file = os.open(name, flags, entry.mode if plain else 0o600, dir_fd=fd)
        if entry.size > _SMALL:
            self._complete(file, entry, data.data(), plain=plain)
            return
        try:
            content = data.whole()
        except BaseException:
            os.close(file)
            raise
        if entry.xattrs or (self._rights.ignore_chown_errors and not owned):
            self._completing.add_other((file, entry, content))
            return
        uid, gid = (-1, -1) if owned else (entry.uid, entry.gid)
        time = divmod(entry.mtime, _NS)
        mode = -1 if plain else entry.mode
        self._completing.add((file, entry.name, content, *time, uid, gid, mode))

    def _complete_files(self, files: Sequence[system.NewFile]) -> None:
        try:
            system.complete_files(files)
        except OSError as error:
            uid, gid = next(
                (uid, gid) for _, name, *_, uid, gid, _ in files if name == error.filename
            )
            try:
                if uid != -1:
                    self._not_owned(error, uid, gid)
            except OSError as said:
                raise named(said, error.filename) from error
            raise

    def _complete(self, file: int, entry: Entry, data: _Pieces, *, plain: bool = False) -> None:
        """Give a new file its content and all that it lacks; it is closed."""
        try:
            end = 0
            for offset, piece in data:
                end = system.write_sparsely(file, piece, offset)
            if end < entry.size:
                os.ftruncate(file, entry.size)
            if not plain:
                self._describe_open(file, entry)
            os.utime(file, ns=(entry.mtime, entry.mtime))
        except OSError as error:
            raise named(error, entry.name) from error
        finally:
            os.close(file)

    def _describe_open(self, file: int, entry: Entry) -> None:
        """Give an open file its owner, attributes and mode, in the order that keeps them all."""
        self._own(file, entry)
        for key, value in entry.xattrs.items():
            if not key.startswith(NOT_SHIPPED):
                copyup.set_attribute(file, "", key, value)
        os.fchmod(file, entry.mode)

    def _own(self, file: int, entry: Entry) -> None:
        try:
            os.fchown(file, entry.uid, entry.gid)
        except OSError as error:
            self._not_owned(error, entry.uid, entry.gid)

    def _not_owned(self, error: OSError, uid: int, gid: int) -> None:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise error
        if not self._rights.ignore_chown_errors:
            message = (
                f"{error.strerror} to give it to {uid}:{gid}; "
                "map these IDs in a user namespace, or ignore chown errors"
            )
            raise LayerError(error.errno, message) from error

    def _describe(self, fd: int, name: str, entry: Entry) -> None:
        """Give a file that is no regular one all but its content."""
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            self._not_owned(error, entry.uid, entry.gid)
        for key, value in entry.xattrs.items():
            if not key.startswith(NOT_SHIPPED):
                copyup.set_attribute(fd, name, key, value)
        if entry.kind != stat.S_IFLNK:
            os.chmod(name, entry.mode, dir_fd=fd)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)

    def status(self, path: str) -> os.stat_result | None:
        """lstat(2) of a path that `place` gave; None where nothing is there."""
        fd, _, name = self.parent(path)
        try:
            return os.stat(name or ".", dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """Remove what is at a path that `place` gave, with all in it."""
        self._forget()
        for known in [*self._directories]:
            if known == path or known.startswith(f"{path}/"):
                del self._directories[known]
                self.implied.discard(known)
        fd, _, name = self.parent(path)
        remove_tree(fd, name)

    def finish(self) -> None:
        """Give all directories their owners, modes, attributes and times."""
        self._completing.finish()
        self._forget()
        for path in sorted(self._directories, reverse=True):
            entry = self._directories[path]
            try:
                self._finish(path, entry)
            except OSError as error:
                raise named(error, path or ".") from error

    def _finish(self, path: str, entry: Entry) -> None:
        fd = system.open_beneath(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._describe_open(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)


_Other = tuple[int, Entry, _Content]
_Batch = tuple[list[system.NewFile], list[_Other]]


@final
class _Completing:
    """A thread that completes small files, while the next ones are read and made.

    complete_files: as in `system`. complete: the same for one that has more than these know of.
    """

    def __init__(
        self,
        complete_files: Callable[[Sequence[system.NewFile]], None],
        complete: Callable[[int, Entry, _Pieces], None],
    ) -> None:
        self._complete_files = complete_files
        self._complete = complete
        self._batch: _Batch = ([], [])
        self._batches: queue.Queue[_Batch | None] = queue.Queue(_BATCHES)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def add(self, file: system.NewFile) -> None:
        """Have a file completed. Raises the error of an earlier one."""
        files, others = self._batch
        files.append(file)
        if len(files) + len(others) >= _BATCH:
            self._hand_over()

    def add_other(self, file: _Other) -> None:
        """Have a file completed that has attributes, or an owner that it may be refused."""
        files, others = self._batch
        others.append(file)
        if len(files) + len(others) >= _BATCH:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        batch, self._batch = self._batch, ([], [])
        self._batches.put(batch)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            files, others = batch
            if self._error is None:
                self._noting_errors(self._complete_files, files)
            else:
                _close(files)
            for file, entry, content in others:
                if self._error is None:
                    self._noting_errors(self._complete, file, entry, ((0, content),))
                else:
                    os.close(file)

    def _noting_errors(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self._error = self._error or named(error, error.filename)
        except Exception as error:
            self._error = self._error or error

    def finish(self) -> None:
        """Wait until all files are complete. Raises the error of the first that cannot be."""
        if any(self._batch):
            self._hand_over()
        self._end()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drop what has not been begun."""
        for files in self._batch:
            _close(files)
        self._batch = ([], [])
        self._error = self._error or LayerError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._end()

    def _end(self) -> None:
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None


def _close(files: Iterable[system.NewFile | _Other]) -> None:
    for file, *_ in files:
        os.close(file)


def umask() -> int:
    """The permissions that new files of this process lack (proc_pid_status(5))."""
    with open("/proc/self/status", "rb") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith(b"Umask:"))


def named(error: OSError, name: str) -> LayerError:
    """An error as one of the entry with that name."""
    if isinstance(error, LayerError) and error.filename is not None:
        return error
    return LayerError(error.errno, error.strerror or str(error), name)


def remove_tree(fd: int, name: str) -> None:
    """Remove a name in a directory, with all in it, however deep; no symlink is followed."""
    try:
        os.unlink(name, dir_fd=fd)
    except IsADirectoryError:
        pass
    except FileNotFoundError:
        return
    else:
        return
    directories = [name]
    for path in directories:
        for child, kind, _ in system.list_dir(fd, path):
            if kind << 12 == stat.S_IFDIR:
                directories.append(f"{path}/{child}")
            else:
                _in_parent(fd, f"{path}/{child}", os.unlink)
    for path in reversed(directories):
        _in_parent(fd, path, os.rmdir)


def _in_parent(fd: int, path: str, remove: Callable[..., None]) -> None:
    directory, _, name = path.rpartition("/")
    parent = system.open_beneath(fd, directory, _DIRECTORY)
    try:
        remove(name, dir_fd=parent)
    finally:
        os.close(parent)
