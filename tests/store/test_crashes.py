"""A process that is killed, at any step, leaves a valid store; and what it began can be done again.

The steps are those that the store's sources name by `faults.step`, so none is forgotten.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import unionfs.store
from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import Store

SOURCES = Path(unionfs.store.__file__).parent
STEPS = sorted(
    step
    for source in SOURCES.glob("*.py")
    for step in re.findall(r'faults\.step\("([\w-]+)"\)', source.read_text())
)
# From an empty store to a container over an image, to a committed one, and to an empty store.
STORY = """
import sys
from unionfs.store import Store
from unionfs.store.digest import chain_id

with Store(sys.argv[1]) as store:
    layers = [(open(path, "rb").read(), diff_id)
              for path, diff_id in zip(sys.argv[2::2], sys.argv[3::2])]
    with store.leases.hold():
        chain = []
        for data, diff_id in layers:
            chain.append((store.blobs.add(data).digest, diff_id))
        manifest = store.blobs.add(b"manifest")
        store.blobs.refer(manifest.digest, [blob for blob, _ in chain])
        top = store.layers.unpack(chain, image=manifest.digest)
        store.names.set("image", manifest.digest, "type", manifest.size)
    for name in [info.name for info in store.snapshots.walk("name==container", "name==mine")]:
        store.snapshots.remove(name)
    store.snapshots.prepare("container", top)
    store.snapshots.commit("mine", "container")
    store.snapshots.remove("mine")
    store.names.remove("image")
    store.gc()
"""


@pytest.mark.parametrize("step", STEPS)
def test_killed_at(step: str, tmp_path: Path, make_layer: MakeLayer) -> None:
    arguments: list[str] = [str(tmp_path / "store")]
    for name in ("one", "two"):
        blob, diff_id = make_layer({name: tree.file(name.encode() * 1000)})
        (tmp_path / name).write_bytes(blob)
        arguments += [str(tmp_path / name), diff_id]
    command = [sys.executable, "-c", STORY, *arguments]
    killed = subprocess.run(command, env=os.environ | {"UNIONMOUNT_FAULT": step}, check=False)
    assert killed.returncode == -signal.SIGKILL

    with Store(tmp_path / "store") as store:
        check(store)
        store.gc()
        check(store)
        assert tidy(store)
    subprocess.run(command, check=True)
    with Store(tmp_path / "store") as store:
        store.gc()
        assert [*store.blobs] == [*store.snapshots.walk()] == []
        assert tidy(store)


def check(store: Store) -> None:
    """All that the catalogue names is there, and is what it should be."""
    assert [*store.verify()] == []
    for name in store.names.list():
        assert name.digest in store.blobs
    for info in store.snapshots.walk():
        assert store.snapshots.directories(info.name).lower


def tidy(store: Store) -> bool:
    """Nothing lies there that the catalogue does not name."""
    blobs = [*store.blobs]
    directories = [info for info in store.snapshots.walk() if info.kind != "view"]
    found = {
        name: [*Path(store.root).glob(f"{name}/*")]
        for name in ("blobs/sha256", "snapshots", "ingest", "trash")
    }
    assert len(found["blobs/sha256"]) == len(blobs)
    assert len(found["snapshots"]) == len(directories)
    return not found["ingest"] and not found["trash"]
