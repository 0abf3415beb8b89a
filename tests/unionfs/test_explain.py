"""Every layer's part in what a path shows, for each way in which a layer can hide something."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from tests.privilege import NO_INDEX, NO_REDIRECTS, machine_only
from tests.tree import (
    MARKS,
    Tree,
    build,
    directory,
    file,
    hard_link,
    opaque,
    redirect,
    symlink,
    whiteout,
)
from unionfs import LayerStack, UnionFS, explain
from unionfs.options import MountOptions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes whiteouts")

DIR, FILE = stat.S_IFDIR, stat.S_IFREG


def told(folder: Path, path: str, *layers: Tree) -> tuple[int | None, list[str]]:
    """What explain says to a path of these layers, top first: its type, and a line a layer."""
    place = Path(tempfile.mkdtemp(dir=folder))
    roots = [place / f"layer{number}" for number in range(len(layers))]
    for root, tree in zip(roots, layers, strict=True):
        build(str(root), tree)
    with LayerStack(roots) as stack:
        explanation = explain(stack, path)
        assert (explanation.answer is not None) == UnionFS(stack).exists(path)
    lines = []
    for view in explanation.layers:
        line = f"{view.place.path}: {view.verdict}"
        for word, place in (("by", view.by), ("redirect", view.redirect)):
            if place:
                line += f" {word} {os.path.basename(place.layer.path)}/{place.path}"
        lines.append(line)
    return explanation.kind, lines


def test_the_topmost_file_covers(tmp_path: Path) -> None:
    assert told(tmp_path, "etc/motd", {}, {"etc/motd": file()}, {"etc/motd": file()}) == (
        FILE,
        ["etc/motd: absent", "etc/motd: answers", "etc/motd: covered by layer1/etc/motd"],
    )


def test_directories_merge_down_to_a_file(tmp_path: Path) -> None:
    tree = {"a/b": directory()}
    assert told(tmp_path, "/a/b", tree, tree, {"a/b": file()}, tree) == (
        DIR,
        [
            "a/b: answers",
            "a/b: merged",
            "a/b: covered by layer0/a/b",
            "a/b: covered by layer2/a/b",
        ],
    )


def test_a_whiteout(tmp_path: Path) -> None:
    assert told(tmp_path, "a/b", {"a/b": whiteout()}, {"a/b": file()}, {}) == (
        None,
        ["a/b: whiteout", "a/b: whited out by layer0/a/b", "a/b: absent"],
    )


def test_a_whiteout_of_a_directory_hides_what_is_in_it(tmp_path: Path) -> None:
    assert told(tmp_path, "a/b", {"a": whiteout()}, {"a/b": file()}) == (
        None,
        ["a/b: absent", "a/b: whited out by layer0/a"],
    )


@pytest.mark.parametrize("path", ["a", "a/b"])
def test_an_aufs_whiteout_in_an_image_layer(tmp_path: Path, path: str) -> None:
    kind, lines = told(tmp_path, path, {".wh.a": file()}, {"a/b": file()})
    assert kind is None
    assert lines[1] == f"{path}: whited out by layer0/.wh.a"


@pytest.mark.parametrize(
    "marked", [{"a": opaque()}, {"a": directory(), "a/.wh..wh..opq": file()}], ids=["xattr", "aufs"]
)
def test_an_opaque_directory(tmp_path: Path, marked: Tree) -> None:
    kind, lines = told(tmp_path, "a/b", marked, {"a/b": file()})
    assert kind is None
    assert lines == ["a/b: absent", "a/b: opaque by layer0/a"]


@machine_only(NO_REDIRECTS)
def test_a_redirect_leads_to_another_name(tmp_path: Path) -> None:
    top = {"new": redirect("old"), "old": whiteout()}
    assert told(tmp_path, "new/b", top, {"old/b": file()}) == (
        FILE,
        ["new/b: absent", "old/b: answers redirect layer0/new"],
    )


@machine_only(NO_REDIRECTS)
def test_a_redirect_passes_over_what_has_the_name(tmp_path: Path) -> None:
    below = {"old/b": file(), "new/c": file()}
    kind, lines = told(tmp_path, "new", {"new": redirect("/old")}, below)
    assert kind == DIR
    assert lines == ["new: answers", "old: merged redirect layer0/new"]
    kind, lines = told(tmp_path, "new", {"new": redirect("/none")}, below)
    assert lines == ["new: answers", "new: redirected by layer0/new"]


def test_a_symlink_among_the_parents_is_followed_and_the_last_is_not(tmp_path: Path) -> None:
    top, below = {"link": symlink("/real")}, {"real/file": file()}
    assert told(tmp_path, "link/file", top, below)[1] == ["real/file: absent", "real/file: answers"]
    assert told(tmp_path, "link", top, below)[0] == stat.S_IFLNK


def test_no_symlink_of_a_layer_leads_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "file").parent.mkdir()
    (outside / "file").touch()
    kind, lines = told(tmp_path, "a/file", {"a": directory()}, {"a": symlink(str(outside))})
    assert (kind, lines) == (None, ["a/file: absent", "a/file: absent"])


def test_the_root_and_marks(tmp_path: Path) -> None:
    build(str(tmp_path / "root"), {".": opaque()})
    assert os.getxattr(tmp_path / "root", MARKS + "opaque") == b"y"
    assert told(tmp_path, "/", {}, {})[1] == [": answers", ": merged"]
    kind, lines = told(tmp_path, ".wh.x", {".wh.x": file()}, {"x": file()})
    assert (kind, lines) == (None, [".wh.x: whiteout", ".wh.x: absent"])


@machine_only(NO_INDEX)
def test_a_file_of_the_index_answers_under_all_its_names(tmp_path: Path) -> None:
    for name in ("base", "upper", "work"):
        (tmp_path / name).mkdir()
    build(str(tmp_path / "base"), {"a": file(b"old"), "b": hard_link("a")})
    options = MountOptions(index=True)
    with LayerStack(
        [tmp_path / "base"], tmp_path / "upper", tmp_path / "work", options=options
    ) as stack:
        UnionFS(stack).write_text("a", "new")
        written, other = explain(stack, "a").answer, explain(stack, "b").answer
        assert written and os.path.join(written.layer.path, written.place.path) == str(
            tmp_path / "upper/a"
        )
        assert other and other.layer.path == str(tmp_path / "work/index")
        assert [view.verdict for view in explain(stack, "b").layers] == ["answers", "covered"]
