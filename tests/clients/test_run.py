"""Images that podman made, run by `unionmount run` as root and as an ordinary user."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.client import Client
from tests.clients.room import CommandFailed

OWNED = "localhost/owned"


@pytest.fixture
def archive(client: Client) -> Iterator[Path]:
    """The base image with owners of its own, as podman saves it."""
    path = client.home / "owned.tar"
    client.sh("chown 7:8 /data/kept; chmod 640 /data/kept; rm /data/deleted", "--name=owner")
    client.podman("commit", "--quiet", "owner", OWNED)
    client.podman("rm", "owner")
    client.podman("save", "--quiet", f"--output={path}", OWNED)
    client.podman("rmi", OWNED)
    yield path
    path.unlink()


def test_an_image_of_podman_runs_here(client: Client, archive: Path) -> None:
    store = f"--store={client.home}/store"
    client.run(client.program, "image", "import", store, archive)
    script = "id -u; ls /data; stat -c '%u:%g %a' /data/kept; cat /data/kept; echo new > /data/new"
    shown = client.run(client.program, "run", store, "--name=mine", OWNED, "sh", "-c", script)
    assert shown == "0\nattributes\nkept\none\ntree\ntwo\n7:8 640\nkept\n"

    mounted = json.loads(client.run(client.program, "mount", store, "--json", "mine"))
    assert mounted["backend"] == ("fuse" if client.rootless else "overlayfs")
    assert client.run("cat", f"{mounted['target']}/data/new") == "new\n"
    client.run(client.program, "umount", store, "mine")

    client.run(client.program, "run", store, "--detach", "--name=behind", OWNED, "sleep", "1000")
    for action in ("remove", "mount"):
        with pytest.raises(CommandFailed, match="it runs; remove it by force"):
            client.run(client.program, action, store, "behind")
    client.run(client.program, "remove", store, "--force", "behind")

    client.run(client.program, "commit", store, "mine", "localhost/changed")
    script = "id -u; cat /data/new; cat /data/kept"
    arguments = ("run", store, "--rm", "--user=7:8", "localhost/changed", "sh", "-c", script)
    assert client.run(client.program, *arguments) == "7\nnew\nkept\n"
    client.run(client.program, "remove", store, "mine")
    assert client.run(client.program, "store", "verify", store) == "all is as it should be\n"

    exported = client.home / "changed.tar"
    client.run(client.program, "image", "export", store, "--output", exported, "localhost/changed")
    client.podman("load", "--quiet", f"--input={exported}")
    assert client.sh("stat -c '%u:%g' /data/kept; cat /data/new", image="localhost/changed") == (
        "7:8\nnew\n"
    )
    client.podman("rmi", "localhost/changed")
