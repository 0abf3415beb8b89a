"""How long layers take to unpack and to make, beside the tools that others use for it.

    python -m benchmarks.layers [--quick] [--rounds N] [--folder DIR] [-o DIR]

Each tool is run as its user runs it, start included, on the same files: many small ones, and few
large ones. Unpacked is the same blob, made by tar and umoci's gzip, in an OCI layout; made is a
layer of the whole tree, by each tool's own default compression. Within a round the tools take turns
in an order that changes; a ratio is the median of the rounds' ratios, above 1 where the other tool
is slower than unionmount. Everything lies in one folder and is gone with it. Takes 2 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final, final

import click
from rich.console import Console
from rich.table import Table

from benchmarks import machine

OURS: Final = "unionmount"
MIB: Final = 1 << 20
_UNIONMOUNT: Final = (sys.executable, "-m", "unionfs.cli")
_IMAGE: Final = "layout:tree"


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
Tool = Callable[[Path], Sequence[Command]]
"""The commands of a tool, run in a folder: `tree`, `layout` and `empty` are there, `out` is not."""


def _blob(folder: Path) -> str:
    """The one layer of the layout."""
    blobs = (folder / "layout/blobs/sha256").iterdir()
    return str(max(blobs, key=lambda blob: blob.stat().st_size))


def _apply(folder: Path) -> Sequence[Command]:
    blob = _blob(folder)
    digest = f"sha256:{os.path.basename(blob)}"
    return [[*_UNIONMOUNT, "layer", "apply", "--digest", digest, blob, "out"]]


def _skopeo(folder: Path) -> Sequence[Command]:
    name = os.path.basename(_blob(folder))
    return [
        ["skopeo", "copy", "--quiet", f"oci:{_IMAGE}", "dir:copied"],
        ["mkdir", "out"],
        ["tar", "-xzf", f"copied/{name}", "-C", "out"],
    ]


UNPACK: Final[Mapping[str, Tool]] = {
    OURS: _apply,
    "umoci": lambda folder: [["umoci", "raw", "unpack", "--image", _IMAGE, "out"]],
    "skopeo and tar": _skopeo,
    "tar": lambda folder: [["mkdir", "out"], ["tar", "-xzf", _blob(folder), "-C", "out"]],
}
MAKE: Final[Mapping[str, Tool]] = {
    OURS: lambda folder: [
        [*_UNIONMOUNT, "layer", "write", "--lower", "tree", "--lower", "empty", "out"]
    ],
    "umoci": lambda folder: [
        ["umoci", "init", "--layout", "out"],
        ["umoci", "new", "--image", "out:made"],
        ["umoci", "insert", "--image", "out:made", "tree", "/"],
    ],
    "tar": lambda folder: [["tar", "-czf", "out", "-C", "tree", "."]],
}
TASKS: Final = {"unpack": UNPACK, "make": MAKE}


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A tool's rounds of one task. seconds: of each. ratio: to unionmount. size: bytes made."""

    task: str
    tree: str
    tool: str
    seconds: tuple[float, ...]
    ratio: float
    size: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def build(folder: Path, tree: Tree) -> None:
    """Make the files and their layout; they are the same in every run."""
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
    (folder / "empty").mkdir()
    # umoci's own archives of a tree lack their end, which tar complains of
    for command in (
        ["tar", "-cf", "tree.tar", "-C", "tree", "."],
        ["umoci", "init", "--layout", "layout"],
        ["umoci", "new", "--image", _IMAGE],
        ["umoci", "raw", "add-layer", "--image", _IMAGE, "tree.tar"],
        ["rm", "tree.tar"],
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
        raise OSError(done.returncode, lines[-1], " ".join(command))


def measure(folder: Path, tool: Tool) -> tuple[float, int]:
    """Seconds that a tool takes, and bytes of what it made."""
    for name in ("out", "copied"):
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
    commands = tool(folder)
    os.sync()
    start = time.perf_counter()
    for command in commands:
        _run(folder, command)
    seconds = time.perf_counter() - start
    out = folder / "out"
    if out.is_dir():
        return seconds, sum(f.lstat().st_size for f in out.rglob("*") if f.is_file())
    return seconds, out.stat().st_size


def rows(folder: Path, name: str, tree: Tree, rounds: int) -> Iterator[Row]:
    """Measure all tasks and tools on one tree."""
    build(folder, tree)
    for task, tools in TASKS.items():
        seconds: dict[str, list[float]] = {tool: [] for tool in tools}
        size: dict[str, int] = {}
        for number in range(rounds):
            for tool in Random(number).sample([*tools], len(tools)):
                took, size[tool] = measure(folder, tools[tool])
                seconds[tool].append(took)
        for tool, each in seconds.items():
            pairs = zip(each, seconds[OURS], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            yield Row(task, name, tool, tuple(each), ratio, size[tool])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", "-r", type=click.IntRange(1), default=5, show_default=True)
@click.option("--quick", is_flag=True, help="Small trees: for a look, or a test.")
@click.option(
    "--folder", type=click.Path(exists=True, file_okay=False), default="/var/tmp", show_default=True
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write layers.json.",
)
def bench(rounds: int, quick: bool, folder: str, output: Path | None) -> None:
    """Compare how long layers take to unpack and to make."""
    missing = [name for name in ("umoci", "skopeo", "tar") if not shutil.which(name)]
    if missing:
        raise click.ClickException(f"not installed: {', '.join(missing)}; install them by apt")
    console = Console()
    found: list[Row] = []
    for name, tree in (QUICK if quick else TREES).items():
        with TemporaryDirectory(prefix="layers-", dir=folder) as place:
            found += rows(Path(place), name, tree, rounds)
        _show(console, tree, [row for row in found if row.tree == name])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        report = {
            "machine": machine.describe(folder, drop=False),
            "rounds": rounds,
            "rows": [asdict(row) for row in found],
        }
        (output / "layers.json").write_text(json.dumps(report, indent=1))
        console.print(f"written: {output / 'layers.json'}", markup=False)


def _show(console: Console, tree: Tree, found: Sequence[Row]) -> None:
    title = f"{tree.title}: {tree.files}, {tree.data // MIB} MiB"
    table = Table("task", "tool", title=title, title_justify="left", box=None)
    for heading in ("median", "fastest", f"÷ {OURS}", "MB"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row.task,
            row.tool,
            f"{row.median:.2f} s",
            f"{min(row.seconds):.2f} s",
            f"{row.ratio:.2f}",
            f"{row.size / 1e6:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    bench()
