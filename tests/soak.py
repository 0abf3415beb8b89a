"""One FUSE mount under a mixed load for as long as asked: `python -m tests.soak MINUTES`.

64 clients in eight processes create, read, write, map, lock, link, rename, list and remove files
of their own, copy lower ones up and take them away, and read what all share. Each knows what every
file of its own has to hold. Meanwhile the mount's memory, descriptors and threads are counted:
after a warm-up of a quarter of the time, a line through the samples may rise no more than `_FLAT`
allows. At the end the descriptors are as many as before the clients came, the log holds no
complaint, `unionmount fsck` finds nothing, and kernel overlayfs shows the content that the clients
left. Needs root.
"""

import fcntl
import hashlib
import mmap
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_EXCEPTION,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import final

from tests.conformance.doors import Folder, Layers, fuse, kernel
from tests.tree import MARKS

_PROCESSES, _THREADS = 8, 8
_CLIENTS = _PROCESSES * _THREADS
_SAMPLES = 240
_SHARED = 200
_LOWER_A_MINUTE = 4  # directories of lower files that a client copies up and removes
_STEPS = 60  # of a client, between two removals of all that it has made
_PATIENCE = 30  # seconds until the kernel has released what was closed
_FLAT = {"KiB resident": (0.05, 2048), "descriptors": (0.05, 16), "threads": (0.05, 4)}
"""By how much the line may rise from warm-up to end: a share of the mean, or so many, if more."""

_counting = threading.Lock()


def content(*name: object, most: int = 1 << 14) -> bytes:
    """What the file of a name holds, of up to that many bytes."""
    made = random.Random(repr(name))
    return made.randbytes(made.randrange(most))


@final
class Client:
    """One client: `files` is what its directory has to hold."""

    def __init__(self, union: Path, number: int, start: float, end: float, lower: int) -> None:
        self.random = random.Random(number)
        self.number, self.start, self.end, self.lower = number, start, end, lower
        self.union, self.own = union, union / "own" / str(number)
        self.files: dict[str, bytes] = {}
        self.done: Counter[str] = Counter()
        self.taken = self.named = 0

    def run(self) -> None:
        """Until the end; nothing of its own is left then."""
        steps = [getattr(self, name) for name in dir(Client) if name.startswith("on_")]
        while time.monotonic() < self.end:
            for _ in range(_STEPS):
                step = self.random.choice(steps)
                step()
                self.done[step.__name__.removeprefix("on_")] += 1
            self.take()
            self.clear()

    def clear(self) -> None:
        """Remove all."""
        assert {entry.name for entry in os.scandir(self.own)} == {*self.files}
        shutil.rmtree(self.own)
        self.own.mkdir()
        self.files.clear()

    def new(self) -> Path:
        """A name that was never there."""
        self.named += 1
        return self.own / f"file-{self.named}"

    def any(self) -> Path:
        """A file of its own, made if there is none."""
        if not self.files:
            self.on_create()
        return self.own / self.random.choice([*self.files])

    def check(self, path: Path) -> None:
        assert path.read_bytes() == self.files[path.name], path

    def on_create(self) -> None:
        path = self.new()
        self.files[path.name] = content(self.number, self.named, most=1 << 16)
        path.write_bytes(self.files[path.name])

    def on_read(self) -> None:
        self.check(self.any())

    def on_append(self) -> None:
        path = self.any()
        with open(path, "ab") as stream:
            stream.write(b"appended")
        self.files[path.name] += b"appended"

    def on_write(self) -> None:
        path = self.any()
        size = len(self.files[path.name])
        at, data = self.random.randrange(size + 1), content(self.random.random(), most=8192)
        with open(path, "r+b") as stream:
            stream.seek(at)
            stream.write(data)
            stream.flush()
            if self.random.random() < 0.1:
                os.fsync(stream.fileno())
        held = self.files[path.name]
        self.files[path.name] = held[:at] + data + held[at + len(data) :]
        self.check(path)

    def on_truncate(self) -> None:
        path = self.any()
        size = self.random.randrange(1 << 15)
        os.truncate(path, size)
        self.files[path.name] = self.files[path.name][:size].ljust(size, b"\0")
        self.check(path)

    def on_rename(self) -> None:
        path, other = self.any(), self.random.choice([self.any(), self.new()])
        path.rename(other)
        self.files[other.name] = self.files.pop(path.name)
        self.check(other)

    def on_unlink(self) -> None:
        path = self.any()
        with open(path, "rb") as stream:
            path.unlink()
            assert stream.read() == self.files.pop(path.name), path

    def on_link(self) -> None:
        path, other = self.any(), self.new()
        os.link(path, other)
        assert other.stat().st_nlink == path.stat().st_nlink == 2
        other.unlink()

    def on_symlink(self) -> None:
        path, link = self.any(), self.new()
        link.symlink_to(path.name)
        assert link.read_bytes() == self.files[path.name]
        link.unlink()

    def on_directory(self) -> None:
        directory = self.new()
        directory.mkdir()
        names = {str(number) for number in range(self.random.randrange(20))}
        for name in names:
            (directory / name).touch()
        assert {*os.listdir(directory)} == names
        shutil.rmtree(directory)

    def on_list(self) -> None:
        assert {*os.listdir(self.own)} == {*self.files}

    def on_stat(self) -> None:
        path = self.any()
        assert path.stat().st_size == len(self.files[path.name])
        assert not self.new().exists()

    def on_attribute(self) -> None:
        path, value = self.any(), self.random.randbytes(20)
        os.setxattr(path, "user.soak", value)
        assert os.getxattr(path, "user.soak") == value
        assert os.listxattr(path) == ["user.soak"]
        os.removexattr(path, "user.soak")
        path.chmod(self.random.choice((0o600, 0o644)))

    def on_map(self) -> None:
        path = self.any()
        held = bytearray(self.files[path.name])
        if not held:
            return
        with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as view:
            at = self.random.randrange(len(held))
            assert view[:] == held, path
            view[at] = held[at] = self.random.randrange(256)
            view.flush()
        self.files[path.name] = bytes(held)
        self.check(path)

    def on_copy(self) -> None:
        path, other = self.any(), self.new()
        with open(path, "rb") as source, open(other, "wb") as target:
            size = len(self.files[path.name])
            while size and (copied := os.copy_file_range(source.fileno(), target.fileno(), size)):
                size -= copied
        self.files[other.name] = self.files[path.name]
        self.check(other)

    def on_nameless(self) -> None:
        fd = os.open(self.own, os.O_TMPFILE | os.O_RDWR)
        with open(fd, "r+b") as stream:
            stream.write(b"nameless")
            stream.seek(0)
            assert stream.read() == b"nameless"

    def on_count(self) -> None:
        """One more in a file of all clients, which the last one left whole."""
        with open(self.union / "count", "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            number = int(stream.read()) + 1
            stream.seek(0)
            stream.write(b"%d" % number)
            stream.flush()

    def on_share(self) -> None:
        """Files that are always there, between those that come and go."""
        shared = self.union / "shared"
        mine = shared / f"of-{self.number}"
        mine.touch()
        lost = {mine.name, *map(str, range(_SHARED))} - {*os.listdir(shared)}
        assert not lost, lost
        mine.unlink()
        name = self.random.randrange(_SHARED)
        assert (shared / str(name)).read_bytes() == content("shared", name)

    def take(self) -> None:
        """Copy lower files up, and take them away, evenly over the time."""
        passed = (time.monotonic() - self.start) / (self.end - self.start)
        while self.taken < min(passed, 1) * self.lower:
            key = self.number, self.taken
            directory = self.union / "lower" / str(self.number) / str(self.taken)
            files = lower_files(*key)
            for name in files:
                path = directory / name
                assert path.read_bytes() == files[name], path
                with open(path, "ab") as stream:
                    stream.write(b"more")
                assert path.read_bytes() == files[name] + b"more", path
            moved = self.new()
            directory.rename(moved)
            assert {*os.listdir(moved)} == {*files, "left"}
            assert (moved / "left").read_bytes() == b"left"
            assert (moved / "big").read_bytes() == files["big"] + b"more"
            shutil.rmtree(moved)
            self.taken += 1
            self.done["copy_up"] += len(files)


def lower_files(*key: int) -> dict[str, bytes]:
    """What one directory of lower files holds; now and then more than is copied at once."""
    big = 1 << 19 if key[1] % 8 == 0 else 1 << 15
    return {"small": content(*key, "small"), "big": content(*key, "big", most=big)}


def work(union: Path, numbers: range, start: float, end: float, lower: int) -> list[Client]:
    """The clients of one process."""
    clients = [Client(union, number, start, end, lower) for number in numbers]
    with ThreadPoolExecutor(len(clients)) as threads:
        list(threads.map(Client.run, clients))
    return clients


def _fill(layers: Layers, lower: int) -> None:
    top, bottom = Path(layers.lower[0]), Path(layers.lower[1])
    for folder in (top / "shared", bottom / "own"):
        folder.mkdir()
    for number in range(_SHARED):
        (top / "shared" / str(number)).write_bytes(content("shared", number))
    (top / "count").write_bytes(b"0")
    for client in range(_CLIENTS):
        (bottom / "own" / str(client)).mkdir()
        for number in range(lower):
            folder = bottom / "lower" / str(client) / str(number)
            folder.mkdir(parents=True)
            for name, data in {**lower_files(client, number), "left": b"left"}.items():
                (folder / name).write_bytes(data)


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """What the mount program has. seconds: since the clients began."""

    seconds: float
    resident: int  # KiB
    descriptors: int
    threads: int


def _sample(process: int, start: float) -> Sample:
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    descriptors = len(os.listdir(f"/proc/{process}/fd"))
    resident, threads = int(fields["VmRSS"].split()[0]), int(fields["Threads"])
    return Sample(time.monotonic() - start, resident, descriptors, threads)


def _rises(samples: list[Sample]) -> Iterator[str]:
    """What was not flat; each measure is printed."""
    settled = [one for one in samples if one.seconds >= samples[-1].seconds / 4]
    times, *measures = zip(*map(astuple, settled), strict=True)
    for (name, (share, least)), values in zip(_FLAT.items(), measures, strict=True):
        slope, _ = statistics.linear_regression(times, values)
        rise, mean = slope * (times[-1] - times[0]), statistics.fmean(values)
        bound = max(share * mean, least)
        print(
            f"{name}: mean {mean:.0f}, least {min(values)}, most {max(values)}, "
            f"rise {rise:+.1f} (bound {bound:.0f})"
        )
        if rise > bound:
            yield f"{name} rose by {rise:.1f}, more than {bound:.0f}"


def _watch(process: int, running: list[Future[list[Client]]], start: float, end: float) -> None:
    """Sample until all clients are done, and check."""
    samples: list[Sample] = []
    before = _sample(process, start)
    step = (end - start) / _SAMPLES
    while len(wait(running, step, FIRST_EXCEPTION).done) < len(running):
        for one in running:
            if one.done():
                one.result()
        samples.append(_sample(process, start))
        if len(samples) % (_SAMPLES // 12) == 0:
            print(samples[-1], flush=True)
    faults = [*_rises(samples)]
    patience = time.monotonic() + _PATIENCE
    while (after := _sample(process, start)).descriptors > before.descriptors:
        if time.monotonic() > patience:
            faults.append(f"descriptors: {before.descriptors} before, {after.descriptors} after")
            break
    print(f"before: {before}\nafter: {after}")
    if faults:
        raise RuntimeError("; ".join(faults))


def _verify(layers: Layers, clients: list[Client], lower: int) -> None:
    """What is left, by the kernel's own mount."""
    counted = sum(client.done["count"] for client in clients)
    with kernel(layers):
        union = Path(layers.target)
        assert int((union / "count").read_bytes()) == counted
        assert {*os.listdir(union / "shared")} == {*map(str, range(_SHARED))}
        digests = (hashlib.sha256(), hashlib.sha256())
        for number in range(_SHARED):
            digests[0].update(content("shared", number))
            digests[1].update((union / "shared" / str(number)).read_bytes())
        for client in clients:
            assert os.listdir(union / "own" / str(client.number)) == []
            kept = union / "lower" / str(client.number)
            assert {*os.listdir(kept)} == {str(number) for number in range(client.taken, lower)}
            for number in range(client.taken, lower):
                for name, data in lower_files(client.number, number).items():
                    digests[0].update(data)
                    digests[1].update((kept / str(number) / name).read_bytes())
        assert digests[0].digest() == digests[1].digest()


@contextmanager
def _layers() -> Iterator[Layers]:
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        layers = Layers(base)
        layers.make()
        yield layers
    finally:
        shutil.rmtree(base)


def main(minutes: float) -> int:
    """Run; 0 when all is as it has to be, 1 and a line when not."""
    lower = max(1, int(minutes * _LOWER_A_MINUTE))
    with _layers() as layers:
        _fill(layers, lower)
        clients: list[Client] = []
        spawn = multiprocessing.get_context("spawn")
        try:
            with fuse(layers) as door, ProcessPoolExecutor(_PROCESSES, spawn) as processes:
                assert isinstance(door, Folder) and door.program is not None
                with suppress(OSError):
                    door.getxattr(".", f"{MARKS}none")  # Python has to be there for that
                start = time.monotonic()
                end = start + minutes * 60
                running = [
                    processes.submit(work, Path(layers.target), numbers, start, end, lower)
                    for first in range(0, _CLIENTS, _THREADS)
                    for numbers in [range(first, first + _THREADS)]
                ]
                _watch(door.program.pid, running, start, end)
                clients = [client for one in running for client in one.result()]
            said = [line for line in layers.log.read_text().splitlines() if " INFO " not in line]
            if said:
                raise RuntimeError(f"{len(said)} lines in the log; the first: {said[0]}")
            command = [sys.executable, "-m", "unionfs.cli", "fsck", "-o", layers.options]
            subprocess.run(command, check=True)
            _verify(layers, clients, lower)
        except (AssertionError, OSError, RuntimeError, subprocess.CalledProcessError):
            traceback.print_exc()
            print("FAILED", file=sys.stderr)
            return 1
    done = sum((client.done for client in clients), Counter())
    print(f"{done.total()} operations: {dict(sorted(done.items()))}")
    print("passed")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or os.geteuid():
        sys.exit("usage, as root: python -m tests.soak MINUTES")
    sys.exit(main(float(sys.argv[1])))
