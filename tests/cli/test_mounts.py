"""mount, umount and list, by both backends."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, WRITABLE, Call, complaint, output

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

BACKENDS = pytest.mark.parametrize("backend", ["overlayfs", "fuse"])


@BACKENDS
def test_a_union_from_mount_to_umount(call: Call, folder: Path, backend: str) -> None:
    said = output(call("mount", *WRITABLE, "--backend", backend, "target"))
    assert said == f"{folder}/target: mounted by {backend} (it was asked for)\n"
    assert (folder / "target/etc/app.conf").read_text() == "debug\n"
    (folder / "target/etc/motd").write_text("changed\n")
    assert f"{folder}/target  {backend}" in output(call("list"))

    assert output(call("umount", "target")) == ""
    assert not os.path.ismount(folder / "target")
    assert (folder / "upper/etc/motd").read_text() == "changed\n"
    assert (folder / "base/etc/motd").read_text() == "welcome\n"
    assert f"{folder}/target" not in output(call("list"))


def test_the_backend_is_chosen_and_the_reason_told(call: Call, folder: Path) -> None:
    chosen = json.loads(output(call("mount", *WRITABLE, "--json", "target")))
    assert chosen == {
        "target": str(folder / "target"),
        "backend": "overlayfs",
        "why": "the kernel can mount this stack",
    }
    output(call("umount", "target"))
    chosen = json.loads(output(call("mount", *WRITABLE, "-o", "timeout=1", "--json", "target")))
    assert chosen["backend"] == "fuse"
    assert chosen["why"] == "kernel overlayfs has no option timeout"


def test_fuse_where_the_kernel_refuses(call: Call, folder: Path) -> None:
    """Overlayfs takes no upper on overlayfs, which is what a container's root lies on."""
    output(call("mount", *WRITABLE, "--backend", "overlayfs", "target"))
    for name in ("upper", "work"):
        (folder / "target" / name).mkdir()
    inner = ("--lower", "app", "--upper", "target/upper", "--work", "target/work", "target2")
    said = output(call("mount", *inner))
    assert said.startswith(f"{folder}/target2: mounted by fuse (kernel overlayfs: ")
    (folder / "target2/new").touch()
    assert (folder / "upper/upper/new").exists()


def test_layers_may_be_named_as_mount_options(call: Call, folder: Path) -> None:
    output(call("mount", "-o", "lowerdir=app:base,ro", "target"))
    (listed,) = [
        mount
        for mount in json.loads(output(call("list", "--json")))
        if mount["target"] == str(folder / "target")
    ]
    assert listed["lower"] == [str(folder / "app"), str(folder / "base")]
    assert listed["read_only"]
    assert listed["upper"] is None


@BACKENDS
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_until_a_signal(
    folder: Path, backend: str, ending: signal.Signals
) -> None:
    command = [*COMMAND, "mount", "-f", *WRITABLE, "--backend", backend, "target"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "mounted by" in process.stdout.readline()
        assert os.path.ismount(folder / "target")
        process.send_signal(ending)
        assert process.wait() == 0
    assert not os.path.ismount(folder / "target")


@BACKENDS
def test_in_the_foreground_until_another_unmounts(call: Call, folder: Path, backend: str) -> None:
    command = [*COMMAND, "mount", "-f", *WRITABLE, "--backend", backend, "target"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        output(call("umount", "target"))
        assert process.wait() == 0


@BACKENDS
def test_a_union_in_use_is_unmounted_lazily_or_not_at_all(
    call: Call, folder: Path, backend: str
) -> None:
    output(call("mount", *WRITABLE, "--backend", backend, "target"))
    with open(folder / "target/etc/motd"):
        assert "it is in use" in complaint(call("umount", "target"))
        assert os.path.ismount(folder / "target")
        output(call("umount", "--lazy", "target"))
        assert not os.path.ismount(folder / "target")


def test_one_failure_does_not_keep_the_others_mounted(call: Call, folder: Path) -> None:
    output(call("mount", *WRITABLE, "target"))
    assert "no union is mounted there" in complaint(call("umount", "target2", "target"))
    assert not os.path.ismount(folder / "target")


def test_the_list_shows_others_only_when_asked(call: Call, folder: Path) -> None:
    options = "lowerdir=app:base"
    command = ["mount", "-t", "overlay", "theirs", "-o", options, "target"]
    subprocess.run(command, cwd=folder, check=True)
    assert f"{folder}/target" not in output(call("list"))
    assert f"{folder}/target" in output(call("list", "--all"))
