"""A union that is used through one door and then through another loses nothing.

Expected is what the kernel makes of it alone, mounted twice.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, RENAME_EXCHANGE, Layers
from tests.conformance.play import Player, Step, do
from tests.disk import make_image, mounted
from tests.privilege import NO_DISKS, NO_INDEX, machine_only
from tests.tree import Tree, build, differences, file, hard_link
from unionfs import LayerStack, fsck

_LINKED: Tree = {
    "a": file(b"1", 0o640, 1, 2),
    "b": hard_link("a"),
    "d/c": hard_link("a"),
    "d/e": hard_link("a"),
    "other": file(b"o"),
}
_NAMES = ("a", "b", "d/c", "d/e", "z", "other", "y")
_LOOKS = tuple(
    do(what, name) for name in _NAMES for what in ("lstat", "read") if what == "read" or "/" in name
)
_FIRST: tuple[Step, ...] = (
    do("write", "b", b"first"),
    do("link", "d/c", "z"),
    do("unlink", "a"),
    do("rename", "other", "d/e", RENAME_EXCHANGE),
)
_SECOND: tuple[Step, ...] = (
    *_LOOKS,
    do("write", "d/c", b"second"),
    *_LOOKS,
    do("unlink", "z"),
    do("rename", "b", "y"),
    *_LOOKS,
    do("same", "y", "other"),
    do("unlink", "y"),
    do("unlink", "other"),
    do("unlink", "d/c"),
    *_LOOKS,
)


@pytest.fixture
def ground() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="conformance-turn-"))
    yield folder
    shutil.rmtree(folder)


def _play(
    base: Path, first: str, second: str, place: Path | None = None
) -> tuple[dict[str, object], dict[str, object]]:
    """What came of the second door's steps, and what the index holds at last.

    place: where the layers lie, if not in base.
    """
    layers = Layers(base, more="index=on")
    layers.make(place, place)
    build(layers.lower[0], _LINKED)
    with DOORS[first](layers) as door:
        player = Player(door, ".")
        for step in _FIRST:
            assert player.outcome(step) in (None, 5), step
    with LayerStack(layers.lower, layers.upper, layers.work) as stack:
        assert [*fsck.check(stack)] == []
    with DOORS[second](layers) as door:
        player = Player(door, ".")
        seen = {f"{n} {step}": player.outcome(step) for n, step in enumerate(_SECOND)}
    return seen, {**layers.indexed()}


@machine_only(NO_INDEX)
@pytest.mark.parametrize("second", ["kernel", "library", "fuse"])
@pytest.mark.parametrize("first", ["kernel", "library", "fuse"])
def test_linked_files_stay_linked(ground: Path, first: str, second: str) -> None:
    expected, kept = _play(ground / "reference", "kernel", "kernel")
    seen, index = _play(ground / "doors", first, second)
    assert not differences(expected, seen)
    assert index == kept == {}


@machine_only(NO_DISKS)
@pytest.mark.parametrize(("first", "second"), [("kernel", "library"), ("library", "kernel")])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_linked_files_stay_linked_on_any_filesystem(
    tmp_path: Path, kind: str, first: str, second: str
) -> None:
    """Origins and the index name the lower file as the kernel does, its filesystem included."""
    image = tmp_path / "image"
    make_image(image, kind)
    expected, _ = _play(tmp_path / "reference", "kernel", "kernel")
    with mounted(image, tmp_path / "mounted") as place:
        seen, index = _play(tmp_path / "doors", first, second, place)
    assert not differences(expected, seen)
    assert index == {}
