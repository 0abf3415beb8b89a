"""An image of busybox in a store; its containers are ended and unmounted after a test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tree
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer
from unionfs.containers import Containers
from unionfs.containers.runtime import Runtime
from unionfs.store import Store

__all__ = ["make_image", "make_layer"]

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:7:8:app:/home/app:/bin/sh\n"
GROUP = b"root:x:0:\nappgroup:x:8:\nextra:x:9:app,other\n"
APPLETS = ("sh", "cat", "id", "env", "pwd", "touch", "ls", "sleep", "true", "false", "kill", "echo")


def busybox_files() -> dict[str, tree.Node]:
    """A small system: busybox and who may use it."""
    program = shutil.which("busybox")
    assert program, "not installed: busybox; run .ci/setup-clients"
    files = {
        "bin/busybox": tree.file(Path(program).read_bytes(), mode=0o755),
        "etc/passwd": tree.file(PASSWD),
        "etc/group": tree.file(GROUP),
        "tmp": tree.directory(mode=0o1777),
        "proc": tree.directory(),
        "sys": tree.directory(),
        "dev": tree.directory(),
        "home/app": tree.directory(uid=7, gid=8),
        "home/app/note": tree.file(b"a note", uid=7, gid=8),
    }
    return files | {f"bin/{name}": tree.symlink("busybox") for name in APPLETS}


@pytest.fixture
def store(tmp_path: Path, make_image: MakeImage) -> Iterator[Store]:
    """A store with the image `box`; its containers are ended and unmounted afterwards."""
    with Store(tmp_path / "store") as opened:
        make_image(opened, "box", busybox_files(), {"app": tree.file(b"program")})
        yield opened
        runtime = Runtime.find(opened)
        for container in Containers(opened).list():
            if os.path.exists(Containers(opened).folder(container.name)):
                runtime.end(container.name, force=True)
                Containers(opened).remove(container.name, force=True)


@pytest.fixture
def containers(store: Store) -> Containers:
    return Containers(store)
