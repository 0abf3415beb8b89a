"""What the kernel knows of the union: each node that it has looked up, under an ID of its own.

An ID is never used twice, and is not the inode number that stat shows: two nodes may share that,
and a node may change it. The kernel counts its look-ups, and forgets; an inode is kept until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Final, final

from unionfs.inodes import FileId, file_id
from unionfs.resolve import Node

ROOT_ID: Final = 1


@final
class File:
    """One open file. fd: its descriptor, ours to close. flags: those it was opened with."""

    __slots__ = ("fd", "flags", "inode", "lower")

    def __init__(self, inode: Inode, fd: int, flags: int, *, lower: bool) -> None:
        self.inode = inode
        self.fd = fd
        self.flags = flags
        self.lower = lower


class Inode:
    """One node that the kernel knows.

    lookups: how often the kernel was told of it, less what it forgot. children: by name, those of
    a directory that the kernel knows. files: its open files. last: the status that it had when its
    last name was removed.
    """

    __slots__ = ("children", "files", "id", "last", "lookups", "node")

    def __init__(self, number: int, node: Node) -> None:
        self.id = number
        self.node = node
        self.lookups = 0
        self.children: dict[str, Inode] = {}
        self.files: list[File] = []
        self.last: os.stat_result | None = None


class Inodes:
    """All inodes by ID, by node, and by file where that has several names."""

    def __init__(self, root: Node) -> None:
        self._by_id: dict[int, Inode] = {}
        self._by_node: dict[Node, Inode] = {}
        self._linked: dict[FileId, Inode] = {}
        self._files: dict[int, File] = {}
        self._next = ROOT_ID
        self.root = self._add(root)
        self.root.lookups = 1

    def attach(
        self, find: Callable[[Inode, str], Inode | None], copy_up: Callable[[Inode], None]
    ) -> None:
        """Say who looks names up, and makes upper hold a directory, for inodes that do so."""

    def __getitem__(self, number: int) -> Inode:
        return self._by_id[number]

    def held(self) -> AbstractContextManager[None]:
        """Entered while a request is answered: what inodes tell is true inside."""
        return nullcontext()

    def apart(self) -> AbstractContextManager[None]:
        """Entered inside `held` while that waits: other requests change what they need to."""
        return nullcontext()

    def hand_back(self) -> None:
        """Called where a request has become one that needs none of our rules any more.

        Does not return where something faster answers it from there.
        """

    def _add(self, node: Node) -> Inode:
        inode = Inode(self._next, node)
        self._next += 1
        self._by_id[inode.id] = inode
        self._by_node[node] = inode
        return inode

    def known(self, parent: Inode, name: str) -> Inode | None:
        """The inode at a name, if the kernel may know it."""
        return parent.children.get(name)

    def child(self, parent: Inode, name: str, node: Node, status: os.stat_result) -> Inode:
        """The inode of a node just found or made at a name. status: that of its file."""
        file = self._linked_file(node, status)
        inode = None if file is None else self._linked.get(file)
        if inode is None:
            inode = self._add(node)
            self.link(inode, status)
        else:
            inode.node.names.append((parent.node, name))
        parent.children[name] = inode
        return inode

    def bind(self, parent: Inode, name: str, inode: Inode) -> None:
        """Note that an inode has a name, by link or rename."""
        parent.children[name] = inode

    def unbind(self, parent: Inode, name: str) -> None:
        """Note that a name is gone."""
        parent.children.pop(name, None)

    def made(self, parent: Inode) -> None:
        """Note that a directory has got a name."""

    def removed(self, inode: Inode, last: os.stat_result) -> None:
        """Keep the status of an inode that has lost its last name."""
        inode.last = last

    def link(self, inode: Inode, status: os.stat_result) -> None:
        """Note that other names of a file may be names of this inode."""
        file = self._linked_file(inode.node, status)
        if file is not None:
            self._linked[file] = inode

    @staticmethod
    def _linked_file(node: Node, status: os.stat_result) -> FileId | None:
        """The file that other names may be names of too; None where there are none."""
        if node.index is not None:
            return node.file
        linked = node.upper and not node.is_dir and status.st_nlink > 1
        return file_id(status) if linked else None

    def above(self, inode: Inode) -> Iterator[Inode]:
        """The inodes of the directories that it lies in, nearest first."""
        node = inode.node
        while node.names:
            node = node.names[0][0]
            yield self._by_node[node]

    def told(self, inode: Inode) -> None:
        """Count that the kernel is told of an inode."""
        inode.lookups += 1

    def forget(self, inode: Inode, lookups: int) -> None:
        """Take back what the kernel was told, and drop the inode when that was all."""
        inode.lookups -= lookups
        if inode.lookups > 0 or inode is self.root:
            return
        del self._by_id[inode.id]
        del self._by_node[inode.node]
        for file in [file for file, other in self._linked.items() if other is inode]:
            del self._linked[file]
        for parent, name in inode.node.names:
            directory = self._by_node.get(parent)
            if directory is not None and directory.children.get(name) is inode:
                del directory.children[name]

    def invalidate(self, inode: Inode) -> None:
        """Have the kernel ask for an inode's attributes again, before it gets our reply."""
        import pyfuse3

        with suppress(OSError):  # ENOENT: the kernel has forgotten it
            pyfuse3.invalidate_inode(inode.id, attr_only=True)

    def renumbered(self, inode: Inode) -> None:
        """Have what lists an inode listed anew, which has another number now; called `apart`."""

    def drop_unused(self, inode: Inode) -> None:
        """Drop an inode that the kernel was not told of."""
        if not inode.lookups:
            self.forget(inode, 0)

    # Open files.

    def files(self, inode: Inode) -> list[File]:
        """The open files of an inode."""
        return inode.files

    def opened(self, inode: Inode, fd: int, flags: int) -> None:
        """Note an open file of an inode. fd: ours to close from now on."""
        lower = not inode.node.upper or inode.node.data is not None
        file = File(inode, fd, flags, lower=lower)
        inode.files.append(file)
        self._files[fd] = file

    def followed(self, file: File) -> None:
        """Note that an open file is the copy in upper now."""
        file.lower = False

    def closed(self, fd: int) -> Inode:
        """The inode of an open file, which is not one any more."""
        file = self._files.pop(fd)
        file.inode.files.remove(file)
        return file.inode

    def close(self) -> None:
        """Close what the kernel has left open."""
        for fd in self._files:
            os.close(fd)
        self._files.clear()
