"""How commands show how far they are: a line on standard error, if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.images.bring import How, Watch
    from unionfs.images.documents import Descriptor


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A function that is told of every step how large it was, while the line stands.

    what: it says that. total: in bytes; None where it is not known, and steps are counted.
    """
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (
        (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
        if total is None
        else (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda size: shown.advance(task, size)


@contextmanager
def transfers() -> Iterator[Watch]:
    """What is told of the blobs of an image while they are moved; a line with a bar for each."""
    if not sys.stderr.isatty():
        yield lambda blob, size, how: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, TaskID] = {}

        def watch(blob: Descriptor, size: int, how: How | None) -> None:
            name = blob.digest.partition(":")[2][:12]
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=blob.size)
            shown.update(tasks[name], advance=size, description=f"{name} {how or ''}")

        yield watch
