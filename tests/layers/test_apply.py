"""A layer written and applied again: as a layer of a stack, and over a tree."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest

from tests import tree
from tests.conformance.doors import Folder
from tests.privilege import IN_USER_NAMESPACE
from unionfs import LayerStack, UnionFS
from unionfs.layers import Compression, LayerError, apply_layer, apply_onto, write_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")

BASE: tree.Tree = {
    "etc/motd": tree.file(b"welcome\n"),
    "etc/hosts": tree.file(b"localhost\n"),
    "etc/dir/old": tree.file(b"old"),
    "usr/bin/tool": tree.file(b"tool", mode=0o755, uid=3, gid=4),
    "srv": tree.directory(mode=0o1777, uid=5, gid=6),
    "srv/a": tree.file(b"a"),
    "gone/file": tree.file(),
}
TOP: tree.Tree = {
    "etc/motd": tree.file(b"changed\n", xattrs={"user.note": b"\0\xff=\n"}),
    "etc/dir": tree.opaque(),
    "etc/dir/new": tree.sparse(1 << 20, (500_000, b"x"), (900_000, b"y")),
    "etc/link": tree.hard_link("etc/motd"),
    "gone": tree.whiteout(),
    "srv/b": tree.file(b"b", mode=0o4755, uid=7, gid=8),
    **({} if IN_USER_NAMESPACE else {"dev/null": tree.device(stat.S_IFCHR, 1, 3)}),
    "dev/pipe": tree.fifo(),
    "n" * 200 + "/" + "m" * 200: tree.symlink("t" * 300),
    "acl": tree.directory(
        xattrs={
            "system.posix_acl_default": tree.acl(
                ("user_obj", 0, 7),
                ("user", 9, 5),
                ("group_obj", 0, 5),
                ("mask", 0, 5),
                ("other", 0, 0),
            )
        }
    ),
    "acl/file": tree.file(),
}


def written(stack: LayerStack, compression: Compression = "gzip") -> bytes:
    """The archive of the top layer."""
    out = io.BytesIO()
    write_layer(stack, out, compression=compression)
    return out.getvalue()


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """A top and a base layer."""
    tree.build(str(tmp_path / "base"), BASE)
    tree.build(str(tmp_path / "top"), TOP)
    return [tmp_path / "top", tmp_path / "base"]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_applied_layer_shows_what_the_written_one_did(
    tmp_path: Path, layers: list[Path], compression: Compression
) -> None:
    base = layers[1]
    with LayerStack(layers) as stack:
        before = tree.snapshot(UnionFS(stack))
        out = io.BytesIO()
        described = write_layer(stack, out, compression=compression)
    out.seek(0)
    applied = apply_layer(out, tmp_path / "again", prefix=tree.MARKS, below=[base])
    assert (applied.digest, applied.diff_id) == (described.digest, described.diff_id)
    assert applied.size == described.size == len(out.getvalue())
    with LayerStack([tmp_path / "again", base]) as stack:
        after = tree.snapshot(UnionFS(stack))
    different = tree.differences(before, after)
    # it merges with nothing as one that is opaque, or without one
    assert [line.partition(":")[0] for line in different] == ["etc/dir"]


def test_over_a_tree_whiteouts_remove(tmp_path: Path, layers: list[Path]) -> None:
    with LayerStack(layers) as stack:
        archive = written(stack)
    apply_onto(io.BytesIO(archive), layers[1])
    found = tree.snapshot(Folder(str(layers[1])))
    assert not {"gone", "gone/file", "etc/dir/old"} & found.keys()
    assert {"etc/hosts", "etc/dir/new", "usr/bin/tool"} <= found.keys()


def test_a_wrong_digest_leaves_nothing(tmp_path: Path, layers: list[Path]) -> None:
    with LayerStack(layers) as stack:
        archive = written(stack)
    before = {*tmp_path.iterdir()}
    with pytest.raises(LayerError, match="not sha256:00"):
        apply_layer(io.BytesIO(archive), tmp_path / "out", prefix=tree.MARKS, digest="sha256:00")
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_full_disk_is_told_and_ends_all_threads(tmp_path: Path, compression: Compression) -> None:
    tree.build(str(tmp_path / "top"), {"a": tree.file(os.urandom(9 << 20))})
    before = threading.active_count()
    with (
        LayerStack([tmp_path / "top"]) as stack,
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left"),
    ):
        write_layer(stack, full, compression=compression, threads=3)
    assert threading.active_count() == before
