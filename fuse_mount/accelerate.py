"""The fast path joined to the filesystem: what C answers alone, and what it shares with Python.

csrc/ owns /dev/fuse and a table of the nodes that the kernel knows. It answers a closed list of
plain requests from that; all others go to pyfuse3, and so to `operations`, unchanged. The table is
the one truth: here its nodes become `resolve.Node`s for as long as a request needs them, and what
the library changes in those is written back before C may look again. Both hold the table's lock
while they read or change it, and Python lets go of it wherever it waits.

A node that Python has is pinned: C leaves its names alone until Python is done with it. Where a
request has lost what made it one for Python, as the opening of a file that is copied up by now, it
is handed back to C.

Cost: a few microseconds a request that C answers; one that it does not costs a hop through a socket
and the making of its nodes.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, final

from fuse_mount import owners
from fuse_mount.inodes import ROOT_ID, File, Inode, Inodes
from fuse_mount.terms import Terms
from unionfs import markers, resolve, system
from unionfs.place import Place
from unionfs.resolve import Node
from unionfs.stack import LayerStack
from unionfs.system import NATIVE

AVAILABLE: bool = False
try:
    from fuse_mount import _fast
except ImportError:
    pass
else:
    AVAILABLE = NATIVE  # the environment may rule out extensions

_Facts = tuple[int, int, int, int, tuple[tuple[int, str], ...], bytes | None]
"""Flags, device, inode, number, places and redirect of a node, as the table keeps them."""

_DIRECTORIES_MAX: Final = 64
"""How many directories that requests used last stay nodes, for what the library knows of those."""
_NAMES_MAX: Final = 1 << 12
"""Names in lower directories that the library keeps in mind beside C."""
_SYS_ADMIN: Final = 21
_ALWAYS: Final = 1e9
"""Seconds that the kernel may keep what does not change behind its back."""


def decide(stack: LayerStack) -> Terms:
    """The terms of a stack's mount."""
    options = stack.options
    fast = serves(stack)
    passthrough = fast and options.passthrough and may_pass_through()
    return Terms(
        # with xattr_permissions, a list would change the mode on disk, not the one that is shown
        acl=not (options.noacl or options.noxattrs or options.xattr_permissions),
        writeback=options.writeback and stack.upper is not None and not passthrough,
        timeout=_ALWAYS if options.timeout is None else options.timeout,
        fast=fast,
        passthrough=passthrough,
    )


def serves(stack: LayerStack) -> bool:
    """Whether the fast path knows all that the options of a stack ask for.

    Not `debug`: libfuse shows each request that it sees. Not `index`, `metacopy`, nor layers of
    data alone: which names are one file, and where its data lies, the library has to look up.
    """
    options = stack.options
    return (
        AVAILABLE
        and not (stack.indexes or stack.metacopy or stack.data)
        and not (options.debug or options.xattr_permissions)
    )


def may_pass_through() -> bool:
    """Whether this process may have the kernel read and write layers' files without us.

    Asks for CAP_SYS_ADMIN in the first user namespace (fs/fuse/passthrough.c).
    """
    return system.capable(_SYS_ADMIN)


@final
class TableInodes(Inodes):
    """The inodes of a stack in C's table.

    terms: what the mount and the kernel agree on.
    """

    def __init__(self, stack: LayerStack, terms: Terms) -> None:
        self._stack = stack
        self._attached = threading.Event()
        self._find: Callable[[Inode, str], Inode | None]
        self._copy_up: Callable[[Inode], None]
        self._users = 0
        self._loaded: dict[int, Inode] = {}
        self._nodes: dict[Node, Inode] = {}
        self._told: dict[int, _Facts] = {}
        self._directories: OrderedDict[int, Node] = OrderedDict()
        options = stack.options
        self._roots: list[int] = []
        root = resolve.root(stack)
        stack.memory.most = _NAMES_MAX
        users, groups = owners.users(options), owners.groups(options)
        self.table = _fast.Table(
            layers=[
                (layer.fd, layer.device, layer.known and layer.known.data) for layer in stack.layers
            ],
            filesystems=self._filesystems(),
            prefix=stack.prefix.encode(),
            ask=self._ask,
            copy_up=self._copied_up,
            has_upper=stack.upper is not None,
            work=stack.claim().fd if stack.claimed else -1,
            durable=not options.volatile,
            ordered=stack.claimed and stack.claim().ordered,
            strict=options.strict,
            passthrough=terms.passthrough,
            writeback=terms.writeback,
            xattrs=not (options.noxattrs or options.noacl),
            syncs=options.syncs,
            idmapped=stack.idmapped,
            redirects=stack.redirects,
            static_nlink=options.static_nlink,
            users=(users.ranges, users.squash),
            groups=(groups.ranges, groups.squash),
            timeout=terms.timeout,
        )
        self.root = self._keep(ROOT_ID, root)
        self._leave()

    def attach(
        self, find: Callable[[Inode, str], Inode | None], copy_up: Callable[[Inode], None]
    ) -> None:
        """Say who does what C asks for, which waits for it.

        find: the inode at a name that only the library can look up. copy_up: makes upper hold a
        directory.
        """
        self._find, self._copy_up = find, copy_up
        self._attached.set()

    def _filesystems(self) -> list[tuple[int, int, int, int, bytes]]:
        """Of each: device, `of_filesystem`, a root to open handles by, and UUID."""
        found: dict[int, tuple[int, int, int, int, bytes]] = {}
        numbers = self._stack.numbers
        for layer in self._stack.layers:
            device = os.fstat(layer.fd).st_dev
            if device not in found:
                # open_by_handle_at(2) takes no O_PATH descriptor
                root = os.open(f"/proc/self/fd/{layer.fd}", os.O_RDONLY | os.O_DIRECTORY)
                self._roots.append(root)
                numbering = numbers.of_filesystem(device)
                found[device] = device, *numbering, root, numbers.uuid(device)
        return list(found.values())

    # What Python has of the table.

    def _keep(self, number: int, node: Node) -> Inode:
        inode = Inode(number, node)
        self._loaded[number] = inode
        self._nodes[node] = inode
        self.table.pin(number)
        return inode

    def __getitem__(self, number: int) -> Inode:
        inode = self._loaded.get(number)
        return self._load(number) if inode is None else inode

    def _load(self, number: int) -> Inode:
        while self.table.is_copying(number):
            with self.apart():
                self.table.settle(number)
        kind, flags, device, file, names, places, redirect = self.table.facts(number)
        parents = [(self[parent].node, name) for parent, name in names]
        layers = self._stack.layers
        if flags & _fast.STALE and parents:
            found = resolve.lookup(self._stack, *parents[0])
            if found is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            found.names = parents
            return self._keep(number, found)
        node = Node(
            parents,
            kind << 12,
            (device, file),
            upper=bool(flags & _fast.UPPER),
            lower=tuple(Place(layers[layer], path) for layer, path in places),
            marks=markers.Marks(
                opaque=bool(flags & _fast.OPAQUE),
                redirect=None if redirect is None else os.fsdecode(redirect),
                impure=bool(flags & _fast.IMPURE),
            ),
            origin=bool(flags & _fast.ORIGIN),
        )
        node.is_root = number == ROOT_ID
        facts = self._told[number] = self._facts(node)
        known = self._directories.get(number)
        if known is not None and known.names == parents and self._facts(known) == facts:
            node = known
            node.guard = None  # which C may have set since
        return self._keep(number, node)

    def _facts(self, node: Node) -> _Facts:
        flags = (
            _fast.UPPER * node.upper
            | _fast.OPAQUE * node.opaque
            | _fast.IMPURE * node.impure
            | _fast.ORIGIN * node.origin
        )
        layers = self._stack.layers
        places = tuple((layers.index(place.layer), place.path) for place in node.lower)
        redirect = None if node.redirect is None else os.fsencode(node.redirect)
        return flags, *node.file, self._stack.numbers.number(node.file), places, redirect

    def _write_back(self) -> None:
        """Bring the table up to date with what the library has changed."""
        for number, inode in self._loaded.items():
            facts = self._facts(inode.node)
            if self._told.get(number) != facts:
                self.table.put(number, *facts)
                self._told[number] = facts

    def _leave(self) -> None:
        """Write back, and let go of the nodes that no request needs any more."""
        self._write_back()
        if not self._users:
            loaded, self._loaded = self._loaded, {}
            self._nodes.clear()
            self._told.clear()
            for number, inode in loaded.items():
                self.table.unpin(number)
                if inode.node.is_dir:
                    self._directories[number] = inode.node
                    self._directories.move_to_end(number)
            while len(self._directories) > _DIRECTORIES_MAX:
                self._directories.popitem(last=False)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.table.lock()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            try:
                self._leave()
            finally:
                self.table.unlock()

    @contextmanager
    def apart(self) -> Iterator[None]:
        self._write_back()
        self.table.unlock()
        try:
            yield
        finally:
            self.table.lock()

    def hand_back(self) -> NoReturn:
        from pyfuse3 import FUSEError

        raise FUSEError(_fast.REDO)

    def _ask(self, parent: int, name: bytes) -> int:
        """Called by C, which holds the lock: the ID at a name, 0 for none, or -errno.

        Counted as told, so that the node outlives this call.
        """

        def find() -> int:
            inode = self._find(self[parent], os.fsdecode(name))
            if inode is None:
                return 0
            self.told(inode)
            return inode.id

        return self._for_c(find)

    def _copied_up(self, directory: int) -> int:
        """Called by C, which holds the lock: 0 once upper holds a directory, or -errno."""

        def copy_up() -> int:
            self._copy_up(self[directory])
            return 0

        return self._for_c(copy_up)

    def _for_c(self, work: Callable[[], int]) -> int:
        """Do what C asks for, which holds the lock; its result, or -errno."""
        self._attached.wait()
        self._users += 1
        try:
            return work()
        except OSError as error:
            return -(error.errno or errno.EIO)
        finally:
            self._users -= 1
            self._leave()

    # Names.

    def known(self, parent: Inode, name: str) -> Inode | None:
        number = self.table.child(parent.id, os.fsencode(name))
        return self[number] if number else None

    def child(self, parent: Inode, name: str, node: Node, status: os.stat_result) -> Inode:
        file = self._linked_file(node, status)
        linked = 0 if file is None else self.table.linked(*file)
        if linked:
            inode = self[linked]
            inode.node.names.append((parent.node, name))
            self.table.bind(linked, parent.id, os.fsencode(name))
            return inode
        inode = self._keep(self.table.new(node.kind >> 12), node)
        self._write_back()
        self.table.bind(inode.id, parent.id, os.fsencode(name))
        self.link(inode, status)
        return inode

    def bind(self, parent: Inode, name: str, inode: Inode) -> None:
        self.table.bind(inode.id, parent.id, os.fsencode(name))
        self.made(parent)

    def unbind(self, parent: Inode, name: str) -> None:
        self.table.unbind(parent.id, os.fsencode(name))
        self.made(parent)

    def made(self, parent: Inode) -> None:
        self.table.changed(parent.id)

    def removed(self, inode: Inode, last: os.stat_result) -> None:
        inode.last = last
        self.table.set_last(
            inode.id,
            last.st_mode,
            last.st_nlink,
            last.st_uid,
            last.st_gid,
            last.st_rdev,
            last.st_size,
            last.st_blocks,
            last.st_blksize,
            last.st_atime_ns,
            last.st_mtime_ns,
            last.st_ctime_ns,
        )

    def link(self, inode: Inode, status: os.stat_result) -> None:
        file = self._linked_file(inode.node, status)
        if file is not None:
            self.table.link(inode.id, *file)

    def above(self, inode: Inode) -> Iterator[Inode]:
        node = inode.node
        while node.names:
            node = node.names[0][0]
            yield self._nodes[node]

    def told(self, inode: Inode) -> None:
        self.table.tell(inode.id)

    def invalidate(self, inode: Inode) -> None:
        self.table.invalidate(inode.id)

    def renumbered(self, inode: Inode) -> None:
        for parent, _ in inode.node.names:
            self.table.relist(self._nodes[parent].id)

    def drop_unused(self, inode: Inode) -> None:
        """Nothing: those end when they are let go of."""

    # Open files.

    def files(self, inode: Inode) -> list[File]:
        return [
            File(inode, fd, flags, lower=lower) for fd, flags, lower in self.table.files(inode.id)
        ]

    def opened(self, inode: Inode, fd: int, flags: int) -> None:
        self.table.opened(inode.id, fd, flags)

    def followed(self, file: File) -> None:
        file.lower = False
        self.table.followed(file.fd)

    def close(self) -> None:
        for root in self._roots:
            os.close(root)
        self._roots.clear()
