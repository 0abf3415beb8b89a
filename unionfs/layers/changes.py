"""What the top layer changes over those below it, as a list of paths.

Two views of one stack are compared, with the top layer and without, or two unions that share lower
layers. Most directories of the top layers merge with those below as they are; of these only the
names that the top layers hold are looked at. Where one is opaque or redirected, everything is. So
whiteouts, opaque directories and redirects are all resolved, by the rules of `resolve` alone, into
what they mean: a renamed directory is one deleted and one added with all in it.

A file that was copied up and is like the one below is no change, unless it has new hard links.
Times of directories are none either, since every change in them alters those.

Cost: a lookup and an lstat(2) a name in each view; the data of files of equal size is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, cast, final

from unionfs import markers, merge, resolve, system, xattrs
from unionfs.inodes import file_id
from unionfs.place import Place, join
from unionfs.resolve import Node, lookup, places
from unionfs.stack import LayerStack

Kind = Literal["added", "modified", "deleted"]
Aspect = Literal["type", "content", "mode", "owner", "time", "xattrs", "links"]

_CHUNK: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One path that the top layer changes.

    path: from the union's root. kind: a deleted directory stands for all in it, an added one does
    not. aspects: what of a modified path differs; its metadata alone where neither "type" nor
    "content" is among them.
    """

    path: str
    kind: Kind
    aspects: tuple[Aspect, ...] = ()


def changes(stack: LayerStack, new_layers: int = 1, old_layers: int = 0) -> Iterator[Change]:
    """The changes that the top layer makes over those below, a directory before what is in it.

    new_layers, old_layers: of two unions that share their lower layers, how many layers, from the
    top, only the changed one has, and how many after these only the one before.

    Sorted by path, component by component, by the bytes of the names. With one layer alone all in
    it is added. Raises OSError where a layer cannot be read.
    """
    for change, _, _ in differences(stack, new_layers, old_layers):
        yield change


def differences(
    stack: LayerStack, new_layers: int = 1, old_layers: int = 0
) -> Iterator[tuple[Change, Node | None, Node | None]]:
    """The changes, each with the directory that it is in and what lies there now.

    There is no directory for the root's own, and nothing there once it is deleted.
    """
    roots = [Place(layer, "") for layer in stack.layers]
    below = _root(roots[new_layers:])
    top: Node | None = resolve.root(stack)
    if old_layers or not new_layers:
        top = _root([*roots[:new_layers], *roots[new_layers + old_layers :]])
    pending: list[tuple[str, Node | None, Node | None, Node | None]] = [("", None, top, below)]
    while pending:
        path, parent, new, old = pending.pop()
        if new is None:
            if old is not None:
                yield Change(f"/{path}", "deleted"), parent, None
            continue
        if old is None:
            if path:
                yield Change(f"/{path}", "added"), parent, new
        elif places(stack, new) == places(stack, old):
            continue
        elif aspects := tuple(_aspects(stack, new, old)):
            yield Change(f"/{path}", "modified", aspects), parent, new
        if not new.is_dir:
            continue
        before = old if old is not None and old.is_dir else None
        pending += [
            (
                join(path, name),
                new,
                lookup(stack, new, name),
                lookup(stack, before, name, indexed=False) if before else None,
            )
            for name in sorted(_names(stack, new, before), key=os.fsencode, reverse=True)
        ]


def _root(lower: Sequence[Place]) -> Node | None:
    """The merged root of some layers that are only read."""
    if not lower:
        return None
    number = file_id(lower[0].status())
    return Node([], stat.S_IFDIR, number, upper=False, lower=tuple(lower))


def _names(stack: LayerStack, new: Node, old: Node | None) -> set[str]:
    """The names in a directory that may differ."""
    if old is None:
        return {*merge.listing(stack, new)}
    after, before = [*places(stack, new)], [*places(stack, old)]
    if after[-1] != before[-1]:
        return {*merge.listing(stack, new), *merge.listing(stack, old)}
    while after and before and after[-1] == before[-1]:
        del after[-1], before[-1]
    return {
        name.removeprefix(markers.AUFS_PREFIX)
        for place in (*after, *before)
        for name, _, _ in system.list_dir(place.layer.fd, place.path)
    }


def _aspects(stack: LayerStack, new: Node, old: Node) -> Iterator[Aspect]:
    """What differs between two objects of one path."""
    if new.kind != old.kind:
        yield "type"
        return
    after, before = resolve.top(stack, new).status(), resolve.top(stack, old).status()
    if not _same_content(stack, (new, after), (old, before)):
        yield "content"
    if after.st_mode != before.st_mode:
        yield "mode"
    if (after.st_uid, after.st_gid) != (before.st_uid, before.st_gid):
        yield "owner"
    if not new.is_dir and after.st_mtime_ns != before.st_mtime_ns:
        yield "time"
    if attributes(stack, new) != attributes(stack, old):
        yield "xattrs"
    if not new.is_dir and after.st_nlink > 1 and after.st_nlink != before.st_nlink:
        yield "links"


def _same_content(
    stack: LayerStack, new: tuple[Node, os.stat_result], old: tuple[Node, os.stat_result]
) -> bool:
    (node, after), (node_before, before) = new, old
    if node.kind == stat.S_IFLNK:
        return resolve.readlink(stack, node) == resolve.readlink(stack, node_before)
    if node.kind != stat.S_IFREG:
        return after.st_rdev == before.st_rdev
    if after.st_size != before.st_size:
        return False
    if resolve.data(stack, node) == resolve.data(stack, node_before):
        return True
    with opened(stack, node) as data, opened(stack, node_before) as data_before:
        while (chunk := data.read(_CHUNK)) == data_before.read(_CHUNK):
            if not chunk:
                return True
    return False


def opened(stack: LayerStack, node: Node) -> BinaryIO:
    """A regular file's data, unbuffered."""
    place = resolve.data(stack, node)
    fd = system.open_beneath(place.layer.fd, place.path, os.O_RDONLY | os.O_NOFOLLOW)
    return cast(BinaryIO, open(fd, "rb", buffering=0))


def attributes(stack: LayerStack, node: Node) -> dict[str, bytes]:
    """The extended attributes that the union shows."""
    return {name: xattrs.get(stack, node, name) for name in xattrs.names(stack, node)}
