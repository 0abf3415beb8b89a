"""COPY and ADD: files from one union to another, as Docker copies them.

Sources are the build's context, or another stage or image. Both sides are unions, so symlinks among
a path's parents, on either side, lead nowhere outside.

Rules: Dockerfile reference, "COPY": of a directory its content is copied, of a symlink that is
named itself what it leads to; missing directories are made. Copied are modes, times and extended
attributes; the owner is root, or as told. Cost: a read of the data for the cache's sake, and a
copy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from unionfs import system
from unionfs.build.ignore import Ignore, compiled
from unionfs.layers.unpack import NOT_SHIPPED
from unionfs.place import join
from unionfs.union import UnionFS

_WILD: Final = re.compile(r"[*?\[]")

_PLAIN: Final = 0o644

Owner = tuple[int, int]


@final
@dataclass(frozen=True, slots=True)
class Source:
    """Files to copy from. ignore: those that are left out."""

    union: UnionFS
    ignore: Ignore

    def named(self, text: str) -> list[str]:
        """The paths that a source of an instruction means, sorted; "" is all.

        Raises FileNotFoundError where there is none.
        """
        found = [""]
        for part in posixpath.normpath(f"/{text}").strip("/").split("/"):
            if _WILD.search(part):
                wanted = compiled(part)
                found = [
                    join(directory, name)
                    for directory in found
                    if self._is_directory(directory)
                    for name in sorted(self.union.listdir(f"/{directory}"))
                    if wanted.fullmatch(name)
                ]
            elif part:
                found = [join(directory, part) for directory in found]
        found = [path for path in found if self._has(path)]
        if not found:
            message = "no such file to copy; check the name and .dockerignore"
            raise FileNotFoundError(errno.ENOENT, message, text)
        return found

    def _is_directory(self, path: str) -> bool:
        return self.union.exists(f"/{path}") and stat.S_ISDIR(self.union.stat(f"/{path}").st_mode)

    def _has(self, path: str) -> bool:
        if path in self.ignore and not (self.ignore.takes_back and self._is_directory(path)):
            return False
        return self.union.exists(f"/{path}")

    def walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """All below a path and itself as "", each with its status; directories before content."""
        pending = [""]
        while pending:
            inner = pending.pop()
            place = join(path, inner) if inner else path
            status = self.union.stat(f"/{place}", follow_symlinks=not inner)
            ignored = bool(place) and place in self.ignore
            if not ignored:
                yield inner, status
            if stat.S_ISDIR(status.st_mode) and (not ignored or self.ignore.takes_back):
                names = sorted(self.union.listdir(f"/{place}"), reverse=True)
                pending += [join(inner, name) for name in names]

    def left_out(self) -> Iterator[str]:
        """The paths of what is ignored, each with all in it."""
        pending = [""]
        while pending:
            directory = pending.pop()
            for name in self.union.listdir(f"/{directory}"):
                path = join(directory, name)
                is_directory = stat.S_ISDIR(self.union.lstat(f"/{path}").st_mode)
                if path in self.ignore and not (is_directory and self.ignore.takes_back):
                    yield path
                elif is_directory:
                    pending.append(path)

    def fingerprint(self, paths: Sequence[str]) -> str:
        """What the files at some paths are, but for times: a digest."""
        found = hashlib.sha256()
        for path in paths:
            for inner, status in self.walk(path):
                place = f"/{join(path, inner) if inner else path}"
                kind = stat.S_IFMT(status.st_mode)
                about = [posixpath.basename(path), inner, status.st_mode, status.st_rdev]
                found.update(repr(about).encode())
                follow = not inner
                for name in sorted(self.union.listxattr(place, follow_symlinks=follow)):
                    value = self.union.getxattr(place, name, follow_symlinks=follow)
                    found.update(repr((name, value)).encode())
                if kind == stat.S_IFREG:
                    found.update(self._digest(place))
                elif kind == stat.S_IFLNK:
                    found.update(repr(self.union.readlink(place)).encode())
        return found.hexdigest()

    def _digest(self, place: str) -> bytes:
        with open(self.union.os_open(place, os.O_RDONLY), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()


@final
@dataclass(frozen=True, slots=True)
class Target:
    """Where files are copied to. owner: of what is copied or made; mode: instead of its own."""

    union: UnionFS
    owner: Owner
    mode: int | None = None

    def copy(self, source: Source, paths: Sequence[str], place: str) -> None:
        """Copy files to a place: into it where it ends with a slash or is a directory.

        Raises OSError: EISDIR, ENOTDIR where a directory and a file would replace each other.
        """
        into = place.endswith("/") or self._is_directory(place)
        place = place.rstrip("/") or "/"
        for path in paths:
            status = source.union.stat(f"/{path}")
            if stat.S_ISDIR(status.st_mode):
                self.make_directories(place)
                self._copy_tree(source, path, place)
            else:
                end = posixpath.join(place, posixpath.basename(path)) if into else place
                self.make_directories(posixpath.dirname(end))
                self._copy_file(source.union, f"/{path}", end, status, follow=True)

    def _copy_tree(self, source: Source, path: str, place: str) -> None:
        for inner, status in source.walk(path):
            if not inner:
                continue
            origin, end = f"/{join(path, inner)}", posixpath.join(place, inner)
            if not stat.S_ISDIR(status.st_mode):
                self.make_directories(posixpath.dirname(end))
                self._copy_file(source.union, origin, end, status, follow=False)
            elif not self._is_directory(end):
                self.make_directories(posixpath.dirname(end))
                self.union.mkdir(end)
                self._describe(source.union, origin, end, status, follow=False)

    def write(self, name: str, data: bytes, place: str) -> None:
        """Make a file at a place, or called name in it, as `copy` does. Raises OSError."""
        into = place.endswith("/") or self._is_directory(place)
        end = posixpath.join(place, name) if into else place
        self.make_directories(posixpath.dirname(end))
        with contextlib.suppress(FileNotFoundError):
            self.union.unlink(end)
        self.union.write_bytes(end, data)
        self.union.chown(end, *self.owner)
        self.union.chmod(end, _PLAIN if self.mode is None else self.mode)

    def _is_directory(self, place: str) -> bool:
        return self.union.exists(place) and stat.S_ISDIR(self.union.stat(place).st_mode)

    def make_directories(self, place: str) -> None:
        """Make a directory and those that it lies in, where they are missing."""
        if not self.union.exists(place):
            self.make_directories(posixpath.dirname(place))
            self.union.mkdir(place)
            self.union.chown(place, *self.owner)
            self.union.chmod(place, 0o755)

    def _copy_file(
        self, source: UnionFS, path: str, place: str, status: os.stat_result, *, follow: bool
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.union.unlink(place)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFLNK:
            self.union.symlink(source.readlink(path), place)
        elif kind == stat.S_IFREG:
            self._copy_data(source, path, place, status.st_size)
        elif kind == stat.S_IFSOCK:
            return
        else:
            self.union.mknod(place, status.st_mode, status.st_rdev)
        self._describe(source, path, place, status, follow=follow)

    def _copy_data(self, source: UnionFS, path: str, place: str, size: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        original = source.os_open(path, os.O_RDONLY)
        try:
            copy = self.union.os_open(place, flags, 0o600)
            try:
                if not system.clone(original, copy):
                    system.copy_data(original, copy, size)
            finally:
                os.close(copy)
        finally:
            os.close(original)

    def _describe(
        self, source: UnionFS, path: str, place: str, status: os.stat_result, *, follow: bool
    ) -> None:
        """Give a copy its owner, attributes, mode and times, in this order."""
        self.union.chown(place, *self.owner, follow_symlinks=False)
        for name in source.listxattr(path, follow_symlinks=follow):
            if not name.startswith(NOT_SHIPPED):
                value = source.getxattr(path, name, follow_symlinks=follow)
                self.union.setxattr(place, name, value, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            mode = stat.S_IMODE(status.st_mode) if self.mode is None else self.mode
            self.union.chmod(place, mode)
        times = (status.st_atime_ns, status.st_mtime_ns)
        self.union.utime(place, ns=times, follow_symlinks=False)
