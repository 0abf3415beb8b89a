"""The nodes that a `UnionFS` has met, so that a path is searched in the layers once.

A lower layer never changes while it is stacked, so what only lower layers hold is known for good,
with its status. What depends on upper is known

- without an upper, as long as the stack is open;
- while the stack holds its upper's claim (`LayerStack.claim`), until we change it ourselves;
- else, where another process may write to upper, as long as the directories of upper on the way
  are what they were: the same files with the same change time (st_ctime), which every name made
  or removed in a directory renews, and every mark set on it. A change time so young that another
  change could leave it the same is not relied on.

Cost: a path whose nodes are known costs a dictionary access a component, and in the last case an
lstat(2) for each directory of upper on the way. When many nodes are known, all are forgotten.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final, final

from unionfs import index, resolve, system
from unionfs.place import join
from unionfs.resolve import Node
from unionfs.stack import LayerStack

_NODES_MAX: Final = 1 << 17
"""Nodes and statuses known at most, at about 500 bytes each."""
_CLOCK: Final = 20_000_000
_COARSE_CLOCK: Final = 2_000_000_000
"""Nanoseconds between times that files get, at most, and where a filesystem keeps whole seconds."""
_SHORT: Final = resolve.PATH_MAX // 4
_SHORT_NAME: Final = resolve.NAME_MAX // 4
"""Characters that are no more than PATH_MAX and NAME_MAX bytes."""

_Stamp = tuple[int, int]
"""st_ino and st_ctime of a directory of upper."""


@final
class Nodes:
    """The known nodes of one stack. The caller holds the stack's lock.

    An operation calls `begin`, then finds nodes, calls `forget` for each name that it is about to
    make or remove, and in the end calls `end`.
    """

    def __init__(self, stack: LayerStack) -> None:
        self._stack = stack
        self._known: dict[tuple[Node, str], Node | None] = {}
        self._answers: dict[str, os.stat_result] = {}
        self._stamps: dict[Node, _Stamp] = {}
        self._passing: list[tuple[Node, str]] = []  # what only this operation knows
        self._met: set[Node] = set()  # by this operation, which shall see one node an object
        self._found: tuple[Node, os.stat_result] | None = None  # by this operation, at last
        self._shared = False
        self._changes = stack.changes
        self._reset()

    def _reset(self) -> None:
        self._known.clear()
        self._answers.clear()
        self._stamps.clear()
        self._shared = self._stack.upper is not None and not self._stack.claimed
        self._met.clear()
        stamp = self._stamp("") if self._shared else None
        self.root = resolve.root(self._stack)
        self._meet(self.root, stamp)

    def begin(self) -> None:
        """Forget what others may have changed."""
        self._found = None
        self._met.clear()
        while self._passing:
            self._known.pop(self._passing.pop(), None)
        if (
            self._changes != self._stack.changes
            or len(self._known) + len(self._answers) > _NODES_MAX
            or (self._shared and not self._is_current(self.root))
        ):
            self._reset()
            self._changes = self._stack.changes

    def end(self) -> None:
        """Take the changes since `begin` for our own."""
        if self._changes == self._stack.changes:
            return
        self._answers.clear()
        if self._shared and self._stack.claimed:
            self._reset()  # others may have written until a moment ago
        self._changes = self._stack.changes

    def forget(self, directory: Node, name: str) -> None:
        """Forget what a name in a directory is, and with it all that lies below."""
        self._known.pop((directory, name), None)

    def child(self, directory: Node, name: str) -> Node | None:
        """As `resolve.lookup`; directory is the root, or was found since `begin`."""
        key = directory, name
        try:
            node = self._known[key]
        except KeyError:
            pass
        else:
            if node is None or self._is_current(node):
                return node
            self._stamps.pop(node, None)
        stamp = None
        if self._shared and directory.upper:
            stamp = self._stamp(join(directory.path, name))
        found = resolve.find(self._stack, directory, name)
        self._found = found
        node = found[0] if found else None
        self._known[key] = node
        if node is not None and (node.index is not None or node.data is not None):
            self._passing.append(key)  # a copy-up by another of its names changes it
        if node is not None and self._shared:
            self._meet(node, stamp)
        return node

    def _meet(self, node: Node, stamp: _Stamp | None) -> None:
        """Note that a node was looked up; stamp: its directory's in upper from before that."""
        self._met.add(node)
        if stamp and node.upper and node.is_dir:
            clock = _CLOCK if stamp[1] % 10**9 else _COARSE_CLOCK
            if stamp[1] + clock < time.time_ns():
                self._stamps[node] = stamp

    def find(self, path: str, *, follow: bool) -> Node | None:
        """The node at a path without symlinks and "..", or None: it takes `walk` to tell."""
        if not path or len(path) > _SHORT:
            return None
        node = self.root
        known = self._known
        for part in path.split("/"):
            child = known.get((node, part))
            if child is None or (self._shared and child.upper):
                if node.kind != stat.S_IFDIR or len(part) > _SHORT_NAME or part == "..":
                    return None
                if part in ("", "."):
                    continue
                child = self.child(node, part)
                if child is None:
                    return None
            node = child
        return None if follow and node.kind == stat.S_IFLNK else node

    def recall(self, path: str) -> os.stat_result | None:
        """`begin`; then the status at path, if it was told before and is sure to be the same."""
        self.begin()
        return self._answers.get(path)

    def status(self, node: Node, path: str | None = None) -> os.stat_result:
        """The status of a node: that of its file in its layer, with the union's number.

        path: where it was found by `find`; None where it took `walk`.

        Merged directories have one link: their subdirectories are not counted, which find(1)
        understands (ovl_getattr, fs/overlayfs/inode.c).
        """
        if self._found and self._found[0] is node:
            found = self._found[1]
        else:
            found = resolve.status(self._stack, node)
        numbers = self._stack.numbers
        links = found.st_nlink
        if node.is_merged:
            links = 1
        elif node.index is not None and node.upper:
            links = index.links(self._stack, node.index, found)
        device, inode = numbers.shown(node.file, directory=node.is_dir)
        shown = system.renumbered(found, inode, device, links)
        if path is not None and node.kind != stat.S_IFLNK and self._is_lower(node):
            self._answers[path] = shown
        return shown

    def _is_lower(self, node: Node) -> bool:
        """Whether no directory of upper leads to a node, or none that `begin` does not look at."""
        if node.index is not None:
            return False
        if self._shared:
            while node.names and not node.names[0][0].is_root:
                node = node.names[0][0]
        return not node.upper

    def _is_current(self, node: Node) -> bool:
        """Whether another process has left a node's directory in upper, if it has one, alone."""
        if not (self._shared and node.upper and node.is_dir) or node in self._met:
            return True
        known = self._stamps.get(node)
        if known is None or known != self._stamp(node.path):
            return False
        self._met.add(node)
        return True

    def _stamp(self, path: str) -> _Stamp | None:
        """What changes with a directory of upper; None where there is none."""
        upper = self._stack.upper
        assert upper is not None
        return system.inode_and_change(upper.fd, path)
