"""Images of a few files, in a store; the fixtures of the store's tests are here too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.conftest import MakeLayer, make_layer, store
from tests.tree import Tree
from unionfs.images import library
from unionfs.images.documents import Config, Descriptor, History, RootFs, Settings
from unionfs.images.library import Named
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.layers.streams import MEDIA_TYPES
from unionfs.store import Store

__all__ = ["make_layer", "store"]

MakeImage = Callable[..., Named]


@pytest.fixture
def make_image(make_layer: MakeLayer) -> MakeImage:
    """An image in a store: its name, and a tree a layer, the lowest first."""

    def make(store: Store, name: str, *trees: Tree, platform: Platform | None = None) -> Named:
        machine = platform or Platform.of_this_machine()
        config = Config(
            architecture=machine.architecture,
            os=machine.os,
            variant=machine.variant,
            settings=Settings(env=("PATH=/bin",), cmd=("sh",)),
            rootfs=RootFs(()),
        )
        layers = []
        for number in range(len(trees)):
            data, diff_id = make_layer(*reversed(trees[: number + 1]))
            blob = store.blobs.add(data)
            layers.append(Descriptor(MEDIA_TYPES["gzip"], blob.digest, blob.size))
            step = History(created_by=f"step {number}", created="2020-01-01T00:00:00Z")
            config = config.after(step, diff_id)
        with store.leases.hold():
            image = library.add(store, config, layers)
            library.tag(store, image.target, Reference.parse(name))
        return library.find(store, name)

    return make


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another store."""
    return Store(tmp_path / "other")
