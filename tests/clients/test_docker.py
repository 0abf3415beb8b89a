"""Docker loads what we export, and what it saves, in its form before OCI layouts, is imported.

The daemon is the test's own: its files, its socket and no network.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.room import PATIENCE
from tests.containers.conftest import busybox_files
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer, store
from tests.tree import Tree, directory, file, opaque, whiteout
from unionfs.images import library
from unionfs.images.exchange import export_images, import_images
from unionfs.images.library import find
from unionfs.images.reference import Reference
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a daemon of Docker's")

__all__ = ["make_image", "make_layer", "store"]

Docker = Callable[..., str]

_WITH_OWN_MOUNTS = (
    *("unshare", "--mount", "sh", "-c"),
    # where it keeps a key, and its plugins' sockets
    'mount -t tmpfs none /etc/docker && mount -t tmpfs none /run && exec dockerd "$@"',
    "sh",
)
TOP: Tree = {
    "home/app/note": file(b"changed", 0o4755, 7, 8, xattrs={"user.note": b"kept"}),
    "etc/group": whiteout(),
    "tmp": opaque(),
    "tmp/new": directory(0o1777),
}


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    """Docker's command, with a daemon that ends with the test."""
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    options = [f"--{option}={tmp_path / name}" for option, name in places.items()]
    options += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"]
    socket = f"unix://{tmp_path / 'socket'}"
    daemon = subprocess.Popen(
        [*_WITH_OWN_MOUNTS, *options, f"--host={socket}"], stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr
    try:
        said = []
        for line in daemon.stderr:
            said.append(line)
            if "API listen on" in line:
                break
        else:
            raise AssertionError("".join(said))
        # nobody reads on: whatever it logs must not fill the pipe and stop it
        threading.Thread(target=daemon.stderr.read, daemon=True).start()

        def run(*arguments: str | Path) -> str:
            command = ["/usr/bin/docker", f"--host={socket}", *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)


def test_docker_takes_ours_and_gives_it_back(
    docker: Docker, store: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    names = ["box:v1", "box:v2"]
    make_image(store, names[0], busybox_files())
    image = make_image(store, names[1], busybox_files(), TOP).image()
    export_images(store, names, str(tmp_path / "ours.tar"))
    assert docker("load", "--quiet", "--input", tmp_path / "ours.tar").split() == [
        *("Loaded", "image:", "box:v1", "Loaded", "image:", "box:v2")
    ]
    id_ = docker("image", "inspect", "--format={{.Id}}", "box:v2").strip()
    assert id_ == image.manifest.config.digest
    run = ("run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "box:v2")
    assert docker(*run, "sh", "-c", "cat /home/app/note; ls /tmp") == "changednew\n"

    docker("save", "--output", tmp_path / "theirs.tar", *names)
    import_images(store, str(tmp_path / "theirs.tar"), Reference.parse("back"))
    for tag in ("v1", "v2"):
        ours, theirs = (find(store, f"{name}:{tag}").image() for name in ("box", "back"))
        assert theirs.config == ours.config
        assert library.diff(store, ours, theirs) == []
