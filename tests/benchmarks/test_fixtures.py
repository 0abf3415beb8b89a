"""Fixtures: one tree, however many layers it is spread over."""

from pathlib import Path

import pytest

from benchmarks import fixtures
from benchmarks.scale import QUICK
from unionfs import LayerStack, UnionFS

LAYERS = 7


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["tree", "directory", "repository"])
def test_the_union_of_the_layers_is_the_fixture(name: str, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    layers = [tmp_path / str(number) for number in range(LAYERS)]
    fixtures.make(name, QUICK, merged)
    fixtures.spread(merged, layers)

    with LayerStack(layers) as stack:
        union = UnionFS(stack)
        paths = [f"{top}/{name}" for top, _, files in union.walk("/") for name in files]
        seen = {path.lstrip("/"): union.read_bytes(path) for path in paths}
    assert seen == _contents(merged)


def test_every_layer_has_a_part_and_some_files_hide_older_ones(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    layers = [tmp_path / str(number) for number in range(LAYERS)]
    fixtures.make("tree", QUICK, merged)
    fixtures.spread(merged, layers)

    counts = [len(_contents(layer)) for layer in layers]
    assert min(counts) > 0
    assert counts[-1] >= QUICK.files / 3
    assert QUICK.files < sum(counts) < QUICK.files * 1.1


def test_a_fixture_is_the_same_in_every_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fixtures.make("tree", QUICK, tmp_path / name)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")
    assert set(_contents(tmp_path / "one")) == set(fixtures.tree_paths(QUICK))
