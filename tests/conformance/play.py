"""Scenarios: layers, steps through a door, and what came of each step.

A step names an operation and its arguments, so that scenarios are tables. The player runs them
and turns every outcome into a value that compares: data, a snapshot's Seen, or an errno's name.
"""

import fcntl
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, final

from tests.conformance.doors import Door, Folder, confined, fallocate, watched
from tests.privilege import IN_USER_NAMESPACE, NO_DEVICES, NO_FLAGS, NO_INDEX, NO_REDIRECTS
from tests.tree import (
    APPEND,
    IMMUTABLE,
    MARKS,
    Seen,
    Tree,
    error_name,
    flags_shown,
    kind_of,
    moment,
    seen,
    snapshot,
)


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One operation; user: the uid and gid that run it."""

    operation: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    user: int = 0

    def __str__(self) -> str:
        keywords = (f"{name}={value!r}" for name, value in self.keywords.items())
        text = ", ".join([*map(repr, self.arguments), *keywords])
        return f"{self.operation}({text})" + (f" as {self.user}" if self.user else "")


def beyond_namespaces(scenario: "Scenario") -> str | None:
    """What of a scenario cannot be had in a user namespace, if anything."""
    nodes = [node for tree in (*scenario.lower, scenario.upper or {}) for node in tree.values()]
    devices = (step.arguments[2:] for step in scenario.steps if step.operation == "mknod")
    if any(node.rdev for node in nodes) or any(map(any, devices)):
        return NO_DEVICES
    flags = (step.arguments[1] for step in scenario.steps if step.operation == "setflags")
    if any(own & (IMMUTABLE | APPEND) for own in (*flags, *(node.flags for node in nodes))):
        return NO_FLAGS
    if "index" in scenario.options:
        return NO_INDEX
    followed = {MARKS + "redirect", MARKS + "metacopy"}
    if scenario.options or scenario.data or any(followed & {*node.xattrs} for node in nodes):
        return NO_REDIRECTS
    return None


def do(operation: str, *arguments: Any, user: int = 0, **keywords: Any) -> Step:
    """A step: the name of a Player's method, and what to call it with."""
    return Step(operation, arguments, keywords, user)


@final
@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: given these layers, when these steps are done.

    lower: top first. upper: None where the upper doesn't hold the scenario's directory.
    alone: the scenario's layers are the union's roots, instead of one directory among many.
    writable: False for a union without an upper (alone).
    confined: run with the union as the root of the filesystem.
    options: mount options that all doors are given.
    data: whether the last of three lower layers is of data alone.
    """

    name: str
    steps: tuple[Step, ...]
    lower: tuple[Tree, ...] = ({},)
    upper: Tree | None = None
    umask: int = 0o022
    alone: bool = False
    writable: bool = True
    confined: bool = False
    options: str = ""
    data: bool = False


@final
@dataclass(slots=True)
class Player:
    """Runs steps in the directory top of a door; holds the files that a scenario opened."""

    door: Door
    top: str
    files: dict[str, int] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)

    def play(self, scenario: Scenario) -> dict[str, object]:
        """Run a scenario; each step's number and text, with its outcome."""
        before = os.umask(scenario.umask)
        try:
            with watched(self.door):
                return {
                    f"{number} {step}": self.outcome(step, scenario.confined)
                    for number, step in enumerate(scenario.steps)
                }
        finally:
            os.umask(before)
            self.close()

    def outcome(self, step: Step, inside: bool = False) -> object:
        """Run one step; its result, or the name of its errno."""
        try:
            with _acting_as(step.user):
                method = getattr(self, step.operation)
                if inside:
                    with confined(self.door):
                        return method(*step.arguments, **step.keywords)
                return method(*step.arguments, **step.keywords)
        except OSError as error:
            return error_name(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"  # compares equal to nothing expected

    def close(self) -> None:
        """Close what the scenario left open."""
        for handle in self.files.values():
            os.close(handle)
        self.files.clear()

    def _at(self, path: str) -> str:
        return f"{self.top}/{path}"

    # Looking.

    def stat(self, path: str) -> Seen:
        return seen(self.door.stat(self._at(path)))

    def lstat(self, path: str) -> Seen:
        return seen(self.door.lstat(self._at(path)))

    def times(self, path: str) -> tuple[int | str, ...]:
        """Access and modification time, not of a symlink's target."""
        status = self.door.lstat(self._at(path))
        return moment(status.st_atime_ns), moment(status.st_mtime_ns)

    def tree(self, path: str) -> dict[str, object]:
        return dict(snapshot(self.door, self._at(path)))

    def scandir(self, path: str) -> list[tuple[str, str]]:
        """Names and types, as the directory itself tells them."""
        return _types(self.door.scandir(self._at(path)))

    def access(self, path: str, mode: int) -> bool:
        return self.door.access(self._at(path), mode)

    def readlink(self, path: str) -> str:
        return self.door.readlink(self._at(path))

    def statvfs(self, path: str) -> tuple[int, ...]:
        status = self.door.statvfs(self._at(path))
        return status.f_bsize, status.f_frsize, status.f_blocks, status.f_files, status.f_namemax

    def same(self, first: str, second: str) -> bool:
        """Whether two paths are names of one file."""
        return os.path.samestat(self.door.lstat(self._at(first)), self.door.lstat(self._at(second)))

    def numbers_agree(self, path: str) -> bool:
        """Whether a directory's entries carry the inode numbers that lstat tells."""
        return all(
            entry.inode() == self.door.lstat(self._at(f"{path}/{entry.name}")).st_ino
            for entry in self.door.scandir(self._at(path))
        )

    def number_kept(self, path: str, key: str) -> bool:
        """Whether the inode number is the one that was seen under this key before."""
        number = self.door.lstat(self._at(path)).st_ino
        return self.inodes.setdefault(key, number) == number

    # Files by path.

    def read(self, path: str) -> bytes:
        handle = self.door.os_open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return b"".join(iter(lambda: os.read(handle, 1 << 20), b""))
        finally:
            os.close(handle)

    def write(self, path: str, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC) -> int:
        # Not blocking: a pipe without a reader would be waited for.
        handle = self.door.os_open(self._at(path), os.O_WRONLY | os.O_NONBLOCK | flags, 0o666)
        try:
            return os.write(handle, data)
        finally:
            os.close(handle)

    def write_direct(self, path: str, data: bytes, offset: int) -> int:
        """Past the kernel's cache. data, offset: whole blocks."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_DIRECT | os.O_CREAT
        handle = self.door.os_open(self._at(path), flags, 0o666)
        try:
            with mmap.mmap(-1, len(data)) as block:
                block[:] = data
                return os.pwrite(handle, block, offset)
        finally:
            os.close(handle)

    def touch(self, path: str, flags: int, mode: int = 0o666) -> None:
        """Open and close at once."""
        os.close(self.door.os_open(self._at(path), flags, mode))

    def truncate(self, path: str, length: int) -> None:
        self.door.truncate(self._at(path), length)

    # Open files, by a name that the scenario gives.

    def open(self, name: str, path: str, flags: int, mode: int = 0o666) -> None:
        self.files[name] = self.door.os_open(self._at(path), flags, mode)

    def fread(self, name: str, length: int, offset: int = 0) -> bytes:
        return os.pread(self.files[name], length, offset)

    def fwrite(self, name: str, data: bytes, offset: int | None = None) -> int:
        handle = self.files[name]
        return os.write(handle, data) if offset is None else os.pwrite(handle, data, offset)

    def fstat(self, name: str) -> Seen:
        return seen(os.fstat(self.files[name]))

    def ftruncate(self, name: str, length: int) -> None:
        os.ftruncate(self.files[name], length)

    def fchmod(self, name: str, mode: int) -> None:
        os.fchmod(self.files[name], mode)

    def fchown(self, name: str, uid: int, gid: int) -> None:
        os.fchown(self.files[name], uid, gid)

    def fsync(self, name: str) -> None:
        os.fsync(self.files[name])

    def fallocate(self, name: str, offset: int, length: int) -> None:
        os.posix_fallocate(self.files[name], offset, length)

    def allocate(self, name: str, mode: int, offset: int, length: int) -> None:
        """fallocate(2) itself, without the C library's help."""
        fallocate(self.files[name], mode, offset, length)

    def seek(self, name: str, offset: int, whence: int) -> int:
        return os.lseek(self.files[name], offset, whence)

    def map_shared(self, name: str, data: bytes, offset: int) -> None:
        """Write through a shared mapping of the file, as long as it is."""
        with mmap.mmap(self.files[name], 0) as view:
            view[offset : offset + len(data)] = data

    def flock(self, name: str, operation: int) -> None:
        fcntl.flock(self.files[name], operation)

    def futime(self, name: str, ns: tuple[int, int]) -> None:
        os.utime(self.files[name], ns=ns)

    def fsetxattr(self, name: str, attribute: str, value: bytes) -> None:
        os.setxattr(self.files[name], attribute, value)

    def copy_range(self, source: str, target: str, length: int) -> int:
        return os.copy_file_range(self.files[source], self.files[target], length, 0, 0)

    def flink(self, name: str, path: str) -> None:
        """Name an open file, by a mount: one without a name (O_TMPFILE), or with others."""
        cast(Folder, self.door).link_open(self.files[name], self._at(path))

    def fscandir(self, name: str) -> list[tuple[str, str]]:
        """As scandir, of an open directory."""
        with os.scandir(self.files[name]) as entries:
            return _types(entries)

    def fclose(self, name: str) -> None:
        os.close(self.files.pop(name))

    # Names.

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self.door.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        self.door.rmdir(self._at(path))

    def mknod(self, path: str, mode: int, device: int = 0) -> None:
        self.door.mknod(self._at(path), mode, device)

    def mkfifo(self, path: str, mode: int = 0o666) -> None:
        self.door.mkfifo(self._at(path), mode)

    def symlink(self, target: str, path: str) -> None:
        self.door.symlink(target, self._at(path))

    def link(self, src: str, dst: str) -> None:
        self.door.link(self._at(src), self._at(dst))

    def unlink(self, path: str) -> None:
        self.door.unlink(self._at(path))

    def rename(self, src: str, dst: str, flags: int = 0) -> None:
        self.door.rename(self._at(src), self._at(dst), flags)

    # Attributes.

    def chmod(self, path: str, mode: int) -> None:
        self.door.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        self.door.chown(self._at(path), uid, gid, follow_symlinks=follow_symlinks)

    def utime(
        self, path: str, ns: tuple[int, int] | None = None, *, follow_symlinks: bool = True
    ) -> None:
        self.door.utime(self._at(path), ns=ns, follow_symlinks=follow_symlinks)

    def getflags(self, path: str) -> int:
        return flags_shown(self.door.getflags(self._at(path)))

    def setflags(self, path: str, flags: int) -> None:
        """Set the flags that a test may set; the others stay."""
        own = self.door.getflags(self._at(path))
        self.door.setflags(self._at(path), own & ~flags_shown(own) | flags)

    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes:
        return self.door.getxattr(self._at(path), name, follow_symlinks=follow_symlinks)

    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        at = self._at(path)
        self.door.setxattr(at, name, value, flags, follow_symlinks=follow_symlinks)

    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]:
        return sorted(self.door.listxattr(self._at(path), follow_symlinks=follow_symlinks))

    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None:
        self.door.removexattr(self._at(path), name, follow_symlinks=follow_symlinks)


def better(step: str, expected: object, actual: object) -> bool:
    """Whether a door outdoes the kernel, whose inode numbers disagree below hand-made uppers.

    Which in a user namespace gives each name of a linked lower file a number of its own.
    And which lists the whiteouts in an opaque directory, though none of them can be looked up.

    Rule: ovl_iterate corrects d_ino only in directories marked impure, and merges only those that
    have something below (fs/overlayfs/readdir.c).
    """
    if "numbers_agree" in step:
        return expected in (False, "ENOENT") and actual is True
    if IN_USER_NAMESPACE and ("number_kept" in step or "same" in step):
        return expected is False and actual is True
    if "scandir" in step and isinstance(expected, list) and isinstance(actual, list):
        hidden = [entry for entry in expected if entry not in actual]
        return sorted(actual + hidden) == expected and all(kind == "special" for _, kind in hidden)
    return False


def _types(entries: Iterable[Any]) -> list[tuple[str, str]]:
    return sorted((entry.name, _type(entry)) for entry in entries)


def _type(entry: Any) -> str:
    if entry.is_symlink():
        return kind_of(stat.S_IFLNK)
    if entry.is_dir(follow_symlinks=False):
        return kind_of(stat.S_IFDIR)
    return kind_of(stat.S_IFREG) if entry.is_file(follow_symlinks=False) else "special"


@contextmanager
def _acting_as(user: int) -> Iterator[None]:
    """Run as an ordinary user, with no group but its own."""
    if not user:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
