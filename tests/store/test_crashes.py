"""A process that is killed, or told of an error, at any system call that changes a file.

It goes from an empty store to a container over an image, to a committed one, and to an empty store;
one of the layers is shared by two chains.
Wherever that ends, the store is valid, nothing is left but what a collection takes, and what was
begun can be done again. The catalogue's own writes are among the steps. Cost: 0.3 s a step.
"""

import errno
import os
import shutil
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from tests import faults, tree
from tests.store.conftest import Layer, MakeLayer
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes whiteouts")

# A few steps of each kind are always taken; the others are left to `make crashes`.
SOME = pytest.param(15, id="some")
ALL = pytest.param(1, id="all", marks=pytest.mark.thorough)


def story(root: Path, layers: list[Layer]) -> None:
    """What is cut short."""
    with Store(root) as store:
        with store.leases.hold():
            chain = [(store.blobs.add(data).digest, diff_id) for data, diff_id in layers]
            manifest = store.blobs.add(b"manifest")
            store.blobs.refer(manifest.digest, [blob for blob, _ in chain])
            top = store.layers.unpack(chain, image=manifest.digest)
            store.layers.unpack(chain[1:])
            store.names.set("image", manifest.digest, "type", manifest.size)
        for info in store.snapshots.walk("name==container", "name==mine"):
            store.snapshots.remove(info.name)
        store.snapshots.prepare("container", top)
        store.snapshots.commit("mine", "container")
        store.snapshots.remove("mine")
        store.names.remove("image")
        store.gc()


@pytest.fixture
def layers(make_layer: MakeLayer) -> list[Layer]:
    base = {"one": tree.file(b"one" * 1000), "directory/two": tree.symlink("../one")}
    return [make_layer(base), make_layer({"one": tree.whiteout()}, base)]


@pytest.fixture
def steps(tmp_path: Path, layers: list[Layer]) -> list[faults.Step]:
    """All that the story does to the disk."""
    work = partial(story, tmp_path / "whole", layers)
    assert faults.run(work, *faults.watching(tmp_path / "log")) == 0
    return faults.steps_in(tmp_path / "log")


def check(root: Path, where: str) -> None:
    """The store is valid, and tidy once it has collected."""
    with Store(root) as store:
        assert [*store.verify()] == [], where
        store.gc()
        assert [*store.verify()] == [], where
        for name in store.names.list():
            assert name.digest in store.blobs, where
        snapshots = [store.snapshots.directories(info.name) for info in store.snapshots.walk()]
        wanted = {
            "blobs/sha256": len([*store.blobs]),
            "snapshots": len({one.upper or one.lower[0] for one in snapshots}),
            "ingest": 0,
            "trash": 0,
        }
    found = {name: len([*root.glob(f"{name}/*")]) for name in wanted}
    assert found == wanted, where


def check_again(root: Path, layers: list[Layer], where: str) -> None:
    """What was begun is done now, and nothing is left of it."""
    story(root, layers)
    check(root, where)
    with Store(root) as store:
        assert [*store.blobs] == [*store.snapshots.walk()] == store.leases.list() == [], where


@pytest.mark.parametrize("every", [SOME, ALL])
def test_killed(tmp_path: Path, layers: list[Layer], steps: list[faults.Step], every: int) -> None:
    root = tmp_path / "store"
    for step in steps[::every]:
        end = faults.run(partial(story, root, layers), *faults.failing(step, "signal=KILL"))
        assert end == faults.KILLED, step
        check(root, f"killed at {step}")
        check_again(root, layers, f"after {step}")
        shutil.rmtree(root)


@pytest.mark.parametrize("every", [SOME, ALL])
def test_told_of_an_error(
    tmp_path: Path, layers: list[Layer], steps: list[faults.Step], every: int
) -> None:
    """The caller is told too, unless the store can do without."""
    root = tmp_path / "store"
    for step, name in zip(steps[4::every], cycle(("EIO", "ENOSPC", "EDQUOT")), strict=False):
        end = faults.run(partial(story, root, layers), *faults.failing(step, f"error={name}"))
        assert end in (0, getattr(errno, name), errno.EIO), f"{name} at {step}"
        check(root, f"{name} at {step}")
        check_again(root, layers, f"after {step}")
        shutil.rmtree(root)
