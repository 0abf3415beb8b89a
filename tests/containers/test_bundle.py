"""What a runtime is told: from the image's settings, and from the user's in their place."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tree
from tests.containers.conftest import GROUP, PASSWD
from unionfs.containers.bundle import (
    PATH,
    Account,
    RunOptions,
    Volume,
    configuration,
    find_account,
)
from unionfs.images.documents import Settings
from unionfs.stack import LayerStack
from unionfs.union import UnionFS

IMAGE = Settings(
    env=("PATH=/app", "MODE=fast"),
    entrypoint=("/entry", "-x"),
    cmd=("serve",),
    user="app",
    working_dir="/srv",
    volumes=("/data",),
)


@pytest.fixture
def union(tmp_path: Path) -> Iterator[UnionFS]:
    tree.build(
        str(tmp_path / "files"),
        {
            "etc/passwd": tree.file(PASSWD + b"broken line\nodd:x:seven:8:::\n"),
            "etc/group": tree.file(GROUP),
        },
    )
    with LayerStack([tmp_path / "files"]) as stack:
        yield UnionFS(stack)


def configured(union: UnionFS, settings: Settings = IMAGE, **asked: Any) -> dict[str, Any]:
    return configuration("name", "/rootfs", settings, union, RunOptions(**asked))


def test_the_images_settings(union: UnionFS) -> None:
    document = configured(union)
    process = document["process"]
    assert process["args"] == ["/entry", "-x", "serve"]
    assert process["env"] == ["PATH=/app", "HOME=/home/app", "HOSTNAME=name", "MODE=fast"]
    assert process["cwd"] == "/srv"
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
    assert process["capabilities"]["effective"] == ()
    assert document["root"] == {"path": "/rootfs", "readonly": False}
    assert {"type": "network"} in document["linux"]["namespaces"]


def test_the_users_settings(union: UnionFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "value")
    document = configured(
        union,
        command=("other",),
        env=("MODE=slow", "FROM_HERE", "NOT_SET"),
        user="0",
        workdir="/",
        hostname="host",
        terminal=True,
        network="host",
        memory=1 << 20,
        cpus=1.5,
        pids=10,
    )
    process = document["process"]
    assert process["args"] == ["/entry", "-x", "other"]
    assert process["terminal"]
    assert set(process["env"]) == {
        *("PATH=/app", "HOME=/root", "HOSTNAME=host", "MODE=slow", "TERM=xterm"),
        "FROM_HERE=value",
    }
    assert "CAP_CHOWN" in process["capabilities"]["effective"]
    assert process["cwd"] == "/"
    assert document["hostname"] == "host"
    assert {"type": "network"} not in document["linux"]["namespaces"]
    resources = document["linux"]["resources"]
    assert resources["memory"] == {"limit": 1 << 20}
    assert resources["cpu"] == {"period": 100_000, "quota": 150_000}
    assert resources["pids"] == {"limit": 10}


def test_another_entry_point_drops_the_images_arguments(union: UnionFS) -> None:
    assert configured(union, entrypoint=("sh",))["process"]["args"] == ["sh"]
    assert configured(union, Settings(cmd=("sh",)))["process"]["env"][0] == PATH
    with pytest.raises(FileNotFoundError, match="the image has no command; name one"):
        configured(union, Settings())


def test_volumes(union: UnionFS, tmp_path: Path) -> None:
    volume = Volume.parse(f"{tmp_path}:/data:ro")
    assert volume == Volume(os.path.realpath(tmp_path), "/data", read_only=True)
    document = configured(union, volumes=(volume,), read_only=True)
    assert document["root"]["readonly"]
    mounts = {mount["destination"]: mount for mount in document["mounts"]}
    assert mounts["/data"]["options"] == ["rbind", "rprivate", "ro"]
    assert mounts["/tmp"]["type"] == "tmpfs"
    for text in ("", "/only", "/a:b", "/a:/b:rx", ":/b"):
        with pytest.raises(OSError, match="not a volume"):
            Volume.parse(text)
    with pytest.raises(FileNotFoundError, match="make the directory"):
        Volume.parse(f"{tmp_path}/absent:/data")


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0, (), "/root")),
        ("app", Account(7, 8, (9,), "/home/app")),
        ("7", Account(7, 8, (9,), "/home/app")),
        ("app:extra", Account(7, 9, (), "/home/app")),
        ("app:77", Account(7, 77, (), "/home/app")),
        ("1234", Account(1234, 0, (), "/")),
        ("1234:5", Account(1234, 5, (), "/")),
    ],
)
def test_accounts(union: UnionFS, user: str, account: Account) -> None:
    assert find_account(union, user) == account


def test_accounts_that_are_none(union: UnionFS) -> None:
    for user in ("absent", "app:absent"):
        with pytest.raises(FileNotFoundError, match="the image has no such"):
            find_account(union, user)
