"""What the client tests share: the mount program, and a client with its base image in each mode.

The program is this environment's `unionmount`, or the path in UNIONMOUNT_TEST_MOUNT_PROGRAM (with
/usr/bin/fuse-overlayfs there, the tests show what they expect of us). A missing package is an
error, not a skip: `.ci/setup-clients` installs them. Costs a second or two a mode, and once the
installation of unionmount for the ordinary user.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.client import Client
from tests.clients.room import Room

_REPOSITORY = Path(__file__).parents[2]
_NOT_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "*.so")
_CLIENTS = ["podman", "buildah", "skopeo", "crun", "runc", "busybox"]
_TOOLS = ["mount.fuse3", "newuidmap", "unshare", "nsenter", "setpriv", "useradd"]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that ordinary users may enter too, which pytest's own are not.

    Its path is short: podman puts sockets below it, whose paths may have 107 bytes.
    """
    if os.geteuid() != 0:
        pytest.skip("the client tests make namespaces, users and devices, so they need root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse: this kernel has no FUSE")
    missing = [command for command in _CLIENTS + _TOOLS if not shutil.which(command)]
    assert not missing, f"not installed: {', '.join(missing)}; run .ci/setup-clients"
    made = Path(tempfile.mkdtemp(prefix="clients-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def program() -> Path:
    """The mount program under test."""
    default = Path(sys.executable).parent / "unionmount"
    chosen = Path(os.environ.get("UNIONMOUNT_TEST_MOUNT_PROGRAM", default))
    assert os.access(chosen, os.X_OK), f"no mount program at {chosen}"
    return chosen


@pytest.fixture(scope="session")
def program_for_users(program: Path, folder: Path) -> Path:
    """The mount program where an ordinary user can run it.

    The environment of the tests may lie in a closed home folder, so unionmount is installed anew,
    from a copy of the sources (an installation leaves files beside them), with a Python that
    everyone can read.
    """
    if program.name != "unionmount":
        return program
    sources, environment = folder / "sources", folder / "environment"
    shutil.copytree(_REPOSITORY, sources, ignore=_NOT_SOURCE)
    shutil.rmtree(sources / "build", ignore_errors=True)  # it would be installed as it was once
    subprocess.run(["/usr/bin/python3", "-m", "venv", environment], check=True, umask=0o022)
    pip = environment / "bin/pip"
    subprocess.run([pip, "install", "--quiet", sources], check=True, umask=0o022)
    return environment / "bin/unionmount"


@pytest.fixture(scope="session", params=["rootful", "rootless"])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[Client]:
    """A client of each kind, whose store holds the base image and nothing else."""
    rootless = request.param == "rootless"
    program = request.getfixturevalue("program_for_users" if rootless else "program")
    with Room(program) as room:
        client = Client(room, folder / request.param, program, rootless=rootless)
        client.settle()
        client.make_base()
        client.sweep()
        yield client


@pytest.fixture
def client(store: Client) -> Iterator[Client]:
    """The client; after the test it must be possible to leave nothing behind but the base."""
    yield store
    store.sweep()
