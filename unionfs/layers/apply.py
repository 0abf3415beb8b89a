"""A layer's archive on disk again: as a layer of a stack, or over a whole tree.

As a layer, OCI's whiteouts become overlayfs' marks, so the directory can be stacked as it is. Over
a tree, they remove what they name. Either way they are about what lies below alone: what the same
archive holds stays, before or after its whiteouts.

Rules: OCI image specification, layer.md, "Applying Changesets".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol, final

from unionfs import markers, resolve, system
from unionfs.layers.streams import LayerError, Reader
from unionfs.layers.tar import Archive, Entry
from unionfs.layers.unpack import Rights, Unpacker, cleaned, named, remove_tree
from unionfs.layers.write import entry_of
from unionfs.options import MountOptions
from unionfs.place import join
from unionfs.stack import LayerStack

_META: Final = ".wh..wh."


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an archive is unpacked. size: bytes of the tar. entries: how many it may have."""

    size: int = 64 << 30
    entries: int = 4_000_000


@final
@dataclass(frozen=True, slots=True)
class Applied:
    """What was read. digest, size: of the blob, size in bytes; diff_id: of the tar in it.

    implicit: the directories that were made, by their paths, and that no entry describes.
    """

    diff_id: str
    digest: str
    size: int
    implicit: tuple[str, ...]


def apply_layer(
    blob: BinaryIO,
    directory: str | os.PathLike[str],
    *,
    prefix: str,
    below: Sequence[str | os.PathLike[str]] = (),
    limit: Limits = Limits(),
    rights: Rights = Rights(),  # noqa: B008 - frozen
    digest: str | None = None,
    diff_id: str | None = None,
) -> Applied:
    """Unpack a layer into a directory that is empty or missing, to be stacked as it is.

    It appears there at once, when it is whole; on any error nothing does.

    blob: the archive, compressed by gzip, zstd or not at all; it is read to its end.
    prefix: of the marks, `markers.TRUSTED` or `markers.USER`.
    below: the layers that it will lie on, top first. A directory that the archive does not
        describe, though something lies in it, gets its attributes from there.
    digest, diff_id: what the blob and the tar must have.

    Raises LayerError that names the entry: EINVAL for what is no layer or would reach out of the
    directory, EFBIG beyond the limit, EBADMSG for a wrong digest, ENOTEMPTY; and any other errno of
    the system calls that make files.
    """
    target = os.path.abspath(directory)
    with _appearing(target) as root, contextlib.ExitStack() as stack:
        lower = _opened(stack, below, prefix)
        unpacker = Unpacker(root, rights, lambda path: _attributes(lower, path), fresh=True)
        stack.callback(unpacker.close)
        unpacker.imply("")
        return _applied(blob, unpacker, _Marks(unpacker, prefix), limit, digest, diff_id)


def fits(
    layer: str,
    implicit: Iterable[str],
    below: Sequence[str],
    *,
    prefix: str,
) -> bool:
    """Whether a layer that was applied over some layers is what it would be over others.

    Only the directories that it has no entries for can differ, and of these what is said below:
    owner, mode and attributes. Their times do not count, since no archive tells them.

    layer: its directory. implicit: as `Applied` has it. below, prefix: as for `apply_layer`.
    """
    with contextlib.ExitStack() as stack:
        own, lower = _opened(stack, [layer], prefix), _opened(stack, below, prefix)
        return all(
            _attributes(own, path)._replace(name="", mtime=0)
            == _attributes(lower, path)._replace(name="", mtime=0)
            for path in implicit
        )


def apply_onto(
    blob: BinaryIO,
    root: str | os.PathLike[str],
    *,
    under: str = "",
    limit: Limits = Limits(),
    rights: Rights = Rights(),  # noqa: B008 - frozen
) -> Applied:
    """Unpack a layer over a tree, where its whiteouts remove files.

    under: the directory of the tree, by a path from its root, that the archive's names lead from.

    An error leaves the tree between before and after; whoever cannot discard it copies it first.
    Raises what `apply_layer` raises.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unpacker = Unpacker(fd, rights, lambda path: _new_directory(), under=cleaned(under))
        try:
            return _applied(blob, unpacker, _Removal(unpacker), limit)
        finally:
            unpacker.close()
    finally:
        os.close(fd)


class _Whiteouts(Protocol):
    """What is done about whiteouts. Paths are those that Unpacker.place gives."""

    def made(self, path: str) -> None: ...
    def hide(self, path: str) -> None: ...
    def hide_all(self, directory: str) -> None: ...
    def finish(self) -> None: ...


def _applied(
    blob: BinaryIO,
    unpacker: Unpacker,
    whiteouts: _Whiteouts,
    limit: Limits,
    digest: str | None = None,
    diff_id: str | None = None,
) -> Applied:
    with Reader(blob, limit.size) as reader:
        archive = Archive(reader, limit.entries)
        for entry in archive:
            try:
                _apply_entry(archive, entry, unpacker, whiteouts)
            except OSError as error:
                raise named(error, entry.name) from error
        whiteouts.finish()
        unpacker.finish()
        reader.finish()
        implicit = (*sorted(unpacker.implied),)
        applied = Applied(reader.diff_id, reader.digest, reader.size, implicit)
    for wanted, found in ((digest, applied.digest), (diff_id, applied.diff_id)):
        if wanted not in (None, found):
            message = f"the layer is {found}, not {wanted}; fetch the blob again"
            raise LayerError(errno.EBADMSG, message)
    return applied


def _apply_entry(archive: Archive, entry: Entry, unpacker: Unpacker, whiteouts: _Whiteouts) -> None:
    if markers.AUFS_PREFIX not in entry.name:
        path = unpacker.place(entry.name)
        unpacker.make(path, entry, archive)
        whiteouts.made(path)
        return
    directory, _, name = entry.name.rstrip("/").rpartition("/")
    parents = [part for part in directory.split("/") if part.startswith(markers.AUFS_PREFIX)]
    if any(part.startswith(_META) for part in parents):
        return  # AUFS' own bookkeeping, which others pass over too
    if parents:
        message = "lies in a directory that is called like a whiteout; do not trust it"
        raise LayerError(errno.EINVAL, message)
    if name == markers.AUFS_OPAQUE:
        # any name in it has it as parent
        path = unpacker.place(f"{directory}/{name}")
        whiteouts.hide_all(path.rpartition("/")[0])
    elif name.startswith(_META):
        return
    elif name.startswith(markers.AUFS_PREFIX):
        hidden = name.removeprefix(markers.AUFS_PREFIX)
        if hidden in ("", ".", ".."):
            raise LayerError(errno.EINVAL, "a whiteout of no name; do not trust it")
        whiteouts.hide(unpacker.place(f"{directory}/{hidden}"))
    else:
        path = unpacker.place(entry.name)
        unpacker.make(path, entry, archive)
        whiteouts.made(path)


@final
class _Marks:
    """Whiteouts as overlayfs' marks, made at the end, when it is known what the layer holds."""

    def __init__(self, unpacker: Unpacker, prefix: str) -> None:
        self._unpacker = unpacker
        self._prefix = prefix
        self._hidden: set[str] = set()
        self._opaque: set[str] = set()

    def made(self, path: str) -> None:
        pass

    def hide(self, path: str) -> None:
        self._hidden.add(path)

    def hide_all(self, directory: str) -> None:
        self._opaque.add(directory)

    def finish(self) -> None:
        for path in sorted(self._hidden):
            try:
                self._hide(path)
            except OSError as error:
                raise named(error, path) from error
        for path in sorted(self._opaque):
            status = self._unpacker.status(path)
            if status is not None and stat.S_ISDIR(status.st_mode):
                fd, _, name = self._unpacker.parent(path)
                system.set_xattr(fd, name, self._prefix + markers.OPAQUE, markers.YES)

    def _hide(self, path: str) -> None:
        fd, directory, name = self._unpacker.parent(path)
        status = self._unpacker.status(path)
        if status is None:
            if directory not in self._opaque:  # there nothing shines through anyway
                markers.make_whiteout(self._prefix, fd, name)
                if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    markers.announce_xwhiteouts(self._prefix, fd, "")
        elif stat.S_ISDIR(status.st_mode):
            self._opaque.add(path)


@final
class _Removal:
    """Whiteouts that remove what lay there before the layer."""

    def __init__(self, unpacker: Unpacker) -> None:
        self._unpacker = unpacker
        self._made: set[str] = set()

    def made(self, path: str) -> None:
        while path not in self._made:
            self._made.add(path)
            path = path.rpartition("/")[0]

    def hide(self, path: str) -> None:
        if path not in self._made:
            self._unpacker.remove(path)
            return
        status = self._unpacker.status(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self.hide_all(path)

    def hide_all(self, directory: str) -> None:
        pending = [directory]
        while pending:
            path = pending.pop()
            fd, _, name = self._unpacker.parent(path)
            for child, kind, _ in system.list_dir(fd, name):
                place = join(path, child)
                if place not in self._made:
                    self._unpacker.remove(place)
                elif kind << 12 == stat.S_IFDIR:
                    pending.append(place)

    def finish(self) -> None:
        pass


def _new_directory() -> Entry:
    return Entry("", stat.S_IFDIR, 0o755, os.geteuid(), os.getegid())


def _opened(
    stack: contextlib.ExitStack, layers: Sequence[str | os.PathLike[str]], prefix: str
) -> LayerStack | None:
    """Layers to look directories up in; None where there are none."""
    if not layers:
        return None
    options = MountOptions(userxattr=prefix == markers.USER)
    return stack.enter_context(LayerStack(layers, options=options))


def _attributes(lower: LayerStack | None, path: str) -> Entry:
    """Those of a directory below; those of a new one where there is none."""
    if lower is None:
        return _new_directory()
    try:
        node = resolve.resolve(lower, path, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return _new_directory()
    return entry_of(lower, node, path) if node.is_dir else _new_directory()


@contextlib.contextmanager
def _appearing(target: str) -> Iterator[int]:
    """A new directory, which is renamed to its target at the end, or removed with all in it."""
    parent, name = os.path.split(target)
    if os.path.isdir(target) and os.listdir(target):
        raise LayerError(errno.ENOTEMPTY, "is not empty; name a new directory", target)
    try:
        draft = tempfile.mkdtemp(prefix=f".{name[:200]}.", dir=parent)
    except OSError as error:
        raise LayerError(error.errno, f"{error.strerror}; check the path", target) from error
    try:
        fd = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o700)  # so that nothing in it inherits the parent's group
            with contextlib.suppress(OSError):
                os.removexattr(fd, "system.posix_acl_default")
            yield fd
        finally:
            os.close(fd)
        os.rename(draft, target)
    except BaseException:
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent_fd, os.path.basename(draft))
        finally:
            os.close(parent_fd)
        raise
