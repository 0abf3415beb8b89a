"""Random layers, written and applied again, show what they did: by kernel overlayfs and by us.

Kernel overlayfs mounts the layer as it was and as it came back, over the same base, and the two
trees must be equal file by file. The archive of what came back must be the first one again.
"""

import io
import os
import stat
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tree
from tests.conformance.doors import Folder
from tests.privilege import IN_USER_NAMESPACE, NO_REDIRECTS, machine_only
from unionfs import LayerStack, MountOptions, UnionFS, mount
from unionfs.layers import Compression, apply_layer, write_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

_ACL = tree.acl(
    ("user_obj", 0, 7), ("user", 9, 5), ("group_obj", 0, 5), ("mask", 0, 5), ("other", 0, 4)
)
_CAPABILITY = bytes.fromhex("0100000200200000" + "00" * 12)

NAMES = st.sampled_from(["a", "b", "c", "a-b", "é", "\udcff", "n" * 80, "line\nbreak"])
DEVICES = [tree.device(stat.S_IFBLK, 200, 1 << 10), tree.device(stat.S_IFCHR, 1, 3)]
OWNERS = st.sampled_from([0, 1000, 3000 if IN_USER_NAMESPACE else 3_000_000])
MODES = st.sampled_from([0o644, 0o4755, 0o1777, 0o000])
XATTRS = st.dictionaries(
    st.sampled_from(["user.note", "security.capability", "system.posix_acl_access"]),
    st.just(b""),
    max_size=2,
).map(
    lambda names: {
        name: {"security.capability": _CAPABILITY, "system.posix_acl_access": _ACL}.get(
            name, b"\0\xff=\n"
        )
        for name in names
    }
)
FILES = st.one_of(
    st.builds(tree.file, st.binary(max_size=2000), MODES, OWNERS, OWNERS, XATTRS),
    st.builds(
        lambda at, data: tree.sparse(1 << 17, (at, data)), st.integers(0, 1 << 16), st.binary()
    ),
    st.builds(tree.symlink, st.text("ab/.", min_size=1, max_size=150), OWNERS, OWNERS),
    *([] if IN_USER_NAMESPACE else map(st.just, DEVICES)),
    st.just(tree.fifo(0o640)),
)
DIRECTORIES = st.builds(tree.directory, MODES, OWNERS, OWNERS, XATTRS)
REDIRECTS = [] if IN_USER_NAMESPACE else [tree.redirect("/a"), tree.redirect("b")]
MARKED = st.sampled_from([tree.whiteout(), tree.opaque(), *REDIRECTS, tree.socket_node()])


def trees(
    nodes: st.SearchStrategy[tree.Node], inner: st.SearchStrategy[tree.Node]
) -> st.SearchStrategy[tree.Tree]:
    """Trees of some nodes, three directories deep at most, with hard links."""

    def below(
        children: st.SearchStrategy[dict[str, tree.Node]],
    ) -> st.SearchStrategy[dict[str, tree.Node]]:
        branch = st.tuples(inner, children)
        leaf = st.tuples(nodes, st.just(dict[str, tree.Node]()))
        return st.dictionaries(NAMES, branch | leaf, max_size=4).map(flatten)

    return st.builds(linked, below(below(below(st.just({})))), st.lists(NAMES, max_size=2))


def flatten(names: dict[str, tuple[tree.Node, dict[str, tree.Node]]]) -> dict[str, tree.Node]:
    """The nodes of a directory and of those in it, by path."""
    found = {}
    for name, (node, children) in names.items():
        found[name] = node
        found |= {f"{name}/{path}": child for path, child in children.items()}
    return found


def linked(files: dict[str, tree.Node], names: list[str]) -> tree.Tree:
    """The tree with one more name for a file of it."""
    regular = sorted(path for path, node in files.items() if stat.S_ISREG(node.mode))
    links = {f"{name}+": tree.hard_link(regular[0]) for name in names if regular}
    return {**files, **links}


def without_links(files: tree.Tree) -> tree.Tree:
    """The tree without them: a copy of one of two links, like it otherwise, is no change."""
    return {path: node for path, node in files.items() if node.mode}


BASES = trees(FILES, DIRECTORIES)
TOPS = trees(FILES | MARKED, DIRECTORIES | st.sampled_from([tree.opaque(), *REDIRECTS]))


def shown(*layers: Path) -> tree.Snapshot:
    """What kernel overlayfs shows of some layers, top first."""
    with (
        LayerStack(layers) as stack,
        tempfile.TemporaryDirectory() as target,
        mount(stack, target, "overlayfs"),
    ):
        return comparable(tree.snapshot(Folder(target)))


def comparable(found: tree.Snapshot) -> tree.Snapshot:
    """Without sockets; links of directories, which differ where one merges, are not compared."""
    return {
        path: replace(seen, nlink=0)
        if isinstance(seen, tree.Seen) and seen.kind == "directory"
        else seen
        for path, seen in tree.there(found).items()
        if not (isinstance(seen, tree.Seen) and seen.kind == "socket")
    }


def archive(*layers: Path, compression: Compression = "none") -> bytes:
    out = io.BytesIO()
    with LayerStack(layers) as stack:
        write_layer(stack, out, compression=compression)
    return out.getvalue()


@settings(max_examples=40, deadline=None)
@given(base=BASES.map(without_links), top=TOPS)
def test_a_layer_comes_back_as_it_was(base: tree.Tree, top: tree.Tree) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree.build(str(folder / "base"), base)
        tree.build(str(folder / "top"), top)
        below = folder / "base"
        first = archive(folder / "top", below)
        apply_layer(io.BytesIO(first), folder / "again", prefix=tree.MARKS, below=[below])
        before, after = shown(folder / "top", below), shown(folder / "again", below)
        assert tree.differences(before, after) == []
        with LayerStack([folder / "again", below]) as stack:
            assert tree.differences(before, comparable(tree.snapshot(UnionFS(stack)))) == []
        assert archive(folder / "again", below) == first


@settings(max_examples=15, deadline=None)
@given(base=BASES)
def test_a_lone_layer_comes_back_as_it_was_on_disk(base: tree.Tree) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree.build(str(folder / "base"), base)
        os.chmod(folder / "base", 0o711)
        blob = io.BytesIO(archive(folder / "base", compression="zstd"))
        apply_layer(blob, folder / "again", prefix=tree.MARKS)
        before = tree.snapshot(Folder(str(folder / "base")))
        assert tree.differences(before, tree.snapshot(Folder(str(folder / "again")))) == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_same_layer_gives_the_same_bytes(tmp_path: Path, compression: Compression) -> None:
    """Whatever the order on disk, and however many threads compress."""
    files = {f"d{number % 7}/f{number}": tree.file(os.urandom(9000)) for number in range(400)}
    files |= {"d1/link": tree.hard_link("d1/f1"), "d0/link": tree.hard_link("d1/f1")}
    tree.build(str(tmp_path / "one"), files)
    hard_last = sorted(files.items(), key=lambda item: (not item[1].mode, hash(item[0])))
    tree.build(str(tmp_path / "two"), dict(hard_last))
    found = set()
    for name in ("one", "two"):
        for threads in (1, 2, 5):
            with LayerStack([tmp_path / name]) as stack:
                out = io.BytesIO()
                written = write_layer(stack, out, compression=compression, threads=threads)
            found.add((out.getvalue(), written))
    assert len(found) == 1


def test_a_name_more_for_a_file_below_stays_one_file(tmp_path: Path) -> None:
    """The kernel copies both names up; only one of them is new, yet the layer has both."""
    tree.build(str(tmp_path / "base"), {"a": tree.file(b"a")})
    for name in ("upper", "work", "union"):
        (tmp_path / name).mkdir()
    layers = [tmp_path / "upper", tmp_path / "base"]
    with (
        LayerStack([layers[1]], layers[0], tmp_path / "work") as stack,
        mount(stack, tmp_path / "union", "overlayfs"),
    ):
        os.link(tmp_path / "union/a", tmp_path / "union/b")
    blob = io.BytesIO(archive(*layers))
    apply_layer(blob, tmp_path / "again", prefix=tree.MARKS, below=layers[1:])
    assert (tmp_path / "again/a").samefile(tmp_path / "again/b")


@machine_only(NO_REDIRECTS)
def test_redirects_and_copies_of_metadata_are_resolved(tmp_path: Path) -> None:
    """What the kernel leaves of a renamed directory and a changed mode is whole in the layer."""
    tree.build(
        str(tmp_path / "base"),
        {"dir/a": tree.file(b"a"), "dir/b": tree.file(b"b"), "file": tree.file(b"f")},
    )
    for name in ("upper", "work", "union"):
        (tmp_path / name).mkdir()
    options = MountOptions(redirect_dir="on", metacopy=True)
    base, upper = tmp_path / "base", tmp_path / "upper"
    with (
        LayerStack([base], upper, tmp_path / "work", options=options) as stack,
        mount(stack, tmp_path / "union", "overlayfs"),
    ):
        os.rename(tmp_path / "union/dir", tmp_path / "union/moved")
        os.chmod(tmp_path / "union/moved/a", 0o600)
        os.chown(tmp_path / "union/file", 5, 6)
        before = comparable(tree.snapshot(Folder(str(tmp_path / "union"))))
    assert {tree.MARKS + "metacopy"} <= {*os.listxattr(upper / "file")}
    out = io.BytesIO()
    with LayerStack([upper, base], options=options) as stack:
        write_layer(stack, out)
    out.seek(0)
    apply_layer(out, tmp_path / "again", prefix=tree.MARKS, below=[base])
    after = shown(tmp_path / "again", base)
    del before["."], after["."]  # the root's own time is no change
    assert tree.differences(before, after) == []
    assert (tmp_path / "again/file").read_bytes() == b"f"


def test_a_socket_hides_the_file_that_it_replaced(tmp_path: Path) -> None:
    tree.build(str(tmp_path / "base"), {"a": tree.file(b"a"), "b": tree.file()})
    tree.build(str(tmp_path / "top"), {"a": tree.socket_node()})
    blob = io.BytesIO(archive(tmp_path / "top", tmp_path / "base"))
    apply_layer(blob, tmp_path / "again", prefix=tree.MARKS, below=[tmp_path / "base"])
    assert {*shown(tmp_path / "again", tmp_path / "base")} == {".", "b"}


def test_directories_that_no_entry_describes_are_as_below(tmp_path: Path) -> None:
    tree.build(str(tmp_path / "base"), {"tmp": tree.directory(0o1777, 5, 6), "tmp/a": tree.file()})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("tmp/b"))
        tar.addfile(tarfile.TarInfo("new/c"))
    out.seek(0)
    apply_layer(out, tmp_path / "again", prefix=tree.MARKS, below=[tmp_path / "base"])
    found = shown(tmp_path / "again", tmp_path / "base")
    below = comparable(tree.snapshot(Folder(str(tmp_path / "base"))))
    assert found["tmp"] == below["tmp"]
    assert isinstance(found["new"], tree.Seen)
    assert found["new"].mode == "0755"
