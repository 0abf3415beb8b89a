"""image, pull and push, as a user calls them on images that podman's tools made."""

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Call, complaint, output
from tests.images.server import Proxy, registry
from tests.tree import Tree, build, file

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners of files are kept by root")

PATIENCE = 60  # seconds after which a command counts as hung
BASE: Tree = {"etc/motd": file(b"welcome\n"), "bin/tool": file(os.urandom(2_000_000), mode=0o755)}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the tags v1 and v2, whose last layers differ, made by umoci."""
    folder = tmp_path_factory.mktemp("umoci")
    layout = folder / "app"
    build(str(folder / "tree"), BASE)

    def umoci(*arguments: str | Path) -> None:
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:base")
    umoci("insert", "--image", f"{layout}:base", folder / "tree", "/")
    umoci("config", "--image", f"{layout}:base", "--config.cmd=tool", "--author=me")
    for time, version in enumerate(("v1", "v2")):
        (folder / "version").write_text(version)
        os.utime(folder / "version", (time, time))
        umoci("tag", "--image", f"{layout}:base", version)
        umoci("insert", "--image", f"{layout}:{version}", folder / "version", "/etc/version")
    umoci("insert", "--image", f"{layout}:v2", "--whiteout", "/etc/motd")
    umoci("rm", "--image", f"{layout}:base")
    return layout


@pytest.fixture
def images(folder: Path, call: Call, layout: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command, with app:v1 and app:v2 in its store."""
    monkeypatch.setenv("UNIONMOUNT_STORE", str(folder / "store"))
    output(call("image", "import", str(layout)))
    return call


@pytest.fixture
def server(folder: Path) -> Iterator[Proxy]:
    with registry(folder / "registry") as running:
        yield Proxy(running)


def test_images_are_listed_and_looked_into(images: Call) -> None:
    first, second = output(images("image", "list")).splitlines()[1:]
    assert first.startswith("app:v1  ")
    assert second.startswith("app:v2  ")
    [one, two] = json.loads(output(images("image", "list", "--json")))
    assert one["name"] == "docker.io/library/app:v1"
    assert first.split()[1] == one["digest"][7:19]
    assert one["platforms"] == two["platforms"]

    shown = output(images("image", "inspect", "app:v1"))
    assert "command   tool\n" in shown
    assert shown.count("layer     sha256:") == 2
    data = json.loads(output(images("image", "inspect", one["digest"][7:19], "--json")))
    assert data["config"]["config"]["Cmd"] == ["tool"]
    assert len(data["manifest"]["layers"]) == 2


def test_the_history_has_the_last_step_first(images: Call) -> None:
    shown = output(images("image", "history", "app:v1")).splitlines()
    assert "umoci insert" in shown[1]
    assert "umoci config" in shown[2]
    steps = json.loads(output(images("image", "history", "app:v1", "--json")))
    assert [bool(step["layer"]) for step in steps] == [True, False, True]
    assert steps[2]["size"] > 200_000 > steps[0]["size"] > 0


def test_a_diff_of_images(images: Call) -> None:
    assert output(images("image", "diff", "app:v1", "app:v2")) == (
        "D  /etc/motd\nM  /etc/version  (content, time)\n"
    )
    assert output(images("image", "diff", "app:v1", "app:v1", "--json")) == "[]\n"


def test_a_tag_more_and_all_removed(images: Call, folder: Path) -> None:
    output(images("image", "tag", "app:v1", "host.com/other"))
    assert "host.com/other:latest" in output(images("image", "list"))
    digest = json.loads(output(images("image", "inspect", "app:v1", "--json")))["digest"]
    refused = images("image", "remove", digest)
    assert refused.returncode == 1
    assert "it has 2 names; remove it by these: docker.io/library/app:v1, " in refused.stderr

    output(images("image", "remove", "app:v1", "host.com/other"))
    left = json.loads(output(images("image", "remove", "app:v2", "--json")))
    assert left["removed"] == ["docker.io/library/app:v2"]
    assert left["collected"]["bytes"] > 200_000
    assert output(images("image", "list", "--json")) == "[]\n"
    assert not [*(folder / "store/blobs/sha256").iterdir()]


def test_an_image_goes_through_pipes(
    images: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = [*COMMAND, "image", "export", "-o", "-", "app:v1", "app:v2"]
    with subprocess.Popen(export, cwd=folder, stdout=subprocess.PIPE) as exporting:
        monkeypatch.setenv("UNIONMOUNT_STORE", str(folder / "second"))
        shown = output(images("image", "import", "-", stdin=exporting.stdout))
    assert exporting.returncode == 0
    assert [line.split(": ")[0] for line in shown.splitlines()] == ["app:v1", "app:v2"]


def test_only_the_changed_layer_is_moved(
    images: Call, server: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.running() as host:
        for version in ("v1", "v2"):
            output(images("image", "tag", f"app:{version}", f"{host}/app:{version}"))
        assert "sent" in output(images("push", f"{host}/app:v1"))
        pushed = json.loads(output(images("push", f"{host}/app:v2", "--json")))
        assert pushed["bytes"] < 3000 < 2_000_000 < pushed["size"]

        monkeypatch.setenv("UNIONMOUNT_STORE", str(folder / "second"))
        output(images("pull", f"{host}/app:v1"))
        shown = output(images("pull", f"{host}/app:v2"))
        assert "already here" in shown
        assert shown.splitlines()[-1].startswith("fetched ")
        again = json.loads(output(images("pull", f"{host}/app:v2", "--json")))
        assert (again["bytes"], {blob["how"] for blob in again["blobs"]}) == (0, {"here"})


def test_ctrl_c_ends_a_pull_that_hangs_and_one_that_waits_for_it(
    images: Call, server: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = json.loads(output(images("image", "inspect", "app:v1", "--json")))["manifest"]["layers"]
    digest = layer[0]["digest"]
    hold = threading.Event()
    with server.running() as host, ExitStack() as undone:
        undone.callback(hold.set)
        output(images("push", "app:v1", f"{host}/app:v1"))
        monkeypatch.setenv("UNIONMOUNT_STORE", str(folder / "second"))
        fault = server.fault("GET", digest, after=1_000_000, hold=hold)
        command = [*COMMAND, "pull", f"{host}/app:v1"]
        pulling = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        undone.callback(pulling.kill)
        assert fault.held.wait(PATIENCE)

        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        undone.callback(waiting.kill)
        while digest.replace(":", "-") not in files_of(waiting):
            assert waiting.poll() is None
        for process, number in ((waiting, signal.SIGTERM), (pulling, signal.SIGINT)):
            process.send_signal(number)
            assert process.communicate(timeout=PATIENCE)[1] == "unionmount: interrupted\n"
            assert process.returncode == 128 + number
        hold.set()
        assert output(images("image", "list", "--json")) == "[]\n"
        assert output(images("store", "verify")) == "all is as it should be\n"

        server.exchanges.clear()
        output(images("pull", f"{host}/app:v1"))
        [again] = server.of("GET", digest)
        assert again.headers["Range"].startswith("bytes=")


def files_of(process: "subprocess.Popen[str]") -> set[str]:
    """The names of the files that a process has open."""
    folder = f"/proc/{process.pid}/fd"
    found = set()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            found.add(os.path.basename(os.readlink(f"{folder}/{name}")))
    return found


def test_a_terminal_shows_a_line_for_each_layer(images: Call, server: Proxy, folder: Path) -> None:
    with server.running() as host:
        command = [*COMMAND, "push", "app:v1", f"{host}/app:v1"]
        ours, theirs = pty.openpty()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs):
            os.close(theirs)
            shown = read_terminal(ours)
        os.close(ours)
    digest = json.loads(output(images("image", "inspect", "app:v1", "--json")))
    for layer in digest["manifest"]["layers"]:
        assert f"{layer['digest'][7:19]} sent" in shown


def read_terminal(fd: int) -> str:
    """All that is written to a terminal until nobody can any more."""
    seen = b""
    with suppress(OSError):  # EIO is its end
        while chunk := os.read(fd, 1 << 16):
            seen += chunk
    return seen.decode()


WRONG = [
    (("image", "inspect", "none"), "pull or import it"),
    (("image", "inspect", "App"), "try library/app"),
    (("image", "inspect", "app:v1", "--platform", "linux/s390x"), "no image for linux/s390x"),
    (("image", "inspect", "app:v1", "--platform", "x"), "OS/ARCH"),
    (("image", "import", "none.tar"), "No such file"),
    (("image", "import", "base"), "neither an OCI layout"),
    (("image", "export", "-o", "base", "app:v1"), "another place"),
    (("image", "export", "-o", "out", "none"), "pull or import it"),
    (("pull", "localhost:1/app"), "cannot connect"),
    (("push", "app:v1", "localhost:1/app"), "cannot connect"),
    (("pull", "app", "--platform", "linux/arm", "--all-platforms"), "choose one"),
]


def test_what_goes_wrong_is_one_line(images: Call, folder: Path) -> None:
    for arguments, wrong in WRONG:
        assert wrong in complaint(images(*arguments)), arguments
    assert not (folder / "out").exists()


def test_a_broken_image_does_not_hide_the_others(images: Call, folder: Path) -> None:
    digest = json.loads(output(images("image", "inspect", "app:v1", "--json")))["digest"]
    (folder / "store/blobs" / digest.replace(":", "/")).unlink()
    listed = images("image", "list")
    assert listed.returncode == 1
    assert "app:v1" in listed.stderr
    assert "app:v2" in listed.stdout
    output(images("image", "remove", "app:v1"))


def test_the_shell_completes_names(images: Call) -> None:
    words = {"_UNIONMOUNT_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    for line, wanted in (
        ("unionmount image inspect app:", ["app:v1", "app:v2"]),
        ("unionmount image inspect x", []),
        ("unionmount push app:v2", []),
    ):
        done = images(env=os.environ | words | {"COMP_WORDS": line})
        assert [each.partition(",")[2] for each in done.stdout.split()] == wanted
