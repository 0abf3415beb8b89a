"""Containers of an ordinary user: the same commands, in a user namespace of his own.

The user has one number, so all files of an image are his; with /etc/subuid they keep their owners.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, UNPRIVILEGED
from tests.containers.test_runtime import BEFORE
from tests.images.server import registry
from unionfs.images.exchange import export_images
from unionfs.store import FailedPrecondition, Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the test makes namespaces")

IMPORT = """
import sys
from unionfs.images.exchange import import_images
from unionfs.store import Store

with Store(sys.argv[1]) as store:
    import_images(store, sys.argv[2])
"""
Call = Callable[..., str]


@pytest.fixture(params=["crun", "runc"])
def call(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Call:
    """The command as an ordinary user, with a store that has the image `box`."""
    export_images(store, ["box"], str(tmp_path / "box.tar"))
    root = str(tmp_path / "own")
    enter = ("unshare", "--user", "--map-root-user")
    subprocess.run(
        [*enter, sys.executable, "-c", IMPORT, root, str(tmp_path / "box.tar")], check=True
    )

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*BEFORE[request.param], *UNPRIVILEGED, *COMMAND, *arguments],
            env=os.environ | {"UNIONMOUNT_STORE": root},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def running(*arguments: str) -> str:
        runtime = ("--runtime", request.param) if arguments[0] == "run" else ()
        return run(arguments[0], *runtime, *arguments[1:])

    return running


def test_run_commit_and_remove(call: Call, tmp_path: Path) -> None:
    shown = call("run", "--name", "mine", "box", "sh", "-c", "id; cat /app; echo new > /app")
    assert shown.startswith("uid=0(root) gid=0(root)")
    assert shown.endswith("program")
    assert call("commit", "mine", "box:2").startswith("sha256:")
    assert call("run", "--rm", "--read-only", "box:2", "cat", "/app") == "new\n"
    shared = tmp_path / "shared"
    shared.mkdir()
    call("run", "--rm", "-v", f"{shared}:/data", "box", "touch", "/data/new")
    assert os.listdir(shared) == ["new"]
    call("remove", "mine")
    assert call("store", "verify") == "all is as it should be\n"
    assert "removed 0 blobs" in call("store", "gc")


def test_what_is_pulled_runs_and_what_is_committed_is_pushed(
    call: Call, store: Store, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry") as host:

        def root(*arguments: str) -> str:
            command = (*COMMAND, arguments[0], "--store", store.root, *arguments[1:])
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        root("push", "box", f"{host}/team/box:1")
        call("pull", f"{host}/team/box:1")
        call("run", "--name", "mine", f"{host}/team/box:1", "sh", "-c", "echo new > /app")
        call("commit", "mine", f"{host}/team/box:2")
        call("push", f"{host}/team/box:2")
        call("remove", "mine")
        root("pull", f"{host}/team/box:2")
        assert root("run", "--rm", f"{host}/team/box:2", "cat", "/app") == "new\n"


def test_the_store_of_root_is_not_a_users(store: Store) -> None:
    """Its marks are ones that only root may read."""
    script = "import sys; from unionfs.store import Store; Store(sys.argv[1])"
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-c", script, store.root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert FailedPrecondition.__name__ in done.stderr
    assert "root made this store with trusted. marks" in done.stderr
