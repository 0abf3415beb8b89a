"""Containers run by a real runtime."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import unionfs
from tests.cli.conftest import COMMAND
from unionfs.containers import Containers
from unionfs.images.platform import Platform
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

# crun refuses a machine that has control groups of both versions, so it gets one of its own
UNIFIED = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"',
    "sh",
)
PATIENCE = 120  # seconds after which a process counts as hung
BEFORE = {"crun": UNIFIED, "runc": ()}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def command(store: Store, runtime: str) -> list[str]:
    return [*BEFORE[runtime], *COMMAND, "run", "--store", store.root, "--runtime", runtime]


@pytest.fixture(params=["crun", "runc"])
def run(request: pytest.FixtureRequest, store: Store) -> Run:
    """`unionmount run` by each runtime, with options before the image `box`."""

    def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command(store, request.param), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            **options,
        )

    return call


def said(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_command_and_its_exit_status(run: Run, store: Store) -> None:
    assert said(run("--rm", "box", "cat", "/app")) == "program"
    done = run("--rm", "box", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert Containers(store).list() == []
    assert not [mount for mount in unionfs.list_mounts() if store.root in mount.target]


def test_what_a_container_wrote_stays_with_it(run: Run, store: Store) -> None:
    said(run("--name", "mine", "box", "sh", "-c", "echo mine > /app"))
    (container,) = Containers(store).list()
    assert (container.name, container.target) == ("mine", None)
    assert said(run("--rm", "box", "cat", "/app")) == "program"
    Containers(store).commit("mine", "box:2")
    assert said(run("--rm", "box:2", "cat", "/app")) == "mine\n"


def test_user_environment_and_directory(run: Run) -> None:
    options = ("-e", "MODE=slow", "-u", "app", "-w", "/home/app", "--hostname", "host")
    shown = said(run("--rm", *options, "box", "sh", "-c", "id; pwd; env; cat note; touch new"))
    assert "uid=7(app) gid=8(appgroup) groups=8(appgroup),9(extra)" in shown or (
        "uid=7(app) gid=8(appgroup) groups=9(extra)" in shown
    )
    assert "\n/home/app\n" in shown
    assert "MODE=slow\n" in shown
    assert "HOME=/home/app\n" in shown
    assert "HOSTNAME=host\n" in shown
    assert shown.endswith("a note")


def test_volumes_and_read_only(run: Run, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    volume = ("-v", f"{shared}:/data")
    said(run("--rm", *volume, "--read-only", "box", "sh", "-c", "echo x > /data/x; echo > /tmp/y"))
    assert (shared / "x").read_text() == "x\n"
    done = run("--rm", *volume, "--read-only", "box", "touch", "/new")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    done = run("--rm", "-v", f"{shared}:/data:ro", "box", "touch", "/data/new")
    assert "Read-only file system" in done.stderr


def test_directories_in_memory_and_variables_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# what it needs\n\nMODE=from a file\nOTHER=file\nFROM_HERE\n")
    variables = ("--env-file", str(tmp_path / "env"), "-e", "OTHER=given")
    script = 'echo new > /home/app/new; cat /proc/mounts; echo "$MODE, $OTHER, $FROM_HERE"'
    memory = ("--read-only", "--tmpfs", "/home/app:size=64k,mode=700")
    env = os.environ | {"FROM_HERE": "here"}
    shown = said(run("--rm", *variables, *memory, "box", "sh", "-c", script, env=env))
    assert shown.endswith("from a file, given, here\n")
    [mount] = [line for line in shown.splitlines() if " /home/app " in line]
    assert {"nosuid", "nodev", "size=64k", "mode=700"} <= {*mount.split()[3].split(",")}


def test_standard_input_is_handed_on_when_asked_for(store: Store) -> None:
    for option, shown in (("--interactive", b"typed"), ("--rm", b"")):
        arguments = [*command(store, "runc"), option, "box", "cat"]
        done = subprocess.run(arguments, input=b"typed", capture_output=True, check=True)
        assert done.stdout == shown


DOCKERS_CAPABILITIES = 0xA80425FB


def test_what_a_container_may_do(run: Run, tmp_path: Path) -> None:
    """As Linux tells it of a process."""

    def status(*options: str) -> dict[str, str]:
        shown = said(run("--rm", *options, "box", "cat", "/proc/self/status"))
        return dict(line.split(":\t", 1) for line in shown.splitlines() if ":\t" in line)

    usual = status()
    assert (usual["Seccomp"], usual["NoNewPrivs"]) == ("2", "0")
    assert int(usual["CapEff"], 16) == int(usual["CapBnd"], 16) == DOCKERS_CAPABILITIES
    assert int(status("-u", "app")["CapEff"], 16) == 0

    unconfined = status("--security-opt", "seccomp=unconfined", "--cap-add", "all")
    assert unconfined["Seccomp"] == "0"
    assert unconfined["CapEff"] == status_of_ours()["CapBnd"]
    bare = status("--cap-drop=all", "--cap-add=CAP_CHOWN", "--security-opt=no-new-privileges")
    assert (int(bare["CapEff"], 16), bare["NoNewPrivs"]) == (1, "1")
    assert int(status("-u", "app", "--cap-add=net_admin")["CapEff"], 16) == 1 << 12

    machine = Platform.of_this_machine().architecture
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["read"], "action": "SCMP_ACT_KILL", "includes": {"caps": ["CAP_BPF"]}},
            {"names": ["write"], "action": "SCMP_ACT_KILL", "excludes": {"arches": [machine]}},
        ],
    }
    (tmp_path / "own.json").write_text(json.dumps(profile))
    own = f"seccomp={tmp_path}/own.json"
    done = run("--rm", "--security-opt", own, "box", "/bin/busybox", "mkdir", "/new")
    assert "Function not implemented" in done.stderr


def status_of_ours() -> dict[str, str]:
    text = Path("/proc/self/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_what_of_the_kernel_is_closed(run: Run) -> None:
    script = "cat /proc/kcore; ls /sys/firmware; echo 1 > /proc/sys/kernel/panic"
    done = run("--rm", "box", "sh", "-c", script)
    assert done.stdout == ""
    assert "Read-only file system" in done.stderr


@contextlib.contextmanager
def started(store: Store, runtime: str, script: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`unionmount run` of a container called mine, whose script has said that it is ready."""
    arguments = [*command(store, runtime), "--name", "mine", "box", "sh", "-c", script]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            yield process
        except BaseException:
            process.kill()  # the container ends with the fixture
            raise


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_signal_reaches_the_container(store: Store, runtime: str) -> None:
    script = "trap 'exit 9' TERM; echo ready; while true; do sleep 0.1; done"
    with started(store, runtime, script) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 9


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_that_is_killed(store: Store, runtime: str) -> None:
    with started(store, runtime, "echo ready; exec sleep 1000") as process:
        (state,) = os.listdir(f"{store.root}/run")
        kill = (runtime, f"--root={store.root}/run", "kill", state, "KILL")
        subprocess.run([*BEFORE[runtime], *kill], check=True)
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL


@pytest.mark.parametrize("run", ["runc"], indirect=True)
def test_detached(run: Run, store: Store, tmp_path: Path) -> None:
    fifo = tmp_path / "shared/told"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    volume = f"{fifo.parent}:/data"
    script = "echo logged; echo running > /data/told; sleep 1000"
    assert said(run("-d", "--name", "mine", "-v", volume, "box", "sh", "-c", script)) == "mine\n"
    assert fifo.read_text() == "running\n"
    container = Containers(store).get("mine")
    assert container.target is not None
    assert Path(f"{store.root}/containers/mine/log").read_text() == "logged\n"
    pid = int(Path(f"{store.root}/containers/mine/pid").read_text())
    assert os.path.exists(f"/proc/{pid}")

    listed = subprocess.run(
        [*COMMAND, "containers", "--store", store.root, "--json"], capture_output=True, check=True
    )
    assert [each["state"] for each in json.loads(listed.stdout)] == ["running"]
    remove = [*COMMAND, "remove", "--store", store.root, "mine"]
    refused = subprocess.run(remove, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "it runs; remove it by force to end it" in refused.stderr
    subprocess.run([*remove, "--force"], check=True)
    assert Containers(store).list() == []


@pytest.mark.parametrize("run", ["runc"], indirect=True)
def test_stopping(run: Run, store: Store, tmp_path: Path) -> None:
    """By the signal that the image names; a command that does not heed it is killed."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, arguments[0], "--store", store.root, *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    fifo = tmp_path / "shared/told"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    waits = "echo up > /data/told; while :; do sleep 0.05; done"
    for name, traps in (
        ("heeds", "trap 'echo asked > /note; exit' TERM"),
        ("ignores", "trap '' TERM"),
    ):
        script = f"echo begun; {traps}; {waits}"
        detached = ("-d", "--name", name, "-v", f"{fifo.parent}:/data")
        said(run(*detached, "box", "sh", "-c", script))
        assert fifo.read_text() == "up\n"
        assert said(call("logs", name)) == "begun\n"
    assert said(call("stop", "heeds", "-t", str(PATIENCE))) == ""
    assert said(call("stop", "--time", "0", "ignores")) == ""
    assert [container.target for container in Containers(store).list()] == [None, None]
    assert said(call("diff", "heeds")) == "A  /data\nA  /note\n"
    assert said(call("diff", "ignores")) == "A  /data\n"
    assert "it does not run" in call("stop", "heeds").stderr
    Containers(store).create("box", "never")
    assert "it was never run with --detach" in call("logs", "never").stderr
    assert "no such container" in call("logs", "absent").stderr


def test_a_terminal(store: Store) -> None:
    ours, its = os.openpty()
    with open(ours, "rb", buffering=0) as screen:
        script = "test -t 0 && test -t 1 && echo $TERM"
        arguments = [*command(store, "runc"), "--rm", "--tty", "box", "sh", "-c", script]
        process = subprocess.Popen(arguments, stdin=its, stdout=its, stderr=its)
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # EIO at its end
            while chunk := screen.read(1024):
                shown += chunk
    assert (process.wait(), shown) == (0, b"xterm\r\n")


@pytest.mark.parametrize("run", ["runc"], indirect=True)  # crun wants to lock memory for it
def test_limits(run: Run) -> None:
    forks = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i + 1)); done; echo made"
    assert said(run("--rm", "--pids", "30", "box", "sh", "-c", forks)) == "made\n"
    done = run("--rm", "--pids", "10", "box", "sh", "-c", forks)
    assert done.returncode != 0
    assert "can't fork" in done.stderr


def test_what_cannot_run_leaves_nothing(run: Run, store: Store) -> None:
    for arguments, words in (
        (("absent",), "the store has no such image"),
        (("-u", "nobody", "box"), "the image has no such user"),
        (("-v", "/absent:/data", "box"), "does not exist"),
        (("--rm", "-d", "box"), "goes with none"),
        (("--tmpfs", "data", "box"), "not absolute"),
        (("--env-file", "/absent", "box"), "No such file"),
        (("--cap-add", "fly", "box"), "no such capability"),
        (("--security-opt", "apparmor=x", "box"), "is not known"),
        (("--security-opt", "seccomp=/etc/passwd", "box"), "not a seccomp profile"),
        (("--security-opt", "seccomp=/absent", "box"), "No such file"),
    ):
        done = run(*arguments)
        assert done.returncode in (1, 2)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    for how in ("--rm", "-d"):
        for program, status in (("/no/such/program", 127), ("absent", 127), ("/app", 126)):
            done = run(how, "box", program)
            assert done.returncode == status
            assert done.stderr.count("\n") == 1
    assert Containers(store).list() == []
    assert not [mount for mount in unionfs.list_mounts() if store.root in mount.target]
