"""Random operations, the same through a door and through the kernel, compared after each step.

Both start from identical copies of random layers. After every operation its result or errno, the
merged trees and the uppers on disk are equal; at the end the door's layers, mounted natively,
and the kernel's, seen through the door, are too. Cost: two mounts an example, for a FUSE door a
child process more. tests/fuzz.py searches for as long as asked.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conformance.doors import (
    DOORS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Door,
    Folder,
    Layers,
    Opener,
    kernel,
)
from tests.conformance.play import Player, Step, better, do
from tests.privilege import IN_USER_NAMESPACE
from tests.tree import (
    NOW,
    Node,
    Seen,
    Tree,
    build,
    differences,
    directory,
    file,
    hard_link,
    opaque,
    snapshot,
    symlink,
    there,
    unrepaired,
    whiteout,
)

_COMMON = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# The same examples every time: a change is judged by itself, the search goes on in tests/fuzz.py.
_REPEATABLE = settings(
    _COMMON, max_examples=25, stateful_step_count=25, derandomize=True, database=None
)
SEARCHING = settings(_COMMON, max_examples=20, stateful_step_count=60)

# Few names, so that operations meet.
_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_DATA = st.sampled_from([b"", b"x", b"some data"])
_MODES = st.sampled_from([0o600, 0o644, 0o755, 0o2755, 0o4711, 0o1777])
_FLAGS = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
_XATTRS = st.sampled_from(["user.one", "trusted.two", "trusted.overlay.three"])
_OWNERS = st.integers(-1, 2)


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
        if any(name in tree and tree[name].mode & 0o170000 != 0o040000 for name in above):
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

    options: what the union is mounted with. names_matter: whether the door knows by which of its
    names a file was used. links_matter: whether a descriptor tells the union's links. remounts: the
    doors through which a remount in mid-run may go on.
    operations: how many steps were compared, of all machines.
    """

    opener: Opener
    options: str
    names_matter: bool
    links_matter: bool
    remounts: tuple[str, ...] = ()
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.players: list[Player] = []
        self.layers: list[Layers] = []
        self.doors = ExitStack()

    @initialize(
        lower=st.lists(_trees(upper=False), min_size=1, max_size=3), upper=_trees(upper=True)
    )
    def start(self, lower: list[Tree], upper: Tree) -> None:
        base = Path(tempfile.mkdtemp(prefix="conformance-machine-"))
        self.stack.callback(shutil.rmtree, base)
        self.stack.push(self.doors)
        for name, opener in (("kernel", kernel), ("door", type(self).opener)):
            layers = Layers(base / name, more=type(self).options)
            layers.make()
            for root, tree in zip(layers.lower, lower, strict=False):
                build(root, tree)
            build(layers.upper, upper)
            self.layers.append(layers)
            self.players.append(Player(self.doors.enter_context(opener(layers)), "."))

    @precondition(lambda self: self.players and type(self).remounts)
    @rule(data=st.data())
    def remount(self, data: st.DataObject) -> None:
        """What was written through one door is there through another."""
        door = data.draw(st.sampled_from(type(self).remounts))
        for player in self.players:
            player.close()
        self.doors.close()
        for player, opener in zip(self.players, (kernel, DOORS[door]), strict=True):
            layers = self.layers[self.players.index(player)]
            player.door = self.doors.enter_context(opener(layers))

    def both(self, step: Step) -> None:
        """The step's outcome is the same."""
        Machine.operations += 1
        expected, actual = (self.comparable(player.outcome(step)) for player in self.players)
        expected = self.forgiven(expected, actual)
        same = actual == expected or better(str(step), expected, actual)
        assert same, f"{step}: expected {expected}, got {actual}"

    def comparable(self, seen: object) -> object:
        """What is seen, less what depends on the names that upper holds of an indexed file."""
        if isinstance(seen, Seen) and seen.kind == "directory" and not type(self).names_matter:
            return replace(seen, nlink=0)
        return seen

    def forgiven(self, expected: object, actual: object) -> object:
        """What the kernel shows, but for the time that it gives a copy of metadata with its data
        (known.py, metacopy-opened)."""
        files = isinstance(expected, Seen) and isinstance(actual, Seen) and expected.kind == "file"
        if files and "metacopy=on" in type(self).options and expected.mtime == NOW:
            return replace(expected, mtime=actual.mtime)
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
        if self.layers and type(self).names_matter:
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
            with kernel(reference) as door:
                expected = self.tree(door)
            with kernel(mine) as door:
                assert not self.differences(expected, self.tree(door)), "layers mounted natively"
            with type(self).opener(reference) as door:
                found = self.differences(expected, self.tree(door))
                assert not found, "kernel's layers by the door"

    @rule(path=_PATHS, data=_DATA, flags=st.sampled_from([0, os.O_TRUNC, os.O_APPEND]))
    def write(self, path: str, data: bytes, flags: int) -> None:
        self.both(do("write", path, data, flags))

    @rule(path=_PATHS, data=_DATA, flags=st.sampled_from([0, os.O_TRUNC, os.O_EXCL]))
    def create(self, path: str, data: bytes, flags: int) -> None:
        self.both(do("write", path, data, flags | os.O_CREAT))

    @rule(path=_PATHS, length=st.integers(-1, 20))
    def truncate(self, path: str, length: int) -> None:
        """To another length: known.py tells of the FUSE mount and a length that stays."""
        player = self.players[0]
        try:
            same = player.lstat(path).kind == "file" and player.stat(path).size == length
        except OSError:
            same = False
        if not same:
            self.both(do("truncate", path, length))

    @rule(path=_PATHS, mode=_MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(do("mkdir", path, mode))

    @rule(path=_PATHS)
    def rmdir(self, path: str) -> None:
        self.both(do("rmdir", path))

    @rule(path=_PATHS)
    def unlink(self, path: str) -> None:
        self.both(do("unlink", path))

    @rule(src=_PATHS, dst=_PATHS, flags=_FLAGS)
    def rename(self, src: str, dst: str, flags: int) -> None:
        """Not onto a full directory: refusing it, the kernel may have made the other one opaque."""
        player = self.players[0]
        full = player.outcome(do("scandir", dst))
        if flags or not isinstance(full, list) or not full:
            self.both(do("rename", src, dst, flags))

    @rule(src=_PATHS, dst=_PATHS)
    def link(self, src: str, dst: str) -> None:
        self.both(do("link", src, dst))

    @rule(text=_PATHS, path=_PATHS)
    def symlink(self, text: str, path: str) -> None:
        self.both(do("symlink", text, path))

    @rule(path=_PATHS)
    def mkfifo(self, path: str) -> None:
        self.both(do("mkfifo", path))

    @rule(path=_PATHS, mode=_MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(do("chmod", path, mode))

    @rule(path=_PATHS, uid=_OWNERS, gid=_OWNERS, follow=st.booleans())
    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        self.both(do("chown", path, uid, gid, follow_symlinks=follow))

    @rule(path=_PATHS, seconds=st.integers(0, 3), follow=st.booleans())
    def utime(self, path: str, seconds: int, follow: bool) -> None:
        moment = seconds * 10**9 + 7
        self.both(do("utime", path, (moment, moment), follow_symlinks=follow))

    @rule(path=_PATHS, name=_XATTRS, value=_DATA)
    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """Without flags: where those make it fail, the kernel has copied the file up already."""
        self.both(do("setxattr", path, name, value))

    @rule(path=_PATHS, name=_XATTRS)
    def removexattr(self, path: str, name: str) -> None:
        self.both(do("removexattr", path, name))

    @rule(handle=st.sampled_from("hk"), path=_PATHS, flags=st.sampled_from([os.O_RDWR]))
    def open(self, handle: str, path: str, flags: int) -> None:
        for player in self.players:
            if handle in player.files:
                player.fclose(handle)
        self.both(do("open", handle, path, flags))

    @rule(handle=st.sampled_from("hk"), data=_DATA, offset=st.integers(0, 9))
    def write_open(self, handle: str, data: bytes, offset: int) -> None:
        self.both(do("fwrite", handle, data, offset))

    @rule(handle=st.sampled_from("hk"))
    def look_at_open(self, handle: str) -> None:
        self.both(do("fread", handle, 64))
        if type(self).links_matter:
            self.both(do("fstat", handle))

    @rule(path=_PATHS)
    def look(self, path: str) -> None:
        self.both(do("stat", path))
        self.both(do("scandir", path))
        self.both(do("numbers_agree", path))


def machine(door: str, options: str, remounts: tuple[str, ...] = ()) -> Any:
    """The machine that begins at a door."""
    made: Any = type(f"Machine_{door}_{options}", (Machine,), {"options": options})
    made.opener = staticmethod(DOORS[door])
    made.names_matter = not ("index" in options and door.startswith("fuse"))
    made.links_matter = not ("index" in options and door == "library")
    made.remounts = remounts
    return made


# With user. marks the kernel follows no redirects, and renames no directory of a lower layer.
_OPTIONS = ["redirect_dir=nofollow"] if IN_USER_NAMESPACE else ["", "index=on", "metacopy=on"]


@pytest.mark.parametrize(
    ("door", "options"),
    [
        (door, options)
        for door in DOORS
        for options in _OPTIONS
        if not (door == "fuse-cached" and options)  # it would be fuse once more
    ],
)
def test_random_operations(door: str, options: str) -> None:
    """Whatever is done, in whatever order, the door and the kernel agree."""
    run_state_machine_as_test(machine(door, options), settings=_REPEATABLE)
