"""The index of a layer shows what the layer holds, or is not used."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.doors import Folder
from tests.privilege import IN_USER_NAMESPACE, NO_REDIRECTS, machine_only
from tests.tree import (
    MARKS,
    Snapshot,
    Tree,
    build,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    redirect,
    snapshot,
    socket_node,
    sparse,
    symlink,
    whiteout,
)
from unionfs import LayerStack, MountOptions, UnionFS, layerindex, mount

BASE: Tree = {
    "etc/conf": file(b"base", mode=0o640, uid=7, gid=8),
    "etc/gone": file(b"x"),
    "etc/marked": file(b"x"),
    "etc/aufs": file(b"x"),
    "etc/dir/deep/file": file(b"deep"),
    "hidden/old": file(b"x"),
    "veiled/old": file(b"x"),
    "moved/away/file": file(b"moved"),
    "beside/file": file(b"beside"),
    "kind/child": file(b"x"),
    "data": file(b"data below"),
    os.fsdecode(b"\xff\xfe name\n"): file(b"bytes"),
}
TOP: Tree = {
    "etc": directory(xattrs={MARKS + "opaque": b"x"}),
    "etc/conf": file(b"top"),
    "etc/gone": whiteout(),
    "etc/marked": file(xattrs={MARKS + "whiteout": b"y"}),
    "etc/.wh.aufs": file(),
    "etc/dir/added": file(b"added"),
    "hidden": opaque(),
    "hidden/new": file(b"new"),
    "veiled/.wh..wh..opq": file(),
    "here": redirect("/moved/away"),
    "near": redirect("beside"),
    "kind": symlink("etc/conf"),
    "data": file(b"", xattrs={MARKS + "metacopy": b""}),
    "large": sparse(1 << 20, (4096, b"x")),
    "linked": file(b"two names"),
    "also": hard_link("linked"),
    "fifo": fifo(),
    "socket": socket_node(),
    **({} if IN_USER_NAMESPACE else {"null": device(stat.S_IFCHR, 1, 3)}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(f"{tmp_path}/base", BASE)
    build(f"{tmp_path}/top", TOP)
    os.truncate(tmp_path / "top/data", 10)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def _stack(folder: Path, *, indexed: bool = True) -> LayerStack:
    options = MountOptions(layer_index=f"{folder}/indexes" if indexed else None)
    lower = [folder / "top", folder / "base"]
    return LayerStack(lower, folder / "upper", folder / "work", options=options)


def _seen(folder: Path, *, indexed: bool = True) -> tuple[Snapshot, dict[str, object]]:
    """What there is, and all of each status but the time of the last access."""
    with _stack(folder, indexed=indexed) as stack:
        union = UnionFS(stack)
        assert all((layer.known is not None) == indexed for layer in stack.lower)
        shown = snapshot(union)
        statuses: dict[str, object] = {}
        for path, what in shown.items():
            if not isinstance(what, str):
                status = union.lstat(path)
                names = [name for name in dir(status) if name.startswith("st_")]
                statuses[path] = [getattr(status, n) for n in names if "atime" not in n]
        return shown, statuses


def test_a_union_shows_the_same_with_indexes(folder: Path) -> None:
    expected = _seen(folder, indexed=False)
    assert "etc/dir/deep/file" in expected[0]
    assert _seen(folder) == expected  # it builds them
    assert len(os.listdir(folder / "indexes")) == 2
    assert _seen(folder) == expected  # it finds them


@machine_only(NO_REDIRECTS)
def test_copies_of_metadata_are_the_same_with_indexes(folder: Path) -> None:
    """Whether the mark counts or not, and where a file with it has data nevertheless."""
    (folder / "base/late").write_bytes(b"below" * 2000)
    (folder / "top/late").write_bytes(b"above" * 2000)
    os.setxattr(folder / "top/late", f"{MARKS}metacopy", b"")
    for metacopy in (False, True):
        seen = []
        for indexes in (None, f"{folder}/indexes", f"{folder}/indexes"):
            options = MountOptions(layer_index=indexes, metacopy=metacopy)
            with LayerStack([folder / "top", folder / "base"], options=options) as stack:
                union = UnionFS(stack)
                seen.append(snapshot(union))
                assert union.read_bytes("late")[:5] == (b"below" if metacopy else b"above")
        assert seen[0] == seen[1] == seen[2]


def test_an_index_lies_beside_its_layer_and_goes_with_it(folder: Path) -> None:
    """A relative path is from the layer; the kernel's mount has no use for an index."""
    for name in ("one", "other"):
        build(f"{folder}/layers/{name}/fs", {name: file(name.encode())})
    lower = [folder / "layers/one/fs", folder / "layers/other/fs"]
    (folder / "union").mkdir()
    with LayerStack(lower, options=MountOptions(layer_index="..")) as stack:
        with mount(stack, folder / "union", "overlayfs"):
            assert [len(os.listdir(layer.parent)) for layer in lower] == [1, 1]
        assert sorted(UnionFS(stack).listdir()) == ["one", "other"]
    assert [len(os.listdir(layer.parent)) for layer in lower] == [2, 2]


@machine_only(NO_REDIRECTS)
def test_what_upper_changes_is_over_an_index(folder: Path) -> None:
    with _stack(folder) as stack:
        union = UnionFS(stack)
        union.write_text("etc/conf", "changed")
        union.unlink("etc/dir/deep/file")
        union.rename("here/file", "hidden/file")
        union.chmod("linked", 0o600)
        union.mkdir("new")
    expected = _seen(folder, indexed=False)
    assert _seen(folder) == expected
    assert "moved" in str(expected[0])


def test_an_index_is_read_in_the_place_of_the_layer(folder: Path) -> None:
    """So a change that nobody may make, deep in a layer, is not noticed."""
    before = _seen(folder)[1]
    (folder / "base/etc/dir/deep/late").touch()
    with _stack(folder) as stack:
        assert UnionFS(stack).listdir("etc/dir/deep") == ["file"]
        assert {*before} == {*_seen(folder)[1]}


def test_a_layer_of_other_contents_gets_another_index(folder: Path) -> None:
    _seen(folder)
    (folder / "base/new").write_text("in the layer's root")
    assert _seen(folder) == _seen(folder, indexed=False)
    (folder / "base").rename(folder / "old")
    build(f"{folder}/base", {"alone": file(b"another layer under the path")})
    assert _seen(folder) == _seen(folder, indexed=False)


_OWNERS = """
import sys
from unionfs import LayerStack, MountOptions, UnionFS
options = MountOptions(layer_index=sys.argv[2] or None, userxattr=True)
with LayerStack([sys.argv[1]], options=options) as stack:
    status = UnionFS(stack).lstat("theirs")
    print([layer.known is not None for layer in stack.lower], status.st_uid, status.st_gid)
"""


@machine_only("it needs another user namespace beside the machine's")
def test_an_index_is_of_one_user_namespace(folder: Path) -> None:
    """In which the same files have other owners."""

    def owners(indexes: str, *within: str) -> str:
        command = [*within, sys.executable, "-c", _OWNERS, f"{folder}/layer", indexes]
        return subprocess.check_output(command, text=True)

    build(f"{folder}/layer", {"theirs": file(uid=7, gid=8)})
    inside = ("unshare", "--user", "--map-root-user")
    indexes = f"{folder}/indexes"
    assert owners(indexes) == "[True] 7 8\n"
    assert owners("", *inside) == "[False] 65534 65534\n"
    assert owners(indexes, *inside) == "[True] 65534 65534\n"
    assert owners(indexes) == "[True] 7 8\n"


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header-alone": lambda data: data[:16],
    "truncated": lambda data: data[:-100],
    "longer": lambda data: data + b"\0",
    "another-file": lambda data: b"#!/bin/sh\n" * 100,
    "version": lambda data: _flipped(data, 8),
    "checksum": lambda data: _flipped(data, 12),
    "counts": lambda data: _flipped(data, 66),
    "directories": lambda data: _flipped(data, 100),
    "strings": lambda data: _flipped(data, len(data) - 5),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_built_anew(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = _seen(folder, indexed=False)
    _seen(folder)
    indexes = [*(folder / "indexes").iterdir()]
    whole = {index: index.read_bytes() for index in indexes}
    for index, data in whole.items():
        index.write_bytes(damage(data))
    assert _seen(folder) == expected
    for index, data in whole.items():
        assert len(index.read_bytes()) == len(data)


def test_an_index_that_others_may_write_is_not_believed(folder: Path) -> None:
    expected = _seen(folder)
    for index in (folder / "indexes").iterdir():
        index.chmod(0o666)
    assert _seen(folder) == expected
    for index in (folder / "indexes").iterdir():
        assert stat.S_IMODE(index.stat().st_mode) == 0o600
        os.chown(index, 65534, -1)
    assert _seen(folder) == expected
    assert {index.stat().st_uid for index in (folder / "indexes").iterdir()} == {0}


def test_no_index_is_no_failure(folder: Path) -> None:
    """As where its folder cannot be made, or a layer's redirect cannot be read."""
    expected = _seen(folder, indexed=False)
    (folder / "indexes").write_text("no folder")
    with _stack(folder) as stack:
        assert snapshot(UnionFS(stack)) == expected[0]
        assert [layer.known for layer in stack.lower] == [None, None]


def test_a_layer_with_a_mount_in_it_has_no_index(folder: Path) -> None:
    inside = folder / "base/etc"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], check=True)
    try:
        fd = os.open(folder / "base", os.O_PATH)
        try:
            with pytest.raises(OSError, match="mounts") as caught:
                layerindex.build(f"{folder}/indexes", fd, MARKS)
            assert caught.value.errno == errno.EXDEV
        finally:
            os.close(fd)
    finally:
        subprocess.run(["umount", "-l", inside], check=True)
    assert not (folder / "indexes").exists()


def test_processes_may_build_an_index_at_once(folder: Path) -> None:
    program = (
        "import os, sys\n"
        "from unionfs import layerindex\n"
        "fd = os.open(sys.argv[1], os.O_PATH)\n"
        "for _ in range(30):\n"
        f"    layerindex.build(sys.argv[2], fd, {MARKS!r})\n"
        f"    index = layerindex.use(sys.argv[2], fd, {MARKS!r})\n"
        "    assert index.status('etc/conf').st_size == 4\n"
    )
    command = [sys.executable, "-c", program, f"{folder}/base", f"{folder}/indexes"]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert len(os.listdir(folder / "indexes")) == 1
    assert _seen(folder) == _seen(folder, indexed=False)


@pytest.mark.parametrize("pure", ["", "1"], ids=["fast", "pure"])
def test_a_mount_shows_the_same_with_indexes(
    folder: Path, pure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIONMOUNT_PURE", pure)
    target = folder / "union"
    target.mkdir()
    seen = []
    for indexed in (False, True, True):
        with _stack(folder, indexed=indexed) as stack, mount(stack, target, "fuse"):
            shown = snapshot(Folder(str(target)))
            (target / "etc/dir/deep/file").write_text("written")
            (target / "etc/conf").unlink()
            assert not (target / "etc/gone").exists()
            seen.append((shown, snapshot(Folder(str(target)))))
        for name in ("upper", "work"):
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
    assert seen[0] == seen[1] == seen[2]
    assert len(os.listdir(folder / "indexes")) == 2
