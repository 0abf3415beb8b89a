"""What a union remembers is never what was: whoever changes the layers, when that is allowed."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import MARKS
from unionfs import LayerStack, UnionFS, lower, nodes

Seen = dict[str, tuple[int, int, int, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("top", "base", "upper", "work"):
        (tmp_path / name).mkdir()
    for number, layer in enumerate(("top", "base")):
        for inside in ("a/b/c", "a/d", "e"):
            directory = tmp_path / layer / inside
            directory.mkdir(parents=True)
            (directory / "same").write_text(layer)
            (directory / f"only{number}").write_text(layer)
    return tmp_path


def _stack(folder: Path) -> LayerStack:
    return LayerStack([folder / "top", folder / "base"], folder / "upper", folder / "work")


def _see(union: UnionFS) -> Seen:
    """Everything, each name looked up by its whole path, and asked for twice."""
    seen: Seen = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        for entry in union.scandir(folder or "/"):
            path = f"{folder}/{entry.name}"
            status = union.lstat(path)
            assert union.lstat(path) == status
            is_dir = entry.is_dir(follow_symlinks=False)
            data = b"" if is_dir else union.read_bytes(path)
            seen[path] = (status.st_mode, status.st_ino, status.st_nlink, data)
            with pytest.raises(FileNotFoundError):
                union.stat(f"{folder}/absent")
            if is_dir:
                pending.append(path)
    return seen


CHANGES: list[Callable[[UnionFS], object]] = [
    lambda union: union.write_text("a/b/c/same", "written"),
    lambda union: union.unlink("a/b/c/only0"),
    lambda union: union.rename("a/b/c/only1", "a/b/c/only0"),
    lambda union: union.mkdir("a/b/c/absent2"),
    lambda union: union.rename("a/b", "f"),
    lambda union: union.mkdir("a/b"),
    lambda union: union.write_text("a/b/same", "new"),
    lambda union: union.rename("f/c", "a/b/c"),
    lambda union: union.rmtree("a/d"),
    lambda union: union.makedirs("a/d/only0"),
    lambda union: union.link("a/b/c/same", "e/link"),
    lambda union: union.unlink("a/b/c/same"),
    lambda union: union.rename("e/link", "e/same"),
    lambda union: union.rename("e", "a/b/c", 2),
    lambda union: union.chmod("a/b/same", 0o600),
    lambda union: union.rmtree("a"),
    lambda union: union.rmtree("f"),
]


def test_what_another_union_writes_is_seen_at_once(folder: Path) -> None:
    with _stack(folder) as ours, _stack(folder) as theirs:
        reader, writer = UnionFS(ours), UnionFS(theirs)
        for change in CHANGES:
            before = _see(reader)
            change(writer)
            after = _see(reader)
            assert after != before
            with _stack(folder) as fresh:
                assert after == _see(UnionFS(fresh))


def test_two_views_of_one_stack_see_each_other(folder: Path) -> None:
    with _stack(folder) as stack:
        one, other = UnionFS(stack), UnionFS(stack)
        for change in CHANGES:
            _see(one)
            _see(other)
            change(one)
            seen = _see(one)
            assert seen == _see(other) == _see(UnionFS(stack))
            one, other = other, one


def test_what_was_changed_while_the_claim_was_given_up_is_seen(folder: Path) -> None:
    with _stack(folder) as ours, _stack(folder) as theirs:
        first, second = UnionFS(ours), UnionFS(theirs)
        for change in CHANGES:
            change(first)
            seen = _see(first)
            ours.release()
            assert _see(second) == seen
            second.write_text("e/note", "from the other") if second.exists("e") else None
            seen = _see(second)
            theirs.release()
            assert _see(first) == seen


def test_marks_set_on_a_directory_of_upper_are_seen(folder: Path) -> None:
    (folder / "upper/a/b").mkdir(parents=True)
    with _stack(folder) as stack:
        union = UnionFS(stack)
        assert union.exists("a/b/c/same")
        assert _see(union)
        subprocess.run(
            ["setfattr", "-n", MARKS + "opaque", "-v", "y", folder / "upper/a"], check=True
        )
        assert not union.exists("a/b/c/same")
        assert union.listdir("a") == ["b"]


def test_a_lower_layer_edited_between_two_stacks_is_read_anew(folder: Path) -> None:
    with _stack(folder) as stack:
        _see(UnionFS(stack))
    (folder / "base/a/b/c/only1").write_text("edited")
    (folder / "top/a/b/c/same").unlink()
    (folder / "base/a/absent").mkdir()
    with _stack(folder) as stack:
        union = UnionFS(stack)
        assert union.read_text("a/b/c/only1") == "edited"
        assert union.read_text("a/b/c/same") == "base"
        assert union.stat("a/absent").st_nlink == 2


def test_many_nodes_are_forgotten_and_found_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _stack(folder) as stack:
        expected = _see(UnionFS(stack))
    monkeypatch.setattr(nodes, "_NODES_MAX", 3)
    monkeypatch.setattr(lower, "_NAMES_MAX", 3)
    with _stack(folder) as stack:
        union = UnionFS(stack)
        assert _see(union) == expected
        union.rename("a/b/c/only0", "e/only0")
        union.rename("a/b/c/only1", "e/only1")
        assert sorted(union.listdir("a/b/c")) == ["same"]
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            union.rename("a", "a/b/c/a")


def test_a_directory_that_may_not_be_listed_is_searched(folder: Path) -> None:
    """As an ordinary user, for whom a directory of mode 0711 has names but no listing."""
    (folder / "base/a/d").chmod(0o711)
    with LayerStack([folder / "top", folder / "base"]) as stack:
        union = UnionFS(stack)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                union.listdir("a/d")
            for _ in range(3):
                assert union.read_text("a/d/only0") == "top"
                assert union.read_text("a/d/only1") == "base"
                assert not union.exists("a/d/absent")
        finally:
            os.seteuid(0)
