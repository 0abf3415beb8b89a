"""The store's commands, as a user calls them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import UNPRIVILEGED, Call, complaint, output
from tests.containers.conftest import busybox_files
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer
from unionfs.containers import Containers
from unionfs.store import Store

__all__ = ["make_image", "make_layer"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@pytest.fixture(autouse=True)
def store(folder: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store that commands use, with the image `box`."""
    monkeypatch.setenv("UNIONMOUNT_STORE", str(folder / "store"))
    with Store(folder / "store") as opened:
        make_image(opened, "box", busybox_files())
        yield opened
        for container in Containers(opened).list():
            Containers(opened).remove(container.name, force=True)


def test_a_container_from_create_to_remove(call: Call, folder: Path) -> None:
    assert output(call("create", "--name", "mine", "box")) == "mine\n"
    mounted = json.loads(output(call("mount", "--json", "mine")))
    assert mounted["backend"] == "overlayfs"
    (Path(mounted["target"]) / "app").write_text("new")
    (listed,) = json.loads(output(call("containers", "--json")))
    assert listed["target"] == mounted["target"]
    assert "mine  box:latest" in output(call("containers"))
    digest = output(call("commit", "-m", "an app", "mine", "box:2")).strip()
    assert digest.startswith("sha256:")
    assert output(call("diff", "mine")) == "A  /app\n"
    assert output(call("cat", "mine:/app")) == "new"
    output(call("umount", "mine"))
    assert output(call("diff", "mine")) == "A  /app\n"
    assert "app\n" in output(call("ls", "mine:"))
    assert "answers" in output(call("explain", "mine:/app"))
    assert "no union is mounted there" in complaint(call("diff", "other"))
    assert output(call("run", "--rm", "box:2", "cat", "/app")) == "new"
    output(call("mount", "mine", "target"))
    assert (folder / "target/app").read_text() == "new"
    output(call("umount", "mine"))
    output(call("remove", "mine"))
    assert json.loads(output(call("containers", "--json"))) == []


def test_snapshots(call: Call, folder: Path) -> None:
    (mount,) = json.loads(output(call("snapshot", "prepare", "--json", "key", "--label", "a=b")))
    assert mount["type"] == "bind"
    output(call("snapshot", "commit", "base", "key"))
    assert output(call("snapshot", "view", "view", "base")).startswith("mount -t bind -o ro,rbind ")
    assert "lowerdir=" in output(call("snapshot", "prepare", "next", "base"))
    assert output(call("snapshot", "mounts", "next")).endswith(" overlay TARGET\n")
    output(call("snapshot", "label", "next", "team=x"))
    (found,) = json.loads(output(call("snapshot", "list", "--json", "labels.team==x")))
    assert (found["name"], found["kind"], found["parent"]) == ("next", "active", "base")
    assert "base" in output(call("snapshot", "list"))
    assert "team=x" in output(call("snapshot", "stat", "next"))
    assert json.loads(output(call("snapshot", "stat", "--json", "next")))["usage"]["inodes"] == 1
    assert "cannot remove snapshot with child" in complaint(call("snapshot", "remove", "base"))
    output(call("snapshot", "remove", "view", "next", "base"))
    assert json.loads(output(call("snapshot", "list", "--json"))) == []


def test_looking_after_a_store(call: Call, store: Store) -> None:
    output(call("create", "box"))
    used = json.loads(output(call("store", "usage", "--json")))
    assert [share["name"] for share in used["images"]] == ["docker.io/library/box:latest"]
    assert "in all" in output(call("store", "usage"))
    store.blobs.add(b"garbage")
    assert output(call("store", "gc")) == "removed 1 blobs and 0 layers: 7 bytes\n"
    assert output(call("store", "verify")) == "all is as it should be\n"
    layer = Path(store.layers.path(next(iter(store.snapshots.walk("kind==committed"))).name))
    (layer / "etc/passwd").write_text("changed")
    done = call("store", "verify")
    assert done.returncode == 1
    assert "not what its blob unpacks to: /etc/passwd; repair the store" in done.stdout
    (fault,) = json.loads(output(call("store", "verify", "--repair", "--json")))
    assert fault["repaired"]
    assert output(call("store", "verify")) == "all is as it should be\n"


def test_a_users_own_store(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIONMOUNT_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "share"))
    output(call("snapshot", "prepare", "mine", before=UNPRIVILEGED))
    assert "mine" in output(call("snapshot", "list", before=UNPRIVILEGED))
    assert (folder / "share/unionmount/catalogue.db").exists()


def test_what_is_wrong_is_said_in_one_line(call: Call) -> None:
    for arguments, words in (
        (("create", "absent"), "pull or import it"),
        (("create", "Box"), "capital letters"),
        (("create", "--name", "a/b", "box"), "use letters, digits"),
        (("mount", "absent"), "no such container"),
        (("remove", "absent"), "no such container"),
        (("commit", "absent", "new"), "no such container"),
        (("snapshot", "stat", "absent"), "no such snapshot"),
        (("snapshot", "prepare", "key", "absent"), "no such snapshot"),
        (("snapshot", "list", "name=x"), "no filter"),
        (("snapshot", "prepare", "key", "--label", "x"), "write NAME=VALUE"),
        (("run", "--memory", "lots", "box"), "write 512m or 2g"),
    ):
        assert words in complaint(call(*arguments))
