"""The library's view of a stack, expected from kernel overlayfs on the same layers."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.privilege import NO_REDIRECTS, machine_only
from tests.tree import MARKS
from unionfs import LayerStack, StackError, UnionFS, markers

Tree = dict[str, tuple[int, int, bytes]]


def _describe(path: str, status: os.stat_result) -> tuple[int, int, bytes]:
    if stat.S_ISLNK(status.st_mode):
        return status.st_mode, status.st_uid, os.fsencode(os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        return status.st_mode, status.st_uid, Path(path).read_bytes()
    return status.st_mode, status.st_uid, b""


def _native(top: Path) -> Tree:
    return {
        os.path.relpath(os.path.join(at, name), top): _describe(
            os.path.join(at, name), os.lstat(os.path.join(at, name))
        )
        for at, folders, files in os.walk(top)
        for name in folders + files
    }


def _library(stack: LayerStack) -> Tree:
    union = UnionFS(stack)
    tree: Tree = {}
    for at, folders, files in union.walk("/"):
        for path in (os.path.join(at, name) for name in folders + files):
            status = union.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(union.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                content = union.read_bytes(path)
            tree[path.lstrip("/")] = (status.st_mode, status.st_uid, content)
    return tree


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, top first, with nothing in them."""
    made = [tmp_path / name for name in ("top", "middle", "base")]
    for layer in made:
        layer.mkdir()
    return made


@pytest.fixture
def native(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a stack by kernel overlayfs; unmounted whatever the test does."""
    with ExitStack() as cleanup:

        def mount(lower: list[Path], upper: Path | None = None, work: Path | None = None) -> Path:
            target = tmp_path / f"merged{len(list(tmp_path.glob('merged*')))}"
            target.mkdir()
            options = "" if markers.trusted_permitted() else "userxattr,"
            options += "lowerdir=" + ":".join(map(str, lower))
            if upper:
                options += f",upperdir={upper},workdir={work},redirect_dir=on"
            subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", options, str(target)], check=True
            )
            cleanup.callback(subprocess.run, ["umount", "-l", str(target)], check=True)
            return target

        yield mount


def test_layers_merge_as_the_kernel_merges_them(
    layers: list[Path], native: Callable[..., Path]
) -> None:
    top, middle, base = layers
    for number, layer in enumerate(layers):
        (layer / "etc").mkdir(mode=0o755 - number)
        (layer / "etc" / "same").write_text(f"layer {number}")
        (layer / "etc" / f"only{number}").write_text("alone")
    (base / "gone").write_text("x")
    os.mknod(middle / "gone", stat.S_IFCHR, 0)
    (base / "hidden").mkdir()
    (base / "hidden" / "old").write_text("x")
    (middle / "hidden").mkdir()
    (middle / "hidden" / "new").write_text("y")
    os.setxattr(middle / "hidden", MARKS + "opaque", b"y")
    (base / "kind").mkdir()
    (base / "kind" / "child").write_text("x")
    (top / "kind").symlink_to("etc/same")
    (base / "mixed").mkdir()
    (base / "mixed" / "below").write_text("x")
    (middle / "mixed").write_text("a file stops the merge")
    (top / "mixed").mkdir()

    expected = _native(native(layers))

    assert "etc/only2" in expected and "gone" not in expected
    assert _library(LayerStack(layers)) == expected


@machine_only(NO_REDIRECTS)
def test_an_upper_that_the_kernel_wrote_reads_the_same(
    tmp_path: Path, layers: list[Path], native: Callable[..., Path]
) -> None:
    top, _, base = layers
    (base / "a" / "b").mkdir(parents=True)
    (base / "a" / "b" / "file").write_text("deep")
    (base / "a" / "doomed").write_text("x")
    (top / "a").mkdir()
    (top / "a" / "also").write_text("y")
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    merged = native(layers, upper, work)
    (merged / "a" / "doomed").unlink()
    (merged / "a" / "b" / "file").write_text("changed")
    (merged / "new").mkdir()
    (merged / "a").rename(merged / "new" / "moved")
    (merged / "new" / "moved" / "b").rename(merged / "new" / "moved" / "c")
    (merged / "a").mkdir()

    expected = _native(merged)

    assert expected["new/moved/c/file"][2] == b"changed"
    assert _library(LayerStack(layers, upper, work)) == expected


def test_aufs_whiteouts_of_image_tools_hide_names_too(layers: list[Path]) -> None:
    top, _, base = layers
    (base / "gone").write_text("x")
    (base / "kept").write_text("x")
    (top / ".wh.gone").touch()
    assert list(_library(LayerStack(layers))) == ["kept"]


def test_a_missing_name_and_a_file_as_folder_have_the_kernels_errno(layers: list[Path]) -> None:
    (layers[2] / "file").touch()
    with LayerStack(layers) as stack:
        with pytest.raises(FileNotFoundError):
            UnionFS(stack).stat("none")
        with pytest.raises(NotADirectoryError):
            UnionFS(stack).stat("file/below")


def test_an_unusable_stack_is_refused_with_the_path_at_fault(
    tmp_path: Path, layers: list[Path]
) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    plain = tmp_path / "plain"
    plain.touch()
    cases = [
        (([tmp_path / "none"],), "none"),
        (([plain],), "plain"),
        ((layers, layers[0], upper), "top"),
        ((layers, upper, upper), "upper"),
    ]
    for arguments, culprit in cases:
        with pytest.raises(StackError, match=culprit):
            LayerStack(*arguments)
    with pytest.raises(StackError, match="go together"):
        LayerStack(layers, upper)
