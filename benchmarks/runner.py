"""The run as a whole: fixtures, then every peer by turns in every round.

Within a round, all peers do one workload one after another, in an order that changes from round to
round, so that what the machine does meanwhile meets all of them. Each measurement has a fresh
upper and a process of its own (`session.py`). A peer that failed at a workload is not asked again:
it would fail the same way, and a peer that hangs costs minutes.

Everything lies in one folder and is gone with it, whatever happens.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from types import TracebackType
from typing import Final, final

from benchmarks import fixtures
from benchmarks.peers import PEERS, Peer, Site
from benchmarks.results import Sample
from benchmarks.scale import MIB, Scale
from benchmarks.session import Job, Outcome
from benchmarks.workloads import WORKLOADS, Workload

DROP_CACHES: Final = "/proc/sys/vm/drop_caches"

_PATIENCE: Final = 120
"""Seconds that a measurement may take before it counts as hung."""

_HOME: Final = str(Path(__file__).parent.parent)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. layers: how many; the workloads that are not `layered` run on the first alone.

    peers and workloads that cannot be run here are not in it.
    """

    workloads: tuple[Workload, ...]
    peers: tuple[Peer, ...]
    layers: tuple[int, ...]
    rounds: int
    scale: Scale

    def fixtures(self) -> list[tuple[str, int]]:
        """The fixtures and numbers of layers that are needed, each once."""
        return list(dict.fromkeys((step[1].fixture, step[2]) for step in self.steps()))

    def steps(self) -> Iterator[tuple[int, Workload, int, Peer]]:
        """Round, workload, layers, peer of each measurement."""
        for number in range(self.rounds):
            order = Random(number)
            for workload in self.workloads:
                for count in self.layers if workload.layered else self.layers[:1]:
                    peers = [peer for peer in self.peers if applies(workload, peer)]
                    order.shuffle(peers)
                    for peer in peers:
                        yield number, workload, count, peer


def applies(workload: Workload, peer: Peer) -> bool:
    """Whether the workload means anything for the peer: to unmount what is not mounted does not."""
    if peer.mount is None and workload.timed != "run":
        return False
    if peer.layered and not workload.layered:
        return False
    return peer.view is None or not workload.mounted


@final
class Bench:
    """A folder to measure in; a context manager that removes it.

    parent: where to make it; its filesystem is what all is measured on.
    """

    def __init__(self, plan: Plan, parent: str) -> None:
        self.plan = plan
        self.drop = os.access(DROP_CACHES, os.W_OK)
        self._folder = Path(mkdtemp(prefix="unionmount-bench-", dir=os.path.abspath(parent)))
        self._done = self._folder / "done"
        self._round = 0
        self._prepared: set[tuple[str, int, str]] = set()
        self._failed: set[tuple[str, int, str]] = set()

    def __enter__(self) -> Bench:
        """Compiles unionmount's Python, as pip does: the environment may keep others from it."""
        for package in ("unionfs", "fuse_mount"):
            compileall.compile_dir(f"{_HOME}/{package}", quiet=2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _remove(self._folder)

    def prepare(self, fixture: str, count: int) -> None:
        """Make a fixture, and its layers in that number."""
        folder = self._folder / fixture
        if not folder.exists():
            fixtures.make(fixture, self.plan.scale, folder / "merged")
        fixtures.spread(folder / "merged", self._layers(fixture, count))

    def _layers(self, fixture: str, count: int) -> list[Path]:
        return [self._folder / fixture / str(count) / str(number) for number in range(count)]

    def _put_away(self, base: Path) -> None:
        """Free the space that a measurement took, but keep its small files until the round ends.

        ext4 steps over each inode that was freed in the last five minutes (recently_deleted in
        fs/ext4/ialloc.c): whoever creates files next would pay, tenfold, for those removed here.
        """
        for top, _, names in os.walk(base):
            for name in names:
                if os.lstat(f"{top}/{name}").st_size > MIB:
                    os.unlink(f"{top}/{name}")
        self._done.mkdir(exist_ok=True)
        base.rename(self._done / str(len(os.listdir(self._done))))

    def _begin(self, number: int) -> None:
        """Begin a round: what the one before it left goes."""
        if number != self._round and self._done.exists():
            _remove(self._done)
        self._round = number

    def measure(self, number: int, workload: Workload, count: int, peer: Peer) -> Sample | None:
        """One step of the plan; None for what has failed before."""
        self._begin(number)
        key = (workload.name, count, peer.name)
        if key in self._failed:
            return None
        base = self._folder / "site"
        site = Site(
            merged=str(self._folder / workload.fixture / "merged"),
            lower=tuple(str(layer) for layer in self._layers(workload.fixture, count)),
            base=str(base),
        )
        for path in (site.upper, site.work, site.target):
            Path(path).mkdir(parents=True)
        layers = (workload.fixture, count, peer.name)
        if peer.prepare is not None and layers not in self._prepared:
            peer.prepare(site)
            self._prepared.add(layers)
        try:
            job = Job(peer.name, workload.name, site, self.plan.scale, self.drop)
            outcome = in_session(job, rootless=peer.rootless or os.geteuid() != 0)
        finally:
            self._put_away(base)
        if outcome.seconds is None:
            self._failed.add(key)
        return Sample(workload.name, count, peer.name, number, outcome)


def in_session(job: Job, *, rootless: bool) -> Outcome:
    """Have a new process do the job; its end is the end of all that it started."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if rootless:
        command += ["--user", "--map-root-user"]
    with subprocess.Popen(
        [*command, sys.executable, "-P", "-m", "benchmarks.session"],
        env=os.environ | {"PYTHONPATH": _HOME},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            said, complained = child.communicate(json.dumps(dataclasses.asdict(job)), _PATIENCE)
        except subprocess.TimeoutExpired:
            _end(child)
            return Outcome(message=f"took more than {_PATIENCE} s; it was ended")
        except BaseException:
            _end(child)
            raise
    if child.returncode:
        lines = complained.strip().splitlines() or [f"exit code {child.returncode}"]
        return Outcome(message=lines[-1])
    return Outcome(**json.loads(said))


def _end(unshare: subprocess.Popen[str]) -> None:
    """Kill the namespace's first process: that ends after all others, and unshare(1) after it."""
    if unshare.poll() is None:
        path = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        first = int(path.read_text("ascii") or unshare.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
        unshare.wait()


def _remove(folder: Path) -> None:
    """Remove all of it; kernel overlayfs leaves a directory that only root may look into."""
    for top, directories, _ in os.walk(folder):
        for name in directories:
            if not os.access(f"{top}/{name}", os.R_OK | os.W_OK | os.X_OK):
                os.chmod(f"{top}/{name}", 0o700)
    shutil.rmtree(folder)


def missing(peers: list[Peer], workloads: list[Workload]) -> dict[str, str]:
    """Why each peer, and each program that workloads need, is not there."""
    reasons = {peer.name: reason for peer in peers if (reason := peer.missing())}
    for program in dict.fromkeys(name for workload in workloads for name in workload.programs):
        if shutil.which(program) is None:
            names = ", ".join(one.name for one in workloads if program in one.programs)
            reasons[program] = f"no such program; without it no {names}"
    return reasons


def plan(
    workloads: Sequence[str],
    peers: Sequence[str],
    layers: Sequence[int],
    rounds: int,
    scale: Scale,
) -> tuple[Plan, dict[str, str]]:
    """The plan of what can be run of these, and why the rest cannot."""
    wanted = [WORKLOADS[name] for name in WORKLOADS if name in workloads]
    invited = [PEERS[name] for name in PEERS if name in peers]
    reasons = missing(invited, wanted)
    possible = tuple(one for one in wanted if not reasons.keys() & set(one.programs))
    present = tuple(peer for peer in invited if peer.name not in reasons)
    return Plan(possible, present, tuple(layers), rounds, scale), reasons
