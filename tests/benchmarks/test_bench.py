"""The command as a user runs it: small, but with every workload."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from benchmarks import runner
from benchmarks.peers import PEERS, Site
from benchmarks.scale import QUICK
from benchmarks.session import Job
from benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts in this namespace")

FILES = 900
PEERS_RUN = ("plain", "overlayfs", "library", "fuse-overlayfs")
BENCH = (sys.executable, "-m", "unionfs.cli", "bench")


def _leftovers(folder: Path) -> list[str]:
    """What is still in the folder, mounted below it, or run by a process that names it."""
    found = os.listdir(folder)
    mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    found += [line for line in mounts if f"{folder}/" in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue  # it has ended
        if os.fsencode(f"{folder}/") in command:
            found.append(os.fsdecode(command))
    return found


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run printed and wrote. folder: where it worked."""

    printed: str
    document: dict[str, Any]
    page: str
    folder: Path

    def rows(self, **wanted: object) -> list[dict[str, Any]]:
        """The rows that have these values."""
        return [row for row in self.document["rows"] if wanted.items() <= row.items()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All workloads over the peers that every other one is compared with."""
    folder, output = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("output")
    options = ["--quick", f"--files={FILES}", *(f"--peer={name}" for name in PEERS_RUN)]
    command = [*BENCH, *options, f"--folder={folder}", f"--output={output}"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads((output / "bench.json").read_text())
    return Ran(child.stdout, document, (output / "bench.html").read_text(), folder)


def test_every_workload_runs_on_the_kernel_and_is_compared_with_it(ran: Ran) -> None:
    rows = ran.rows(peer="overlayfs")
    assert [row["workload"] for row in rows] == list(WORKLOADS)
    assert [row["failure"] for row in rows] == [None] * len(rows)
    for row in rows:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["ratios"]["overlayfs"] == 1


def test_the_tree_has_as_many_files_as_asked_for(ran: Ran) -> None:
    assert ran.document["scale"]["files"] == FILES


def test_what_a_peer_cannot_do_is_shown_with_its_errno(ran: Ran) -> None:
    (row,) = ran.rows(peer="fuse-overlayfs", workload="rename-directory")
    assert row["failure"]["error"] == "EXDEV"
    assert row["median"] is None
    assert "EXDEV" in ran.printed
    assert "EXDEV" in ran.page


def test_every_other_workload_runs_on_every_peer_that_it_applies_to(ran: Ran) -> None:
    failed = {
        (row["workload"], row["peer"]): row["failure"]
        for row in ran.document["rows"]
        if row["failure"]
    }
    assert list(failed) == [("rename-directory", "fuse-overlayfs")]
    assert not ran.rows(peer="plain", workload="mount")
    assert not ran.rows(peer="library", workload="git-status")
    assert not ran.rows(peer="library", workload="mount")


def test_a_daemon_is_seen_with_its_memory_and_descriptors(ran: Ran) -> None:
    (daemon,) = ran.rows(peer="fuse-overlayfs", workload="walk-warm")
    (kernel,) = ran.rows(peer="overlayfs", workload="walk-warm")
    assert daemon["memory"] > 100_000
    assert daemon["descriptors"] > QUICK.clients
    assert (kernel["memory"], kernel["descriptors"]) == (0, 0)


def test_the_page_needs_nothing_from_elsewhere(ran: Ran) -> None:
    # plotly's script names addresses that it does not ask for
    own = ran.page.replace(ran.page[ran.page.index("<script>") : ran.page.index("</head>")], "")
    assert "<link" not in own
    assert "src=" not in own
    for workload in WORKLOADS.values():
        assert workload.title in own


def test_nothing_is_left(ran: Ran) -> None:
    assert _leftovers(ran.folder) == []


def test_peers_that_are_not_installed_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    plan, missing = runner.plan(["git-status", "mount"], list(PEERS), [5], 1, QUICK)
    assert missing["mergerfs"] == "no program mergerfs; run: apt-get install mergerfs"
    assert missing["git"] == "no such program; without it no git-status"
    assert {peer.name for peer in plan.peers}.isdisjoint(missing)
    assert [workload.name for workload in plan.workloads] == ["mount"]


def test_all_peers_take_turns_in_each_round_and_only_some_workloads_go_deep() -> None:
    plan, _ = runner.plan(["walk-warm", "create"], ["plain", "overlayfs"], [5, 60], 2, QUICK)
    steps = [
        (number, workload.name, layers, peer.name)
        for number, workload, layers, peer in plan.steps()
    ]
    assert len(steps) == 12
    assert [step[:3] for step in steps[::2]] == [
        (number, *what)
        for number in (0, 1)
        for what in (("walk-warm", 5), ("walk-warm", 60), ("create", 5))
    ]
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert {first[3], second[3]} == {"plain", "overlayfs"}
    assert plan.fixtures() == [("tree", 5), ("tree", 60), ("empty", 5)]


def test_a_peer_that_fails_is_not_asked_again_and_leaves_nothing(tmp_path: Path) -> None:
    """fuse-overlayfs cannot look into a layer that is gone."""
    plan, _ = runner.plan(["walk-warm"], ["fuse-overlayfs"], [2], 2, QUICK)
    step = (WORKLOADS["walk-warm"], 2, PEERS["fuse-overlayfs"])
    with runner.Bench(plan, str(tmp_path)) as bench:
        bench.prepare("tree", 2)
        (folder,) = tmp_path.iterdir()
        shutil.rmtree(folder / "tree/2/0")
        first, second = bench.measure(0, *step), bench.measure(1, *step)
    assert first is not None
    assert first.outcome.seconds is None
    assert first.outcome.message
    assert second is None
    assert _leftovers(tmp_path) == []


def test_no_peer_can_write_to_the_fixture(tmp_path: Path) -> None:
    """A peer whose upper lies among the layers: only what makes them read-only stops it."""
    merged, layer, target = tmp_path / "merged", tmp_path / "layer", tmp_path / "site/union"
    for path in (merged, layer, target):
        path.mkdir(parents=True)
    site = Site(str(merged), (str(layer),), str(tmp_path / "site"))
    outcome = runner.in_session(Job("plain", "create", site, QUICK, drop=False), rootless=False)
    assert outcome.message is not None
    assert "Read-only file system" in outcome.message
    assert os.listdir(target) == []


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[tuple[int, BinaryIO]]:
    """A run in a terminal of its own: its process ID, and the terminal's other end.

    It writes a gigabyte, so that it is in the midst of it when it is seen to have begun.
    """
    command = [*BENCH, "--peer=fuse-overlayfs", "--workload=write-large", f"--folder={tmp_path}"]
    child, screen = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    with open(screen, "r+b", buffering=0) as stream:
        yield child, stream


def test_ctrl_c_ends_all_of_it(terminal: tuple[int, BinaryIO], tmp_path: Path) -> None:
    child, screen = terminal
    printed = b""
    while b"round 1" not in printed:
        printed += screen.read(4096)
    screen.write(b"\x03")
    with contextlib.suppress(OSError):  # EIO once nobody has the terminal open any more
        while screen.read(4096):
            pass
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert _leftovers(tmp_path) == []
