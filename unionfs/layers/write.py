"""What the top layer changes, as the archive by which images ship a layer.

Every change is an entry, and so is each directory that it lies in: others unpack a directory that
has none with a mode of their own. What is deleted is a whiteout. Redirects and opaque directories
are resolved by `changes` into files and whiteouts, the form that the specification asks for.
The entries come sorted, with nothing of this machine or of now: equal layers give equal bytes.

Sockets are left out, as others do, for the format has none; one that replaced a file hides it. So
are `trusted.` attributes and SELinux' labels, which are this machine's own.

Rules: OCI image specification, layer.md. Cost: as `changes`, and the data of every changed file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, final

from unionfs import markers, resolve
from unionfs.inodes import FileId, file_id
from unionfs.layers.changes import attributes, differences, opened
from unionfs.layers.streams import MEDIA_TYPES, THREADS, Compression, LayerError, Writer
from unionfs.layers.tar import END, HARD_LINK, Entry, encode, padding
from unionfs.layers.unpack import NOT_SHIPPED
from unionfs.place import join
from unionfs.resolve import Node
from unionfs.stack import LayerStack

_NS: Final = 10**9


@final
@dataclass(frozen=True, slots=True)
class Written:
    """A layer that was written. diff_id: digest of the tar. digest, size: of what was written."""

    diff_id: str
    digest: str
    size: int
    media_type: str


def write_layer(
    stack: LayerStack,
    out: BinaryIO,
    *,
    compression: Compression = "gzip",
    level: int | None = None,
    threads: int = THREADS,
    clamp: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Written:
    """Write the stack's top layer as an OCI layer.

    level: of the compression, see `streams.LEVELS`. threads: that compress.
    clamp: no time is later than that; seconds since 1970.
    progress: is called with the path of each entry.

    Equal layers give equal bytes, by the same versions of the libraries that compress.

    Raises LayerError: EINVAL for a level that is none, EAGAIN for a file that shrinks meanwhile;
    and what the layers and out raise.
    """
    latest = None if clamp is None else clamp * _NS
    with Writer(out, compression, level, threads) as writer:
        for entry, node in _entries(stack):
            if latest is not None and entry.mtime > latest:
                entry = entry._replace(mtime=latest)
            writer.write(encode(entry))
            if entry.size and node is not None:
                _write_data(stack, node, entry, writer)
            if progress is not None:
                progress(entry.name)
        writer.write(END)
    return Written(writer.diff_id, writer.digest, writer.size, MEDIA_TYPES[compression])


def _entries(stack: LayerStack) -> Iterator[tuple[Entry, Node | None]]:
    """The entries, each with what it describes."""
    described: dict[Node, None] = {}  # the directories that the last entry lies in, from the root
    links: dict[FileId, str] = {}
    if len(stack.layers) == 1:
        root = resolve.root(stack)
        yield entry_of(stack, root, "./"), root
    for change, parent, node in differences(stack):
        path = change.path[1:]
        ancestors = _ancestors(parent)
        for directory in ancestors:
            if directory not in described and not directory.is_root:
                yield entry_of(stack, directory, f"{directory.path}/"), directory
        described = dict.fromkeys(ancestors)
        if node is not None and node.is_dir:
            described[node] = None
            yield entry_of(stack, node, f"{path or '.'}/"), node
        elif node is not None and node.kind != stat.S_IFSOCK:
            entry = entry_of(stack, node, path)
            status = resolve.top(stack, node).status()
            first = links.setdefault(file_id(status), path) if status.st_nlink > 1 else path
            if first != path:
                entry = entry._replace(kind=HARD_LINK, target=first, size=0, xattrs={})
            yield entry, node
        elif change.kind != "added":
            directory_path, _, name = path.rpartition("/")
            hidden = join(directory_path, markers.AUFS_PREFIX + name)
            yield Entry(hidden, stat.S_IFREG), None


def _ancestors(directory: Node | None) -> list[Node]:
    """A directory and those that it lies in, the root first."""
    found = []
    while directory is not None:
        found.append(directory)
        directory = directory.names[0][0] if directory.names else None
    return found[::-1]


def entry_of(stack: LayerStack, node: Node, name: str) -> Entry:
    """What an archive says of a file of the union under a name."""
    status = resolve.top(stack, node).status()
    kind = stat.S_IFMT(status.st_mode)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Entry(
        name,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if kind == stat.S_IFREG else 0,
        resolve.readlink(stack, node) if kind == stat.S_IFLNK else "",
        status.st_rdev if device else 0,
        {
            key: value
            for key, value in attributes(stack, node).items()
            if not key.startswith(NOT_SHIPPED)
        },
    )


def _write_data(stack: LayerStack, node: Node, entry: Entry, writer: Writer) -> None:
    left = entry.size
    with opened(stack, node) as file:
        while left:
            room = writer.room()[:left]
            count = os.readv(file.fileno(), [room])
            if not count:
                message = "the file became shorter while it was read; stop what writes to it"
                raise LayerError(errno.EAGAIN, message, entry.name)
            writer.filled(count)
            left -= count
    writer.write(padding(entry.size))
