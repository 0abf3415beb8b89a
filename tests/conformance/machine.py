"""Random operations, the same through a door and through the kernel, compared after each step.

Both start from identical copies of random layers. After every operation its result or errno, the
merged trees and the uppers on disk are equal; at the end the door's layers, mounted natively,
and the kernel's, seen through the door, are too. Cost: two mounts an example, for a FUSE door a
child process more. tests/fuzz.py searches for as long as asked.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.conformance.doors import (
    DOORS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Door,
    Folder,
    Layers,
    kernel,
)
from tests.conformance.play import Player, Step, better, do
from tests.privilege import IN_USER_NAMESPACE
from tests.tree import (
    APPEND,
    CAPABILITY,
    IMMUTABLE,
    NOATIME,
    NODUMP,
    NOW,
    Node,
    Seen,
    Tree,
    acl,
    build,
    differences,
    directory,
    file,
    hard_link,
    opaque,
    snapshot,
    symlink,
    there,
    unguarded,
    unrepaired,
    whiteout,
)

COMMON = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Few names, so that operations meet.
_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_BLOCK = 4096
_DATA = st.sampled_from([b"", b"x", b"some data", b"more" * _BLOCK])
_OFFSETS = st.sampled_from([0, 0, 1, 9, _BLOCK, 5 * _BLOCK])
_LENGTHS = st.sampled_from([0, 3, 20, _BLOCK, 3 * _BLOCK])
_MODES = st.sampled_from([0o600, 0o644, 0o755, 0o2755, 0o4711, 0o1777])
_FLAGS = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
_XATTRS = st.sampled_from(["user.one", "trusted.two", "trusted.overlay.three"])
_HANDLES = st.sampled_from("hk")
_OWNERS = st.integers(-1, 2)
_USERS = st.sampled_from([0, 0, 0, 1, 2])
_MOMENTS = st.integers(0, 3).map(lambda seconds: (seconds * 10**9 + 7,) * 2)
_ACLS = st.sampled_from(
    [
        acl(
            ("user_obj", 0, 7), ("user", 1, 7), ("group_obj", 0, 5), ("mask", 0, 7), ("other", 0, 0)
        ),
        acl(
            ("user_obj", 0, 6),
            ("group_obj", 0, 4),
            ("group", 2, 6),
            ("mask", 0, 4),
            ("other", 0, 4),
        ),
        acl(("user_obj", 0, 7), ("group_obj", 0, 7), ("other", 0, 5)),
        b"\2\0\0\0",
    ]
)
_FILE_FLAGS = st.sampled_from([0, 0, NODUMP, NODUMP | NOATIME, APPEND, IMMUTABLE])
_GUARDS = APPEND | IMMUTABLE
_NO_DEVICE = os.makedev(120, 7)  # left to experiments; Documentation/admin-guide/devices.txt
_OPENED = st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_TRUNC])
# linux/falloc.h: plain, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE; no FUSE filesystem is asked for others
_ALLOCATIONS = st.sampled_from([0, 1, 2, 1 | 2, 0x10, 0x10 | 1])
_LOCKS = st.sampled_from([fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN]).map(
    lambda operation: operation | fcntl.LOCK_NB
)


@st.composite
def _trees(draw: st.DrawFn, upper: bool) -> Tree:
    """A layer: each name of a path in it is a directory, until one that is something else.

    Upper's whiteouts come from operations alone: the kernel cannot remove a directory with others.
    """
    hidden = [] if upper else [whiteout()]
    leaves = st.one_of(
        st.builds(file, st.sampled_from([b"", b"1", b"layer"]), _MODES),
        st.sampled_from([directory(), directory(0o2775, 1, 2), opaque(), *hidden]),
        _PATHS.map(symlink),
    )
    tree: dict[str, Node] = {}
    linked = st.sampled_from([False, False, True])
    for path in draw(st.lists(_PATHS, max_size=8 if not upper else 5, unique=True)):
        parts = path.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        if any(name in tree and not stat.S_ISDIR(tree[name].mode) for name in above):
            continue
        if any(name.startswith(f"{path}/") for name in tree):
            continue
        files = [name for name in tree if stat.S_IFMT(tree[name].mode) == stat.S_IFREG]
        if files and draw(linked):
            tree[path] = hard_link(draw(st.sampled_from(files)))
        else:
            tree[path] = draw(leaves)
    return tree


class Machine(RuleBasedStateMachine):
    """Plays every step twice.

    first: the door's name. options: what the union is mounted with. remounts: the doors through
    which a remount in mid-run may go on. operations: how many steps were compared, of all machines.
    """

    first: str
    options: str
    remounts: tuple[str, ...] = ()
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.players: list[Player] = []
        self.layers: list[Layers] = []
        self.doors = ExitStack()
        self.name = self.first
        self.readers: set[str] = set()
        self.guarded = False  # whether flags may guard anything
        self.capable = False  # whether anything may have a capability

    @initialize(
        lower=st.lists(_trees(upper=False), min_size=1, max_size=3),
        upper=_trees(upper=True),
        umask=st.sampled_from([0o022, 0o022, 0, 0o077]),
    )
    def start(self, lower: list[Tree], upper: Tree, umask: int) -> None:
        base = Path(tempfile.mkdtemp(prefix="conformance-machine-"))
        base.chmod(0o755)
        self.stack.callback(shutil.rmtree, base)
        self.stack.callback(unguarded, str(base))
        self.stack.push(self.doors)
        for name, door in (("kernel", "kernel"), ("door", self.first)):
            layers = Layers(base / name, more=self.options)
            layers.make()
            for root, tree in zip(layers.lower, lower, strict=False):
                build(root, tree)
            build(layers.upper, upper)
            self.layers.append(layers)
            self.players.append(Player(self.doors.enter_context(DOORS[door](layers)), "."))
        self.stack.callback(os.umask, os.umask(umask))

    @precondition(lambda self: self.players and self.remounts)
    @rule(data=st.data())
    def remount(self, data: st.DataObject) -> None:
        """What was written through one door is there through another."""
        self.name = data.draw(st.sampled_from(self.remounts))
        for player in self.players:
            player.close()
        self.doors.close()
        openers = (kernel, DOORS[self.name])
        for player, layers, opener in zip(self.players, self.layers, openers, strict=True):
            player.door = self.doors.enter_context(opener(layers))

    # What a door can be asked, and what of it compares.

    @property
    def mounted(self) -> bool:
        """Whether descriptors are the union's, and whoever uses them has rights of his own."""
        return self.name != "library"

    @property
    def by_fuse(self) -> bool:
        return self.name.startswith("fuse")

    @property
    def complete(self) -> bool:
        """Whether the door has what pyfuse3 lacks."""
        return not self.by_fuse or (self.name != "fuse-pure" and not self.options)

    @property
    def cached(self) -> bool:
        """Whether what is written may wait in the kernel's cache."""
        return self.name in ("fuse-cached", "fuse-pure") or IN_USER_NAMESPACE

    @property
    def names_matter(self) -> bool:
        """Whether the door knows by which of its names a file was used."""
        return not ("index" in self.options and self.by_fuse)

    @property
    def links_matter(self) -> bool:
        """Whether a descriptor tells the union's links."""
        return not ("index" in self.options and self.name == "library")

    def both(self, step: Step, user: int = 0) -> None:
        """The step's outcome is the same. user: who does it, where a door knows users."""
        Machine.operations += 1
        if self.mounted:
            step = replace(step, user=user)
        outcomes = (self.counted(player.outcome(step)) for player in self.players)
        expected, actual = map(self.comparable, outcomes)
        expected = self.forgiven(expected, actual)
        same = actual == expected or better(str(step), expected, actual)
        same = same or (expected == "EPERM" and self.by_fuse and self.unasked(step, actual))
        assert same, f"{step}: expected {expected}, got {actual}"

    def unasked(self, step: Step, outcome: object) -> bool:
        """Whether the kernel may have answered for a FUSE mount, and not for what guards a file
        (known.py, flags-checked-first)."""
        no_list = outcome is None and "system.posix_acl_default" in step.arguments
        return self.guarded and (no_list or outcome in ("EACCES", "EISDIR", "ENOTDIR"))

    def counted(self, seen: object) -> object:
        """What is seen of a file that nobody has closed, less blocks that are still in a cache."""
        return replace(seen, sparse=False) if isinstance(seen, Seen) and self.cached else seen

    def comparable(self, seen: object) -> object:
        """What is seen, less what depends on the names that upper holds of an indexed file."""
        if isinstance(seen, Seen) and seen.kind == "directory" and not self.names_matter:
            return replace(seen, nlink=0)
        return seen

    def forgiven(self, expected: object, actual: object) -> object:
        """What the kernel shows, but for what known.py tells: the time that it gives a copy of
        metadata with its data (metacopy-opened), and set-id bits of what had a capability
        (write-set-id-file-with-capability)."""
        if not (isinstance(expected, Seen) and isinstance(actual, Seen)) or expected.kind != "file":
            return expected
        if "metacopy=on" in self.options and expected.mtime == NOW:
            expected = replace(expected, mtime=actual.mtime)
        lost = int(expected.mode, 8) - int(actual.mode or "0", 8)
        if self.capable and lost in (0o2000, 0o4000, 0o6000):
            expected = replace(expected, mode=actual.mode)
        return expected

    def differences(
        self, expected: Mapping[str, object], actual: Mapping[str, object]
    ) -> list[str]:
        """As those of `tests.tree`."""
        found = {path: self.forgiven(what, actual.get(path)) for path, what in expected.items()}
        return differences(found, actual)

    def tree(self, door: Door) -> dict[str, object]:
        return {path: self.comparable(seen) for path, seen in there(snapshot(door)).items()}

    @invariant()
    def trees_are_equal(self) -> None:
        if self.players:
            expected, actual = (self.tree(player.door) for player in self.players)
            assert not self.differences(expected, actual), "merged trees"

    @invariant()
    def uppers_are_equal(self) -> None:
        if self.layers and self.names_matter:
            expected, actual = (
                unrepaired(snapshot(Folder(layers.upper))) for layers in self.layers
            )
            assert not self.differences(expected, actual), "uppers on disk"

    def teardown(self) -> None:
        with self.stack:
            if not self.players:
                return
            for player in self.players:
                player.close()
            self.doors.close()
            reference, mine = self.layers
            assert not mine.leftovers(), "work"
            assert not mine.complaints(), "log"
            with kernel(reference) as door:
                expected = self.tree(door)
            with kernel(mine) as door:
                assert not self.differences(expected, self.tree(door)), "layers mounted natively"
            with DOORS[self.first](reference) as door:
                found = self.differences(expected, self.tree(door))
                assert not found, "kernel's layers by the door"

    # Files by path.

    @rule(path=_PATHS, data=_DATA, flags=st.sampled_from([0, os.O_TRUNC, os.O_APPEND]), user=_USERS)
    def write(self, path: str, data: bytes, flags: int, user: int) -> None:
        self.both(do("write", path, data, flags), user)

    @rule(path=_PATHS, data=_DATA, flags=st.sampled_from([0, os.O_TRUNC, os.O_EXCL]), user=_USERS)
    def create(self, path: str, data: bytes, flags: int, user: int) -> None:
        self.both(do("write", path, data, flags | os.O_CREAT), user)

    @rule(path=_PATHS, offset=st.sampled_from([0, _BLOCK]))
    def write_direct(self, path: str, offset: int) -> None:
        self.both(do("write_direct", path, b"direct!!" * (_BLOCK // 8), offset))

    @rule(path=_PATHS, length=st.integers(-1, 20) | _LENGTHS, user=_USERS)
    def truncate(self, path: str, length: int, user: int) -> None:
        """To another length: known.py tells of the FUSE mount and a length that stays."""
        player = self.players[0]
        try:
            same = player.lstat(path).kind == "file" and player.stat(path).size == length
        except OSError:
            same = False
        if not same:
            self.both(do("truncate", path, length), user)

    # Names.

    def close_readers(self) -> None:
        """known.py tells of what is removed while it is open for reading alone."""
        for handle in sorted(self.readers):
            self.anew(handle)

    @rule(path=_PATHS, mode=_MODES, user=_USERS)
    def mkdir(self, path: str, mode: int, user: int) -> None:
        self.both(do("mkdir", path, mode), user)

    @rule(path=_PATHS, user=_USERS)
    def rmdir(self, path: str, user: int) -> None:
        self.both(do("rmdir", path), user)

    @rule(path=_PATHS, user=_USERS)
    def unlink(self, path: str, user: int) -> None:
        self.close_readers()
        self.both(do("unlink", path), user)

    @rule(src=_PATHS, dst=_PATHS, flags=_FLAGS, user=_USERS)
    def rename(self, src: str, dst: str, flags: int, user: int) -> None:
        """Not onto a full directory: refusing it, the kernel may have made the other one opaque."""
        player = self.players[0]
        full = player.outcome(do("scandir", dst))
        if flags or not isinstance(full, list) or not full:
            self.close_readers()
            self.both(do("rename", src, dst, flags), user)

    @rule(src=_PATHS, dst=_PATHS, user=_USERS)
    def link(self, src: str, dst: str, user: int) -> None:
        self.both(do("link", src, dst), user)

    @rule(text=_PATHS, path=_PATHS, user=_USERS)
    def symlink(self, text: str, path: str, user: int) -> None:
        self.both(do("symlink", text, path), user)

    @rule(path=_PATHS, user=_USERS)
    def mkfifo(self, path: str, user: int) -> None:
        self.both(do("mkfifo", path), user)

    @precondition(lambda self: not IN_USER_NAMESPACE)
    @rule(path=_PATHS, kind=st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]), user=_USERS)
    def make_device(self, path: str, kind: int, user: int) -> None:
        self.both(do("mknod", path, kind | 0o640, _NO_DEVICE), user)

    # Attributes.

    @rule(path=_PATHS, mode=_MODES, user=_USERS)
    def chmod(self, path: str, mode: int, user: int) -> None:
        self.both(do("chmod", path, mode), user)

    @rule(path=_PATHS, uid=_OWNERS, gid=_OWNERS, follow=st.booleans(), user=_USERS)
    def chown(self, path: str, uid: int, gid: int, follow: bool, user: int) -> None:
        self.both(do("chown", path, uid, gid, follow_symlinks=follow), user)

    @rule(path=_PATHS, times=_MOMENTS, follow=st.booleans(), user=_USERS)
    def utime(self, path: str, times: tuple[int, int], follow: bool, user: int) -> None:
        self.both(do("utime", path, times, follow_symlinks=follow), user)

    @rule(path=_PATHS, name=_XATTRS, value=_DATA, user=_USERS)
    def setxattr(self, path: str, name: str, value: bytes, user: int) -> None:
        """Without flags: where those make it fail, the kernel has copied the file up already."""
        self.both(do("setxattr", path, name, value), user)

    @rule(path=_PATHS, name=_XATTRS, user=_USERS)
    def removexattr(self, path: str, name: str, user: int) -> None:
        self.both(do("removexattr", path, name), user)

    @rule(path=_PATHS, kind=st.sampled_from(["access", "default"]), value=_ACLS, user=_USERS)
    def set_acl(self, path: str, kind: str, value: bytes, user: int) -> None:
        self.both(do("setxattr", path, f"system.posix_acl_{kind}", value), user)

    @rule(path=_PATHS, kind=st.sampled_from(["access", "default"]), user=_USERS)
    def remove_acl(self, path: str, kind: str, user: int) -> None:
        self.both(do("removexattr", path, f"system.posix_acl_{kind}"), user)

    @rule(path=_PATHS)
    def give_capability(self, path: str) -> None:
        self.capable = True
        self.both(do("setxattr", path, "security.capability", CAPABILITY))

    def is_device(self, path: str) -> bool:
        """Which a mount's user opens to ask for its flags, and the library does not."""
        seen = self.players[0].outcome(do("stat", path))
        return isinstance(seen, Seen) and "device" in seen.kind

    @precondition(lambda self: self.complete and not IN_USER_NAMESPACE)
    @rule(path=_PATHS, flags=_FILE_FLAGS, user=_USERS)
    def set_flags(self, path: str, flags: int, user: int) -> None:
        """The library's descriptors, the layers' own, know nothing of what guards a file."""
        if not self.mounted:
            flags &= ~_GUARDS
        self.guarded |= bool(flags & _GUARDS)
        if not self.is_device(path):
            self.both(do("setflags", path, flags), user)

    @precondition(lambda self: self.complete)
    @rule(path=_PATHS, user=_USERS)
    def get_flags(self, path: str, user: int) -> None:
        if not self.is_device(path):
            self.both(do("getflags", path), user)

    # Open files: by two descriptors, which may be one file's.

    def anew(self, handle: str) -> None:
        self.readers.discard(handle)
        for player in self.players:
            if handle in player.files:
                player.fclose(handle)

    @rule(handle=_HANDLES, path=_PATHS, flags=_OPENED, user=_USERS)
    def open(self, handle: str, path: str, flags: int, user: int) -> None:
        self.anew(handle)
        self.both(do("open", handle, path, flags), user)

    @precondition(lambda self: self.mounted)
    @rule(handle=_HANDLES, path=_PATHS, user=_USERS)
    def open_for_reading(self, handle: str, path: str, user: int) -> None:
        """A file or a directory, whose descriptor follows what becomes of it."""
        self.anew(handle)
        self.readers.add(handle)
        self.both(do("open", handle, path, os.O_RDONLY | os.O_NONBLOCK), user)

    @precondition(lambda self: self.complete)
    @rule(handle=_HANDLES, path=_PATHS, mode=_MODES, user=_USERS)
    def open_nameless(self, handle: str, path: str, mode: int, user: int) -> None:
        self.anew(handle)
        self.both(do("open", handle, path, os.O_TMPFILE | os.O_RDWR, mode), user)

    @precondition(lambda self: self.mounted)
    @rule(handle=_HANDLES, path=_PATHS)
    def name_open(self, handle: str, path: str) -> None:
        self.both(do("flink", handle, path))

    @rule(handle=_HANDLES, data=_DATA, offset=_OFFSETS, user=_USERS)
    def write_open(self, handle: str, data: bytes, offset: int, user: int) -> None:
        self.both(do("fwrite", handle, data, offset), user)

    @rule(handle=_HANDLES, data=_DATA, offset=_OFFSETS)
    def write_mapped(self, handle: str, data: bytes, offset: int) -> None:
        self.both(do("map_shared", handle, data, offset))

    @rule(handle=_HANDLES, length=_LENGTHS)
    def truncate_open(self, handle: str, length: int) -> None:
        """To another length, as by path."""
        seen = self.players[0].outcome(do("fstat", handle))
        if not isinstance(seen, Seen) or seen.size != length:
            self.both(do("ftruncate", handle, length))

    @precondition(lambda self: self.complete)
    @rule(handle=_HANDLES, mode=_ALLOCATIONS, offset=_OFFSETS, length=_LENGTHS)
    def allocate(self, handle: str, mode: int, offset: int, length: int) -> None:
        self.both(do("allocate", handle, mode, offset, length))

    @precondition(lambda self: self.complete)
    @rule(handle=_HANDLES, offset=_OFFSETS, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]))
    def seek(self, handle: str, offset: int, whence: int) -> None:
        """In a file: of directories the kernel asks no FUSE filesystem."""
        seen = self.players[0].outcome(do("fstat", handle))
        if isinstance(seen, Seen) and seen.kind == "file":
            self.both(do("seek", handle, offset, whence))

    @rule(length=_LENGTHS)
    def copy_range(self, length: int) -> None:
        self.both(do("copy_range", "h", "k", length))

    @rule(handle=_HANDLES, operation=_LOCKS)
    def lock(self, handle: str, operation: int) -> None:
        self.both(do("flock", handle, operation))

    @rule(handle=_HANDLES, times=_MOMENTS)
    def utime_open(self, handle: str, times: tuple[int, int]) -> None:
        self.both(do("futime", handle, times))

    @rule(handle=_HANDLES, mode=_MODES, user=_USERS)
    def chmod_open(self, handle: str, mode: int, user: int) -> None:
        self.both(do("fchmod", handle, mode), user)

    @rule(handle=_HANDLES, uid=_OWNERS, gid=_OWNERS, user=_USERS)
    def chown_open(self, handle: str, uid: int, gid: int, user: int) -> None:
        self.both(do("fchown", handle, uid, gid), user)

    @rule(handle=_HANDLES, value=_DATA)
    def setxattr_open(self, handle: str, value: bytes) -> None:
        self.both(do("fsetxattr", handle, "user.one", value))

    @rule(handle=_HANDLES)
    def sync(self, handle: str) -> None:
        self.both(do("fsync", handle))

    @rule(handle=_HANDLES)
    def look_at_open(self, handle: str) -> None:
        self.both(do("fread", handle, 6 * _BLOCK))
        if self.links_matter:
            self.both(do("fstat", handle))

    @precondition(lambda self: self.mounted)
    @rule(handle=_HANDLES)
    def list_open(self, handle: str) -> None:
        self.both(do("fscandir", handle))

    # Looking.

    @rule(path=_PATHS, user=_USERS)
    def look(self, path: str, user: int) -> None:
        self.both(do("stat", path), user)
        self.both(do("scandir", path), user)
        self.both(do("read", path), user)
        self.both(do("access", path, os.R_OK), user)
        self.both(do("numbers_agree", path))

    @rule(path=_PATHS)
    def look_at_filesystem(self, path: str) -> None:
        self.both(do("statvfs", path))


def machine(door: str, options: str, remounts: tuple[str, ...] = ()) -> Any:
    """The machine that begins at a door."""
    known = {"first": door, "options": options, "remounts": remounts}
    return type(f"Machine_{door}_{options}", (Machine,), known)
