"""A union as a layer of another, in every order of doors.

Marks that the inner union carries for the outer one are kept escaped on disk, so each reads its own
(overlayfs.rst, "Nesting overlayfs mounts").
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, Folder, Layers
from tests.conformance.play import Player, Step, do
from tests.privilege import NO_REDIRECTS, machine_only
from tests.tree import MARKS, build, differences, directory, file, snapshot, symlink, unrepaired

_INNER = {
    "below": file(b"of the inner's base"),
    "changed": file(b"before"),
    "gone": file(b"hidden by the inner"),
    "d/e/f": file(b"deep", 0o4755, 3, 4, {"user.x": b"y"}),
    "link": symlink("d/e/f"),
    # as a layer that was itself written by a union may come
    "kept/opaque": directory(xattrs={MARKS + "overlay.opaque": b"y"}),
    "kept/opaque/inner": file(b"1"),
}
_WRITE_INNER: tuple[Step, ...] = (
    do("write", "changed", b"by the inner"),
    do("unlink", "gone"),
    do("rename", "d", "moved"),
)
_OUTER: tuple[Step, ...] = (
    do("tree", "."),
    do("write", "changed", b"by the outer"),
    do("chmod", "moved/e/f", 0o600),
    do("rename", "moved", "again"),
    do("unlink", "below"),
    do("listxattr", "again/e/f"),
    do("scandir", "kept/opaque"),
    do("mkdir", "new"),
    do("link", "changed", "new/linked"),
    do("tree", "."),
)


@pytest.fixture
def ground() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="conformance-nest-"))
    yield folder
    shutil.rmtree(folder)


def _play(base: Path, inner: str, outer: str) -> dict[str, object]:
    """The outer door's outcomes, its upper, and what the inner union shows in the end."""
    below, above = Layers(base / "inner"), Layers(base / "outer")
    below.make()
    above.make()
    build(below.lower[0], _INNER)
    with DOORS[inner](below) as door:
        for step in _WRITE_INNER:
            Player(door, ".").outcome(step)
        os.rmdir(above.lower[0])
        os.symlink(below.target, above.lower[0])
        with DOORS[outer](above) as nested:
            player = Player(nested, ".")
            seen = {f"{number} {step}": player.outcome(step) for number, step in enumerate(_OUTER)}
        # An overlay gives no handles by default, so only a union that is still open knows origins.
        upper, left = unrepaired(snapshot(Folder(above.upper))), snapshot(door)
    seen |= {f"upper {path}": what for path, what in upper.items()}
    return seen | {f"inner {path}": what for path, what in left.items()}


@machine_only(NO_REDIRECTS)
@pytest.mark.parametrize("outer", ["kernel", "library", "fuse", "fuse-pure"])
@pytest.mark.parametrize("inner", ["kernel", "fuse", "fuse-pure"])
def test_a_union_over_a_union(ground: Path, inner: str, outer: str) -> None:
    expected = _play(ground / "reference", "kernel", "kernel")
    seen = _play(ground / "doors", inner, outer)
    assert not differences(expected, seen)
