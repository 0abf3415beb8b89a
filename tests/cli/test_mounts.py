"""mount, umount and list, by both backends."""

import json
import os
import select
import signal
import subprocess
from contextlib import ExitStack, suppress
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
    assert _listed(call, folder)[1] == backend

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


def test_a_mount_whose_program_was_killed(call: Call, folder: Path) -> None:
    """The list says so, nothing is mounted over it, and it is taken down though it is in use."""
    command = [*COMMAND, "-f", "-o", "lowerdir=app:base,upperdir=upper,workdir=work", "target"]
    with subprocess.Popen(command, cwd=folder) as program:
        _await_mount(folder / "target")
        held = os.open(folder / "target/etc/motd", os.O_RDONLY)
        with ExitStack() as in_use:
            in_use.enter_context(suppress(OSError))  # what has no passthrough tells so when closed
            in_use.callback(os.close, held)
            program.kill()
            program.wait()
            with pytest.raises(OSError, match="not connected"):
                os.stat(folder / "target/unknown")
            assert _listed(call, folder)[1:3] == ["fuse", "dead"]
            listed = json.loads(output(call("list", "--json")))
            assert [it["dead"] for it in listed if it["target"] == f"{folder}/target"] == [True]
            assert "unmount it first" in complaint(call("mount", *WRITABLE, "target"))
            assert output(call("umount", "target")) == ""
    assert not os.path.ismount(folder / "target")
    output(call("mount", *WRITABLE, "target"))
    assert (folder / "target/etc/motd").exists()


def _listed(call: Call, folder: Path) -> list[str]:
    """The line of `list` about the target, among whatever else is mounted here."""
    lines = map(str.split, output(call("list")).splitlines())
    (line,) = (line for line in lines if line[0] == f"{folder}/target")
    return line


def _await_mount(target: Path) -> None:
    """Until something is mounted: the kernel tells of every change of the table."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while f" {target} " not in table.read():
            assert changes.poll(30_000), "it does not come up"
            table.seek(0)


def test_the_list_shows_others_only_when_asked(call: Call, folder: Path) -> None:
    options = "lowerdir=app:base"
    command = ["mount", "-t", "overlay", "theirs", "-o", options, "target"]
    subprocess.run(command, cwd=folder, check=True)
    assert f"{folder}/target" not in output(call("list"))
    assert f"{folder}/target" in output(call("list", "--all"))
