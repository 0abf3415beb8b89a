"""How long a container takes to make and to mount, beside a bare mount of the same layers.

    python -m benchmarks.containers [--quick] [--folder DIR] [-o DIR]

Made are images of few and of many files, and containers over each, one after the other; of each
step, and of what making and mounting cost beyond a bare mount, it shows the median and the slowest.
Then many containers over one image: what each adds on disk. Needs root; all is gone at the end.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, cast, final

from rich.console import Console
from rich.table import Table

import unionfs
from benchmarks import report
from unionfs.containers import Containers
from unionfs.containers.container import Into
from unionfs.images import library
from unionfs.images.documents import Config, Descriptor, History, RootFs
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.layers import write_layer
from unionfs.stack import LayerStack
from unionfs.store import Store

FILES: Final = {"small": 10, "large": 30_000}
QUICK: Final = {"small": 10, "large": 100}
_PER_DIRECTORY: Final = 100


@final
@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds that a step took for containers over one image."""

    image: str
    files: int
    step: str
    median: float
    slowest: float


def make_image(store: Store, folder: Path, name: str, files: int) -> None:
    """An image of one layer with that many files of 4 KiB."""
    for number in range(files):
        path = folder / name / f"d{number // _PER_DIRECTORY}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(4096))
    with store.leases.hold():
        with LayerStack([folder / name]) as stack, store.blobs.writer() as writer:
            written = write_layer(stack, cast(BinaryIO, Into(writer)))
        here = Platform.of_this_machine()
        config = Config(architecture=here.architecture, os=here.os, rootfs=RootFs(()))
        layer = Descriptor(written.media_type, written.digest, written.size)
        image = library.add(store, config.after(History(), written.diff_id), [layer])
        library.tag(store, image.target, Reference.parse(name))
        library.unpack(store, image)


def rows(store: Store, folder: Path, image: str, files: int, rounds: int) -> Iterator[Row]:
    """Take containers over an image through their life."""
    taken: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        taken[step].append((time.perf_counter() - start) * 1000)

    containers = Containers(store)
    bare = folder / "bare"
    bare.mkdir(exist_ok=True)
    for number in range(rounds):
        name = f"{image}-{number}"
        with timed("create"):
            containers.create(image, name)
        with timed("mount"):
            containers.mount(name)
        containers.unmount(name)
        with store.snapshots.directories(name).open() as stack:
            with timed("bare mount"):
                mounted = unionfs.mount(stack, bare)
            mounted.unmount()
        with timed("remove"):
            containers.remove(name)
    columns = (taken["create"], taken["mount"], taken["bare mount"])
    taken["beyond it"] = [made + here - alone for made, here, alone in zip(*columns, strict=True)]
    for step, each in taken.items():
        yield Row(image, files, step, statistics.median(each), max(each))


def added(store: Store, image: str, count: int) -> float:
    """Bytes on disk that each of many containers over an image adds."""
    containers = Containers(store)
    before = store.usage().total
    for number in range(count):
        containers.create(image, f"many-{number}")
    return (store.usage().total - before) / count


@report.command(rounds=50)
def bench(rounds: int, quick: bool, folder: str, output: Path | None) -> None:
    """Measure how long containers take to make and to mount."""
    many = 10 if quick else 1000
    found: list[Row] = []
    with (
        TemporaryDirectory(prefix="containers-", dir=folder) as place,
        Store(f"{place}/store") as store,
    ):
        for image, files in (QUICK if quick else FILES).items():
            make_image(store, Path(place), image, files)
            found += rows(store, Path(place), image, files, rounds)
        each = added(store, image, many)
    table = Table("image", "files", "step", box=None)
    for heading in ("median", "slowest"):
        table.add_column(heading, justify="right")
    for row in found:
        times = (f"{row.median:.1f} ms", f"{row.slowest:.1f} ms")
        table.add_row(row.image, str(row.files), row.step, *times)
    console = Console()
    console.print(table)
    console.print(f"each of {many} containers over one image adds {each:.0f} bytes")
    report.write(output, "containers", folder, rounds, found, containers=many, bytes_each=each)


if __name__ == "__main__":
    bench()
