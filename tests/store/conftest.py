"""A store in a temporary folder, images' layers to put into it, and mounts that end with a test."""

import io
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import tree
from unionfs import mount_api
from unionfs.layers import write_layer
from unionfs.stack import LayerStack
from unionfs.store import MountCall, Store

Layer = tuple[bytes, str]
"""A layer's archive, and its diff ID."""
MakeLayer = Callable[..., Layer]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def make_layer(tmp_path: Path) -> MakeLayer:
    """A layer's archive of a tree of files, as changes over other trees."""
    made = itertools.count()

    def make(*trees: tree.Tree) -> Layer:
        directories = [str(tmp_path / f"layer-{next(made)}") for _ in trees]
        for directory, files in zip(directories, trees, strict=True):
            tree.build(directory, files)
        out = io.BytesIO()
        with LayerStack(directories) as stack:
            written = write_layer(stack, out)
        return out.getvalue(), written.diff_id

    return make


@contextmanager
def mounted(calls: list[MountCall], target: Path) -> Iterator[Path]:
    """A snapshot mounted as containerd would: by mount(2) alone."""
    target.mkdir(exist_ok=True)
    with ExitStack() as undone:
        for call in calls:
            options = ",".join(call.options)
            status = os.spawnlp(
                *(os.P_WAIT, "mount", "mount", "-t", call.type, "-o", options),
                *(call.source, str(target)),
            )
            assert status == 0
            undone.callback(mount_api.umount, str(target), lazy=False)
        yield target
