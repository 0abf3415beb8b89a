"""One measurement in a process of its own: start a peer, time a workload, take the peer down.

The process is the first one of a new PID namespace and has a mount namespace of its own, made by
unshare(1): whatever happens to it, its mounts, daemons and clients go with it, and every other
process in it belongs to the peer. The layers are mounted read-only, because mergerfs writes
to the files of a read-only branch.

The job comes as JSON on standard input, what came of it goes as JSON to standard output.
Cost: 0.1 s beside the workload.

Rules: pid_namespaces(7), mount_namespaces(7), proc_pid_statm(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from benchmarks.peers import PEERS, CurrentDirectory, Peer, PeerError, Site, View
from benchmarks.scale import Scale
from benchmarks.workloads import WORKLOADS, Room, Workload, WrongAnswer
from unionfs import mount_api

_QUIET: Final = 0.1
"""Seconds without computing after which a program counts as done with its start."""
_FLAGS: Final = {
    os.ST_NOSUID: "nosuid",
    os.ST_NODEV: "nodev",
    os.ST_NOEXEC: "noexec",
    os.ST_NOATIME: "noatime",
    os.ST_RELATIME: "relatime",
}


@final
@dataclass(frozen=True, slots=True)
class Job:
    """What to measure. peer, workload: their names. drop: as in `Room`."""

    peer: str
    workload: str
    site: Site
    scale: Scale
    drop: bool

    @classmethod
    def read(cls, text: str) -> Job:
        """The job that `json.dumps(dataclasses.asdict(job))` wrote."""
        values = json.loads(text)
        values["site"]["lower"] = tuple(values["site"]["lower"])
        return cls(**values | {"site": Site(**values["site"]), "scale": Scale(**values["scale"])})


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What the peer's processes hold; for the library what this process holds more than before.

    memory: resident bytes. descriptors: open ones.
    """

    memory: int
    descriptors: int

    def __sub__(self, other: Usage) -> Usage:
        # memory that was free before may have been given back
        memory = max(self.memory - other.memory, 0)
        return Usage(memory, self.descriptors - other.descriptors)


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: the seconds it took and the usage after it, or a failure.

    error: the errno's name where it is known. message: the failure in words.
    """

    seconds: float | None = None
    memory: int = 0
    descriptors: int = 0
    error: str | None = None
    message: str | None = None


def _protect(site: Site) -> None:
    """Mount the fixture on itself, read-only; an unprivileged remount must keep the other flags."""
    folder = os.path.commonpath([site.merged, *site.lower])
    flags = os.statvfs(folder).f_flag
    options = ",".join(["ro", *(name for flag, name in _FLAGS.items() if flags & flag)])
    command = ["mount", "--bind", "-o", options, folder, folder]
    subprocess.run(command, check=True, capture_output=True)


def _usage(process: str) -> Usage:
    with open(f"/proc/{process}/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return Usage(pages * os.sysconf("SC_PAGESIZE"), len(os.listdir(f"/proc/{process}/fd")))


def _reap(flags: int) -> None:
    """Put away the children that have ended; without WNOHANG wait until all have."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, flags)[0]:
            pass


def _daemon_usage() -> Usage:
    """Of all other processes here."""
    _reap(os.WNOHANG)
    own = str(os.getpid())
    others = [name for name in os.listdir("/proc") if name.isdecimal() and name != own]
    usages = [_usage(process) for process in others]
    return Usage(sum(one.memory for one in usages), sum(one.descriptors for one in usages))


def _start(peer: Peer, workload: Workload, site: Site) -> tuple[View, tuple[str, ...]]:
    """The union, and the directories that hold its files."""
    if peer.view is not None:
        return peer.view(site), site.lower
    if peer.mount is not None:
        peer.mount(site)
        os.chdir(site.target)
        return CurrentDirectory(), site.lower
    folder = site.merged
    if workload.writes:
        folder = site.target
        command = ["cp", "-a", f"{site.merged}/.", folder]
        subprocess.run(command, check=True, capture_output=True)
    os.chdir(folder)
    return CurrentDirectory(), (folder,)


def _others_time() -> int:
    """What all other processes here have computed for, in clock ticks."""
    own, total = str(os.getpid()), 0
    for process in os.listdir("/proc"):
        if process.isdecimal() and process != own:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{process}/stat", encoding="ascii") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
    return total


def _settle() -> None:
    """Wait until the peer's program has nothing left to do: some still start after they mounted."""
    before = -1
    while (now := _others_time()) != before:
        before = now
        time.sleep(_QUIET)


def _stop(site: Site) -> None:
    """Unmount, and wait until the daemon has ended."""
    os.chdir("/")
    if os.path.ismount(site.target):
        mount_api.umount(site.target, lazy=False)
        _reap(0)


def measure(job: Job) -> Outcome:
    """Do the job. Raises what the peer, the workload and their programs raise."""
    peer, workload = PEERS[job.peer], WORKLOADS[job.workload]
    times: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        times[what] = time.perf_counter() - start

    before = _usage("self")
    with timed("mount"):
        fs, places = _start(peer, workload, job.site)
    _settle()
    steps = workload.run(Room(fs, job.scale, places, job.drop))
    next(steps)
    os.sync()
    gc.collect()
    gc.disable()
    with timed("run"):
        next(steps, None)
    for _ in steps:
        pass
    usage = _usage("self") - before if peer.view is not None else _daemon_usage()
    with timed("unmount"):
        _stop(job.site)
    return Outcome(times[workload.timed], usage.memory, usage.descriptors)


def main() -> None:
    """Do the job on standard input; a failure of the peer is an outcome too."""
    job = Job.read(sys.stdin.read())
    try:
        _protect(job.site)
        outcome = measure(job)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        words = said[-1] if said else f"exit code {error.returncode}"
        outcome = Outcome(message=f"{error.cmd[0]}: {words}")
    except OSError as error:
        outcome = Outcome(error=errno.errorcode.get(error.errno or 0), message=str(error))
    except (PeerError, WrongAnswer) as error:
        outcome = Outcome(message=str(error))
    json.dump(dataclasses.asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
