"""What takes space, alone and together with others."""

import os

from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import Store

MIB = 1 << 20


def test_shared_and_own_bytes(store: Store, make_layer: MakeLayer) -> None:
    """Two images over one base, and a container over one of them."""
    base, *apps = (
        make_layer({name: tree.file(os.urandom(count * MIB))})
        for name, count in (("base", 4), ("one", 1), ("two", 2))
    )
    chains = []
    for name, app in zip(("one", "two"), apps, strict=True):
        with store.leases.hold():
            chain = [(store.blobs.add(blob).digest, diff_id) for blob, diff_id in (base, app)]
            manifest = store.blobs.add(name.encode())
            store.blobs.refer(manifest.digest, [blob for blob, _ in chain])
            chains.append(store.layers.unpack(chain, image=manifest.digest))
            store.names.set(name, manifest.digest, "type", manifest.size)
    store.snapshots.prepare("container", chains[0])
    upper = store.snapshots.directories("container").upper
    with open(f"{upper}/data", "wb") as file:
        file.write(os.urandom(3 * MIB))

    used = store.usage()
    # an image: its layers as they were sent, and unpacked
    assert {share.name: (share.own // MIB, share.shared // MIB) for share in used.images} == {
        "one": (1, 9),  # the container needs its layer too
        "two": (4, 8),
    }
    (container,) = used.containers
    assert (container.name, container.own // MIB, container.shared // MIB) == ("container", 3, 5)
    layers = {share.name: share for share in used.layers}
    assert layers[base[1]].users == 3
    assert [layers[chain].users for chain in chains] == [2, 1]
    assert layers[chains[1]].own // MIB == 2
    assert used.blobs // MIB == 7
    assert used.total // MIB == 17
