"""A disk that is full: an error that says so, and a store that is as it was."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tree
from tests.store.conftest import MakeLayer
from unionfs import mount_api
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB."""
    target = tmp_path / "small"
    target.mkdir()
    options = f"size={8 * MIB}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", target], check=True)
    yield target
    mount_api.umount(str(target), lazy=True)


def test_content_that_does_not_fit(small: Path, make_layer: MakeLayer) -> None:
    big, big_diff = make_layer({"big": tree.file(b"x" * 16 * MIB)})
    layer, diff_id = make_layer({"file": tree.file(os.urandom(MIB))})
    with Store(small / "store") as store:
        with pytest.raises(OSError) as raised:
            store.blobs.add([os.urandom(MIB)] * 16)
        assert raised.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as raised:
            store.layers.unpack([(store.blobs.add(big).digest, big_diff)])
        assert raised.value.errno == errno.ENOSPC
        assert os.listdir(f"{store.root}/ingest") == []
        chain = store.layers.unpack([(store.blobs.add(layer).digest, diff_id)])

        filler = small / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError) as raised:
            for count in range(1000):
                store.snapshots.prepare(f"container-{count}", chain)
        assert raised.value.errno in (errno.ENOSPC, errno.EIO)
        filler.unlink()

        store.snapshots.prepare("after", chain)
        store.cleanup()
        assert [*store.verify()] == []
        assert os.listdir(f"{store.root}/ingest") == []
