"""Several processes that import, use and drop images, while another collects all the time."""

import os
import subprocess
import sys
from pathlib import Path

from tests import tree
from tests.store.conftest import MakeLayer
from unionfs.store import Store

ROUNDS = 15
# Each imports one of two images that share a layer, stacks a snapshot on it, and drops all.
IMPORT = """
import sys
from unionfs.store import Store

root, me, rounds, *layers = sys.argv[1:]
layers = [(open(path, "rb").read(), diff_id) for path, diff_id in zip(layers[::2], layers[1::2])]
with Store(root) as store:
    for count in range(int(rounds)):
        chosen = [layers[0], layers[1 + (count + int(me)) % 2]]
        with store.leases.hold():
            chain = [(store.blobs.add(data).digest, diff_id) for data, diff_id in chosen]
            manifest = store.blobs.add(f"manifest {me}".encode())
            store.blobs.refer(manifest.digest, [digest for digest, _ in chain])
            top = store.layers.unpack(chain, image=manifest.digest)
            store.names.set(f"image-{me}", manifest.digest, "type", manifest.size)
        store.snapshots.prepare(f"container-{me}", top)
        for digest, _ in chain:
            with store.blobs.open(digest) as file:
                file.read()
        for directory in store.layers.stack(top):
            open(f"{directory}/file", "rb").read()
        store.names.remove(f"image-{me}")
        store.snapshots.remove(f"container-{me}")
"""
COLLECT = """
import os, sys
from unionfs.store import Store

with Store(sys.argv[1]) as store:
    print("collecting", flush=True)
    while os.path.exists(sys.argv[2]):
        store.gc()
"""


def test_imports_while_another_collects(tmp_path: Path, make_layer: MakeLayer) -> None:
    layers: list[str] = []
    for name in ("base", "one", "two"):
        blob, diff_id = make_layer({"file": tree.file(os.urandom(5000)), name: tree.file()})
        (tmp_path / name).write_bytes(blob)
        layers += [str(tmp_path / name), diff_id]
    root, going = str(tmp_path / "store"), tmp_path / "going"
    going.touch()
    collector = subprocess.Popen(
        [sys.executable, "-c", COLLECT, root, str(going)], stdout=subprocess.PIPE
    )
    with collector:
        assert collector.stdout and collector.stdout.readline() == b"collecting\n"
        importers = [
            subprocess.Popen([sys.executable, "-c", IMPORT, root, str(me), str(ROUNDS), *layers])
            for me in range(3)
        ]
        ended = [importer.wait() for importer in importers]
        going.unlink()
    assert (ended, collector.returncode) == ([0, 0, 0], 0)
    with Store(root) as store:
        assert [*store.verify()] == []
        store.gc()
        assert [*store.blobs] == [*store.snapshots.walk()] == []
        assert store.leases.list() == []
        for name in ("snapshots", "ingest", "trash", "blobs/sha256"):
            assert os.listdir(f"{root}/{name}") == []
