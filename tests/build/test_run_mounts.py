"""`RUN --mount`: what a command is lent is there while it runs, and in no layer."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.build.test_build import built, cached, context
from tests.cli.conftest import COMMAND
from unionfs import list_mounts
from unionfs.build import BuildError
from unionfs.containers import Containers
from unionfs.images import library
from unionfs.layers import changes
from unionfs.stack import LayerStack
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and runs")

__all__ = ["context"]


def layers_changes(store: Store, context: Path, text: str) -> set[str]:
    """The paths that the last layer of a build changes."""
    image = built(store, context, text).image
    layers = store.layers.stack(library.unpack(store, image))
    with LayerStack(layers, options=store.options) as stack:
        return {change.path for change in changes(stack)}


def test_a_layer_holds_what_the_command_changed_and_nothing_else(
    store: Store, context: Path
) -> None:
    bare = "FROM scratch\nCOPY --from=box /bin /bin\n"
    assert layers_changes(store, context, f"{bare}RUN echo > /new\n") == {"/new"}
    lent = (
        "--mount=target=/mnt/deep,source=src --mount=type=tmpfs,target=/srv/memory,size=1m"
        " --mount=type=cache,target=/bin/cache"
    )
    assert layers_changes(store, context, f"{bare}RUN {lent} echo > /new\n") == {"/new"}
    assert layers_changes(store, context, f"{bare}RUN {lent} true\n") == set()
    kept = layers_changes(store, context, f"{bare}RUN mkdir /mnt && echo > /mnt/own\n")
    assert {"/mnt", "/mnt/own"} <= kept


def test_the_context_is_lent(store: Store, context: Path) -> None:
    (context / ".dockerignore").write_text("secret\nsrc/deep/*\n!src/deep/data.txt\n")
    text = """
        FROM box
        WORKDIR /work
        RUN --mount=target=. ls . src src/deep > /told; ! echo > new
        RUN --mount=source=src/deep/data.txt,dst=/data,rw cat /data > /copy && echo > /data
        RUN --mount=target=/here,rw rm -r /here/src && ls /here > /left
        """
    made = built(store, context, text)
    assert "secret" not in made.text("/told")
    assert {"one.conf", "main.py", "data.txt"} <= {*made.text("/told").split()}
    assert "link" not in made.text("/told").split()
    assert made.text("/copy") == "data"
    assert "src" not in made.text("/left").split()
    assert (context / "src/deep/data.txt").read_text() == "data"

    assert cached(store, context, text) == [True] * 3
    (context / "secret").write_text("other")
    assert cached(store, context, text) == [True] * 3
    (context / "src/deep/data.txt").write_text("new")
    assert cached(store, context, text) == [False] * 3


def test_a_stage_is_lent(store: Store, context: Path) -> None:
    text = """
        FROM box AS made
        RUN mkdir /out && echo made > /out/file && ln -s /etc /out/away
        FROM box AS unneeded
        RUN false
        FROM box
        RUN --mount=from=made,source=/out,target=/in,rw cat /in/file > /copy && echo x > /in/file
        RUN --mount=from=box,target=/box cat /box/app > /app.copy
        """
    made = built(store, context, text)
    assert (made.text("/copy"), made.text("/app.copy")) == ("made\n", "program")
    assert not made.files.exists("/in")
    with pytest.raises(BuildError, match="leads out of what is mounted"):
        built(store, context, f"{text}\nRUN --mount=from=made,source=/out/away,target=/in true\n")


def test_a_cache_outlives_the_build(store: Store, context: Path) -> None:
    text = """
        FROM box
        RUN --mount=type=cache,id=kept,target=/cache,mode=700,uid=7 echo first >> /cache/file
        """
    assert not built(store, context, text).files.exists("/cache")
    read = """
        FROM box
        RUN --mount=type=cache,id=kept,target=/c,sharing={} cat /c/file > /told; ls -ldn /c > /mode
        RUN --mount=type=cache,id=kept,target=/c,ro ! touch /c/new
        """
    made = built(store, context, read.format("locked"))
    assert made.text("/told") == "first\n"
    assert made.text("/mode").startswith("drwx------")
    assert made.text("/mode").split()[2:4] == ["7", "0"]
    assert built(store, context, read.format("private")).text("/told") == "first\n"
    other = read.replace("id=kept", "id=other").format("shared")
    with pytest.raises(BuildError):
        built(store, context, other.replace("; ls", " && ls"))


SECRET = "hush-2f6c1"


def test_a_secret_is_nowhere_afterwards(store: Store, context: Path) -> None:
    (context / "Dockerfile").write_text(
        """
        FROM box
        RUN --mount=type=secret,id=token,required=true \\
            ls -ln /run/secrets/token > /mode && cat /run/secrets/token | tr a-z A-Z > /shouted
        RUN --mount=type=secret,id=token,env=TOKEN --mount=type=secret,id=absent \\
            test "${#TOKEN}" = 10
        USER app
        RUN --mount=type=secret,id=var,target=/token,uid=7,mode=0440 cat /token > /tmp/read
        """
    )
    (context / "secret").write_text(SECRET)
    secrets = ("--secret", f"id=token,src={context}/secret", "--secret", "id=var,env=FROM_HERE")
    env = os.environ | {"UNIONMOUNT_STORE": store.root, "FROM_HERE": "else"}

    def build(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*COMMAND, "build", "--json", "-t", "app", *arguments, str(context)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    done = build(*secrets)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["names"] == ["docker.io/library/app:latest"]
    shown = subprocess.run(
        [*COMMAND, "run", "--rm", "app", "cat", "/mode", "/shouted", "/tmp/read"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith("-r--------")
    assert shown.endswith("HUSH-2F6C1else")
    found = subprocess.run(["grep", "-r", SECRET, store.root, "/dev/shm"], check=False)
    assert found.returncode == 1, "nothing that was found"
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("tmp")]

    done = build("--no-cache")
    assert done.returncode == 1
    assert "Dockerfile:3: the secret token is missing; add --secret id=token" in done.stderr
    for wrong in ("token", "id=a,b=c", "id=a,env=ABSENT"):
        done = build("--secret", wrong)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert Containers(store).list() == []
    assert not [mount for mount in list_mounts() if store.root in mount.target]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mount=type=ssh", "type=ssh cannot be had; there are: bind"),
        ("--mount=type=cache", "needs a target"),
        ("--mount=type=tmpfs,target=/x,from=a", "has no from"),
        ("--mount=type=tmpfs,target=/x,size=much", "not a size"),
        ("--mount=type=cache,target=/x,sharing=never", "none of shared"),
        ("--mount=type=cache,target=/x,mode=rwx", "no number"),
        ("--mount=target=/x,rw=perhaps", "neither true nor false"),
        ("--mount=target=/x,source=absent", "no such file"),
        ("--network=host", "not allowed here"),
    ],
)
def test_what_cannot_be_lent(store: Store, context: Path, flags: str, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        built(store, context, f"FROM box\nRUN {flags} true\n")
    assert caught.value.filename == "Dockerfile:2"
