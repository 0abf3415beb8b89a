"""Check a stack on disk for what no union leaves behind, or would read other than it was meant.

Every layer is looked at as the top of those below it, so that a fault is found wherever it lies.
Only upper and work are ever repaired, and only where one repair is right: afterwards every union
of the stack shows the tree that it showed before, without the fault. What could be meant in two
ways is left to whoever knows.

Rules: those of `markers` and `resolve`; fs/overlayfs/namei.c (ovl_check_fb_len), util.c
(ovl_check_metacopy_xattr, ovl_get_nlink). Cost: a listxattr(2) a file, a lookup a directory and a
whiteout.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, final

from unionfs import index, markers, resolve, system
from unionfs.copyup import restore_times
from unionfs.inodes import file_id
from unionfs.place import Layer, Place, join, lstat
from unionfs.resolve import Node
from unionfs.stack import LayerStack
from unionfs.workdir import INCOMPATIBLE, hold, mount_table

Kind = Literal[
    "stray whiteout",
    "dangling redirect",
    "corrupt mark",
    "broken origin",
    "metadata without data",
    "foreign mark",
    "AUFS name",
    "leftover",
    "orphaned index entry",
    "volatile",
]
"""What is wrong.

stray whiteout: it hides nothing. dangling redirect: no layer below holds its target. corrupt mark:
no value that a union writes. broken origin: the mark names a file that is gone. metadata without
data: no layer below holds the data. foreign mark: it has a meaning to another program or for a
mount with other options, and not here. AUFS name: an overlayfs mount shows it as a file. leftover:
it was being made when its writer died. orphaned index entry: it is the copy of a file that has no
name any more. volatile: a mount without fsync did not end.
"""


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. path: on disk. remedy: the one safe repair, or None. repaired: whether it is done.

    message: what is wrong, and without a remedy what its owner can do.
    """

    kind: Kind
    path: str
    message: str
    remedy: str | None = None
    repaired: bool = False


_Repair = tuple[str, Callable[[], None]]
"""A remedy in words, and what does it."""


def check(stack: LayerStack, *, repair: bool = False) -> Iterator[Finding]:
    """What is wrong with a stack, layer by layer; no union may use its upper meanwhile.

    repair: do what has one safe repair, in upper and work.

    Raises OSError: EBUSY where a union uses upper or work, and what reading a layer raises.
    """
    with contextlib.ExitStack() as held:
        if stack.upper is not None and stack.work is not None:
            hold(stack.work, stack.upper.path, held, mount_table())
            yield from _check_work(stack.work, repair)
            yield from _check_index(stack, repair)
        for layer in stack.layers:
            yield from _Check(stack, layer, repair and layer.writable).run()


def _check_work(work: str, repair: bool) -> Iterator[Finding]:
    inner = os.path.join(work, "work")
    for name in _listed(inner):
        path = os.path.join(inner, name)
        if path == os.path.join(work, INCOMPATIBLE):
            continue
        status = os.lstat(path)
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            continue  # the whiteout that the kernel keeps, to link from
        words = "was being made when its writer died"
        yield _reported("leftover", path, words, ("remove it", partial(_remove, path)), repair)
    volatile = os.path.join(work, INCOMPATIBLE, "volatile")
    if os.path.lexists(volatile):
        words = "was mounted volatile and may lack data after a crash; remove this if none occurred"
        yield Finding("volatile", volatile, words)


def _check_index(stack: LayerStack, repair: bool) -> Iterator[Finding]:
    if stack.index is None:
        return
    for name, _, _ in sorted(system.list_dir(stack.index.fd, "")):
        path = os.path.join(stack.index.path, name)
        try:
            if index.is_sound(stack, name):
                continue
        except OSError as error:
            yield Finding("foreign mark", path, error.strerror or os.strerror(error.errno or 0))
            continue
        discard = "remove it", partial(index.discard, stack, name)
        yield _reported("orphaned index entry", path, "no name of a file needs it", discard, repair)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except IsADirectoryError:
        shutil.rmtree(path)


def _reported(kind: Kind, path: str, message: str, repair: _Repair | None, wanted: bool) -> Finding:
    """A finding, whose repair is done if it is wanted."""
    if repair is None:
        return Finding(kind, path, message)
    remedy, act = repair
    if wanted:
        act()
    return Finding(kind, path, message, remedy, repaired=wanted)


_KNOWN: Final = {
    *(markers.OPAQUE, markers.REDIRECT, markers.IMPURE, markers.ORIGIN, markers.WHITEOUT),
    *(markers.METACOPY, markers.NLINK, markers.UPPER, "uuid", markers.PROTATTR),
}
_DECISIVE: Final = (markers.OPAQUE, markers.REDIRECT, markers.WHITEOUT, markers.METACOPY)
"""The marks that change the tree."""
_OPAQUE_VALUES: Final = (markers.YES, markers.XWHITEOUTS)


@final
class _Check:
    """One layer, on top of those below it. repair: whether its faults are repaired."""

    def __init__(self, stack: LayerStack, layer: Layer, repair: bool) -> None:
        self._stack = stack
        self._layer = layer
        self._repair = repair
        self._finds_origins = _finds_origins(stack)

    def run(self) -> Iterator[Finding]:
        """All faults, each directory before what is in it."""
        root = Place(self._layer, "")
        layers = (layer for layer in self._stack.lower if layer.index > self._layer.index)
        node = self._directory([], root, tuple(Place(layer, "") for layer in layers))
        pending: list[tuple[Node, bool]] = [(node, True)]
        while pending:
            directory, known = pending.pop()
            inner: list[tuple[Node, bool]] = []
            for name, _, _ in sorted(system.list_dir(self._layer.fd, directory.path)):
                place = root.child(join(directory.path, name))
                status = place.status()
                below = self._below(directory) if known else None
                if self._hides(place, name, status):
                    yield from self._whiteout(below, place, name)
                elif stat.S_ISDIR(status.st_mode):
                    child, sure = self._child(directory, place, name)
                    yield from self._marks(place, status)
                    yield from self._redirect(place, child if sure else None)
                    inner.append((child, known and sure))
                else:
                    yield from self._marks(place, status)
                    yield from self._data(below, place, name, status)
            pending += reversed(inner)

    # What lies below.

    def _directory(
        self, names: list[tuple[Node, str]], place: Place, below: tuple[Place, ...]
    ) -> Node:
        """The node of a directory of this layer that is merged with those below."""
        upper = self._layer.writable
        lower = below if upper else (place, *below)
        file = file_id(place.status())
        return Node(names, stat.S_IFDIR, file, upper=upper, lower=lower)

    def _child(self, directory: Node, place: Place, name: str) -> tuple[Node, bool]:
        """The node of a directory in another; and whether it is known what lies below it."""
        with contextlib.suppress(OSError):  # a mark that keeps us from knowing
            node = resolve.lookup(self._stack, directory, name)
            if node is not None:
                return node, True
        return self._directory([(directory, name)], place, ()), False

    def _below(self, directory: Node) -> Node:
        """What lies below a directory of this layer, as one of its own."""
        lower = directory.lower if directory.upper else directory.lower[1:]
        return Node(directory.names, stat.S_IFDIR, directory.file, upper=False, lower=lower)

    def _exists(self, below: Node | None, name: str) -> bool:
        """Whether a name lies below, or may."""
        try:
            return below is None or resolve.exists_below(self._stack, below, name)
        except OSError:
            return True

    # Findings.

    def _found(
        self, kind: Kind, place: Place, message: str, repair: _Repair | None = None
    ) -> Finding:
        path = os.path.join(self._layer.path, place.path)
        repair = repair if self._layer.writable else None
        return _reported(kind, path, message, repair, self._repair)

    def _unmark(self, place: Place, mark: str) -> _Repair:
        name = self._stack.prefix + mark
        return f"remove {name}", partial(system.remove_xattr, self._layer.fd, place.path, name)

    def _close(self, place: Place) -> _Repair:
        """Have a redirect lead nowhere for good."""
        fd, prefix = self._layer.fd, self._stack.prefix

        def act() -> None:
            system.set_xattr(fd, place.path, prefix + markers.OPAQUE, markers.YES)
            system.remove_xattr(fd, place.path, prefix + markers.REDIRECT)

        return "make the directory opaque instead", act

    # Checks.

    def _hides(self, place: Place, name: str, status: os.stat_result) -> bool:
        return name.startswith(markers.AUFS_PREFIX) or markers.is_whiteout(
            self._stack.prefix, self._layer.fd, place.path, status
        )

    def _whiteout(self, below: Node | None, place: Place, name: str) -> Iterator[Finding]:
        if name.startswith(markers.AUFS_PREFIX):
            if self._layer.writable:
                words = "an overlayfs mount shows it as a file; make a whiteout, or remove it"
                yield self._found("AUFS name", place, words)
                return
            if name == markers.AUFS_OPAQUE:
                return
            name = name.removeprefix(markers.AUFS_PREFIX)
        if not self._exists(below, name):
            repair = "remove it", partial(self._unlink, place)
            yield self._found("stray whiteout", place, "hides nothing", repair)

    def _unlink(self, place: Place) -> None:
        """Remove a whiteout; the times of its directory, which the union shows, stay."""
        directory = place.path.rpartition("/")[0]
        status = lstat(self._layer, directory)
        os.unlink(place.path, dir_fd=self._layer.fd)
        restore_times(self._layer, directory, status)

    def _redirect(self, place: Place, node: Node | None) -> Iterator[Finding]:
        """node: None where it is not known what lies below."""
        try:
            marks = markers.of_directory(self._stack.prefix, self._layer.fd, place.path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            words = "the redirect leads out of the union, so that the directory cannot be entered"
            yield self._found("corrupt mark", place, words, self._close(place))
            return
        if marks.redirect is None or marks.opaque:
            return
        if not self._stack.follows_redirects:
            words = "the options forbid to follow its redirect; mount with redirect_dir=follow"
            yield self._found("foreign mark", place, words)
        elif node is not None and not self._below(node).lower:
            words = f"no layer below has {marks.redirect}, where its redirect leads"
            yield self._found("dangling redirect", place, words, self._close(place))

    def _data(
        self, below: Node | None, place: Place, name: str, status: os.stat_result
    ) -> Iterator[Finding]:
        """Of a copy of metadata alone. Where it has a redirect, its data is not looked for."""
        prefix, fd = self._stack.prefix, self._layer.fd
        if not stat.S_ISREG(status.st_mode):
            return
        try:
            if not markers.lacks_data(prefix, fd, place.path, status):
                return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return  # a damaged mark, of which `_mark` tells
        redirect = system.get_xattr(fd, place.path, prefix + markers.REDIRECT)
        if redirect is None and not self._exists(below, name):
            words = "is a copy of metadata alone, and no layer below has the data; remove it"
            yield self._found("metadata without data", place, words)

    def _marks(self, place: Place, status: os.stat_result) -> Iterator[Finding]:
        fd, prefix = self._layer.fd, self._stack.prefix
        for name in system.list_xattr(fd, place.path):
            if name.startswith(prefix):
                mark = name.removeprefix(prefix)
                value = system.get_xattr(fd, place.path, name) or b""
                yield from self._mark(place, status, mark, value)
                continue
            for other in markers.PREFIXES:
                if name.startswith(other) and name.removeprefix(other) in _DECISIVE:
                    words = f"{name} is no mark here, but of a union in the union; or use {prefix}"
                    yield self._found("foreign mark", place, words)

    def _mark(
        self, place: Place, status: os.stat_result, mark: str, value: bytes
    ) -> Iterator[Finding]:
        """One mark with this stack's prefix."""
        name = self._stack.prefix + mark
        if mark not in _KNOWN and markers.in_union(self._stack.prefix, name) is None:
            words = f"{name} is no mark of overlayfs; remove it"
            yield self._found("foreign mark", place, words)
        elif mark == markers.OPAQUE and value not in _OPAQUE_VALUES:
            words = f"{value!r} is no value of an opaque mark"
            yield self._found("corrupt mark", place, words, self._unmark(place, mark))
        elif mark == markers.NLINK and not index.LINKS_MARK.fullmatch(value):
            words = f"{value!r} is no number of links"
            yield self._found("corrupt mark", place, words, self._unmark(place, mark))
        elif mark == markers.METACOPY and not markers.is_metacopy(value):
            words = "the mark of a copy of metadata is damaged; copy the file anew"
            yield self._found("corrupt mark", place, words)
        elif mark == markers.ORIGIN and value and self._finds_origins:
            if self._stack.numbers.origin(value) is None:
                words = "the file that it was copied up from is gone"
                yield self._found("broken origin", place, words, self._unmark(place, mark))
        elif mark == markers.WHITEOUT and stat.S_ISREG(status.st_mode) and not status.st_size:
            words = "its directory announces no whiteouts; the kernel lists it and finds nothing"
            yield self._found("foreign mark", place, words)


def _finds_origins(stack: LayerStack) -> bool:
    """Whether this process can tell what an origin mark names, on every lower layer."""
    numbers = stack.numbers
    return all(numbers.origin(numbers.handle_mark(layer.fd, "")) for layer in stack.lower)
