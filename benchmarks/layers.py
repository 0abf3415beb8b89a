"""How long layers take to unpack and to make, beside the tools that others use for it.

    python -m benchmarks.layers [--quick] [--rounds N] [--folder DIR] [-o DIR]

Each tool is run as its user runs it, start included, on the same files: many small ones, and few
large ones.

    unpack   a blob, made by tar and umoci's gzip, into a directory
    import   an image of that layer into a store, ready to run
    make     a layer of the whole tree, by each tool's own default compression
    commit   a container whose changes are that tree, as an image

Within a round the tools take turns in an order that changes, each on a new ext4 filesystem in a
file: on an old one, unpacking takes up to ten times as long, as ext4 passes over inodes that were
freed lately. A ratio is of medians, above 1 where the other tool is slower than unionmount; CPU is
the time that the tool's processes computed, in the kernel too. Everything lies in one folder and is
gone with it. Takes 4 GB, and root, who mounts.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final, final

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report

OURS: Final = "unionmount"
MIB: Final = 1 << 20
_DISK: Final = 4 << 30
"""Bytes of a filesystem in which a tool works; blocks that nothing was written to take none."""
_UNIONMOUNT: Final = (sys.executable, "-m", "unionfs.cli")
_IMAGE: Final = "layout:tree"
_BASE: Final = "base:base"


@final
@dataclass(frozen=True, slots=True)
class Tree:
    """What a layer holds. files: how many; data: bytes in all."""

    title: str
    files: int
    data: int


TREES: Final = {
    "small": Tree("many small files", 20_000, 100 * MIB),
    "large": Tree("few large files", 8, 400 * MIB),
}
QUICK: Final = {
    "small": Tree("many small files", 200, MIB),
    "large": Tree("few large files", 2, 4 * MIB),
}

Command = Sequence[str]
Steps = Callable[[Path], Sequence[Command]]
"""Commands, run in an empty folder. They are told where `tree`, `base` and `layout` lie."""


@final
@dataclass(frozen=True, slots=True)
class Tool:
    """What is measured of a tool. It makes `out`. before: what comes first, and does not count."""

    steps: Steps
    before: Steps = lambda sources: ()


def _blob(sources: Path) -> str:
    """The one layer of the layout."""
    blobs = (sources / "layout/blobs/sha256").iterdir()
    return str(max(blobs, key=lambda blob: blob.stat().st_size))


def _apply(sources: Path) -> Sequence[Command]:
    blob = _blob(sources)
    digest = f"sha256:{os.path.basename(blob)}"
    return [[*_UNIONMOUNT, "layer", "apply", "--digest", digest, blob, "out"]]


def _skopeo(sources: Path) -> Sequence[Command]:
    name = os.path.basename(_blob(sources))
    return [
        ["skopeo", "copy", "--quiet", f"oci:{sources}/{_IMAGE}", "dir:copied"],
        ["mkdir", "out"],
        ["tar", "-xzf", f"copied/{name}", "-C", "out"],
    ]


def _store(*words: str) -> Command:
    """A command of ours on a store of its own."""
    command = 2 if words[0] == "image" else 1
    return [*_UNIONMOUNT, *words[:command], "--store", "out", *words[command:]]


_PODMAN: Final = (
    'podman --root "$PWD/out" --runroot "$PWD/run" --tmpdir "$PWD/tmp" --storage-driver overlay'
    " --cgroup-manager cgroupfs --events-backend file"
)
"""With a store of its own, which it takes no relative path of."""
_ALONE: Final = ("unshare", "--mount", "sh", "-ec")
"""For podman leaves mounts behind."""


_FILL_PODMAN: Final = (
    f'cp -a "$1/tree/." "$({_PODMAN} inspect -f "{{{{.GraphDriver.Data.UpperDir}}}}" container)"'
)


def _podman(*words: str) -> Command:
    return [*_ALONE, f'{_PODMAN} "$@"', "podman", *words]


def _filled(sources: Path, directory: str) -> Command:
    return ["cp", "-a", f"{sources}/tree/.", directory]


UNPACK: Final[Mapping[str, Tool]] = {
    OURS: Tool(_apply),
    "umoci": Tool(lambda at: [["umoci", "raw", "unpack", "--image", f"{at}/{_IMAGE}", "out"]]),
    "skopeo and tar": Tool(_skopeo),
    "tar": Tool(lambda at: [["mkdir", "out"], ["tar", "-xzf", _blob(at), "-C", "out"]]),
}
IMPORT: Final[Mapping[str, Tool]] = {
    OURS: Tool(lambda at: [_store("image", "import", f"{at}/layout")]),
    "podman": Tool(
        lambda at: [_podman("load", "-i", "layout")],
        # the path is read as an image's name, which not every path is
        lambda at: [["ln", "-s", f"{at}/layout", "layout"]],
    ),
}
MAKE: Final[Mapping[str, Tool]] = {
    OURS: Tool(
        lambda at: [
            ["mkdir", "empty"],
            [*_UNIONMOUNT, "layer", "write", "--lower", f"{at}/tree", "--lower", "empty", "out"],
        ]
    ),
    "umoci": Tool(
        lambda at: [
            ["umoci", "init", "--layout", "out"],
            ["umoci", "new", "--image", "out:made"],
            ["umoci", "insert", "--image", "out:made", f"{at}/tree", "/"],
        ]
    ),
    "tar": Tool(lambda at: [["tar", "-czf", "out", "-C", f"{at}/tree", "."]]),
}
COMMIT: Final[Mapping[str, Tool]] = {
    OURS: Tool(
        lambda at: [_store("commit", "container", "made")],
        lambda at: [
            _store("image", "import", f"{at}/base"),
            _store("create", "--name", "container", "base:base"),
            _filled(at, "out/snapshots/2/fs"),  # the upper of the container; 1 is the base
        ],
    ),
    "podman": Tool(
        lambda at: [_podman("commit", "--quiet", "container", "made")],
        lambda at: [
            ["ln", "-s", f"{at}/base", "base"],
            _podman("load", "-i", "base"),
            _podman("create", "--name", "container", "localhost/base", "true"),
            [*_ALONE, _FILL_PODMAN, "podman", str(at)],
        ],
    ),
    "umoci": Tool(
        lambda at: [["umoci", "repack", "--image", "out:made", "bundle"]],
        lambda at: [
            ["cp", "-a", f"{at}/base", "out"],
            ["umoci", "unpack", "--image", "out:base", "bundle"],
            _filled(at, "bundle/rootfs"),
        ],
    ),
}
TASKS: Final = {"unpack": UNPACK, "import": IMPORT, "make": MAKE, "commit": COMMIT}


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A tool's rounds of one task. seconds: of each. ratio: to unionmount. size: bytes made.

    computed: seconds of processors, of each round.
    """

    task: str
    tree: str
    tool: str
    seconds: tuple[float, ...]
    computed: tuple[float, ...]
    ratio: float
    size: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def build(folder: Path, tree: Tree) -> None:
    """Make the files, an image of them, and one to begin with; they are the same in every run."""
    random = Random(tree.files)
    words = [random.randbytes(random.randint(1, 5)).hex().encode() for _ in range(4000)]
    pool = b" ".join(random.choices(words, k=200_000)) + random.randbytes(MIB // 4)
    for number in range(tree.files):
        path = folder / f"tree/usr/lib/p{number // 400}/d{number // 20}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        left = round(tree.data / tree.files * random.uniform(0.2, 1.8))
        with path.open("wb") as file:
            while left > 0:
                start = random.randrange(len(pool))
                left -= file.write(pool[start : start + min(left, 50_000)])
    (folder / "small").mkdir()
    (folder / "small/file").touch()
    # umoci's own archives of a tree lack their end, which tar complains of
    for directory, layout, image in (("tree", "layout", _IMAGE), ("small", "base", _BASE)):
        for command in (
            ["tar", "-cf", "layer.tar", "-C", directory, "."],
            ["umoci", "init", "--layout", layout],
            ["umoci", "new", "--image", image],
            ["umoci", "raw", "add-layer", "--image", image, "layer.tar"],
            ["rm", "layer.tar"],
        ):
            _run(folder, command)


def _run(folder: Path, command: Command) -> None:
    """Run a command in a folder. Raises OSError with what it said."""
    home = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | home, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise OSError(done.returncode, "; ".join(lines), " ".join(command))


@contextmanager
def _new_filesystem(folder: Path) -> Iterator[None]:
    """A new ext4 at a new folder, gone after the block."""
    folder.mkdir()
    disk = folder.with_suffix(".ext4")
    try:
        with disk.open("wb") as file:
            file.truncate(_DISK)
        # all is made at once: the kernel would make the rest while a tool works
        options = "lazy_itable_init=0,lazy_journal_init=0"
        _run(folder, ["mkfs.ext4", "-q", "-F", "-E", options, str(disk)])
        _run(folder, ["mount", "-o", "loop", str(disk), str(folder)])
        try:
            yield
        finally:
            _run(folder.parent, ["umount", str(folder)])
    finally:
        disk.unlink(missing_ok=True)
        folder.rmdir()


def measure(folder: Path, sources: Path, tool: Tool) -> tuple[float, float, int]:
    """Seconds that a tool takes in a folder, those of processors, and bytes of what it made."""
    for command in tool.before(sources):
        _run(folder, command)
    commands = tool.steps(sources)
    os.sync()
    start, computed = time.perf_counter(), _computed()
    for command in commands:
        _run(folder, command)
    seconds, computed = time.perf_counter() - start, _computed() - computed
    out = folder / "out"
    files = out.rglob("*") if out.is_dir() else [out]
    return seconds, computed, sum(f.lstat().st_size for f in files if f.is_file())


def _computed() -> float:
    """Seconds of processors that the commands so far took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows(folder: Path, name: str, tree: Tree, rounds: int) -> Iterator[Row]:
    """Measure all tasks and tools on one tree."""
    build(folder, tree)
    runs = [(task, tool) for task, tools in TASKS.items() for tool in tools]
    found: dict[tuple[str, str], list[tuple[float, float, int]]] = {run: [] for run in runs}
    for number in range(rounds):
        for task, tool in Random(number).sample(runs, len(runs)):
            here = folder / "w"  # podman takes no long paths
            with _new_filesystem(here):
                found[task, tool].append(measure(here, folder, TASKS[task][tool]))
    for (task, tool), taken in found.items():
        seconds, computed = (tuple(each[column] for each in taken) for column in (0, 1))
        ours = statistics.median(each[0] for each in found[task, OURS])
        ratio = statistics.median(seconds) / ours
        yield Row(task, name, tool, seconds, computed, ratio, taken[-1][2])


@report.command(rounds=5)
def bench(rounds: int, quick: bool, folder: str, output: Path | None) -> None:
    """Compare how long layers take to unpack and to make."""
    missing = [name for name in ("umoci", "skopeo", "tar", "podman") if not shutil.which(name)]
    if missing:
        raise click.ClickException(f"not installed: {', '.join(missing)}; install them by apt")
    console = Console()
    found: list[Row] = []
    for name, tree in (QUICK if quick else TREES).items():
        with TemporaryDirectory(prefix="layers-", dir=folder) as place:
            found += rows(Path(place), name, tree, rounds)
        _show(console, tree, [row for row in found if row.tree == name])
    report.write(output, "layers", folder, rounds, found)


def _show(console: Console, tree: Tree, found: Sequence[Row]) -> None:
    title = f"{tree.title}: {tree.files}, {tree.data // MIB} MiB"
    table = Table("task", "tool", title=title, title_justify="left", box=None)
    for heading in ("median", "fastest", f"÷ {OURS}", "CPU", "MB"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row.task,
            row.tool,
            f"{row.median:.2f} s",
            f"{min(row.seconds):.2f} s",
            f"{row.ratio:.2f}",
            f"{statistics.median(row.computed):.2f} s",
            f"{row.size / 1e6:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    bench()
