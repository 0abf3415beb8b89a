"""The report in a terminal: what is going on, and in the end a table."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import words
from benchmarks.results import BASELINES, Report, Row, Sample
from benchmarks.runner import Bench
from benchmarks.workloads import WORKLOADS

_LEGEND = (
    "Medians of the rounds and how far they spread; ÷: times as long as that one; resident memory "
    "and open descriptors of the peer's processes afterwards."
)


def run(bench: Bench, console: Console) -> list[Sample]:
    """Run the plan, and show how far it is."""
    samples = []
    needed, steps = bench.plan.fixtures(), list(bench.plan.steps())
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    # once a second: to draw the bar takes time from what is measured
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as progress:
        task = progress.add_task("", total=len(needed) + len(steps))
        for fixture, count in needed:
            progress.update(task, description=f"building: {fixture} in {count} layers")
            bench.prepare(fixture, count)
            progress.advance(task)
        for number, workload, count, peer in steps:
            where = f"round {number + 1}, {count} layers"
            progress.update(task, description=f"{where}: {workload.name}, {peer.name}")
            sample = bench.measure(number, workload, count, peer)
            if sample is not None:
                samples.append(sample)
            progress.advance(task)
    return samples


def show(report: Report, console: Console) -> None:
    """Print the table and what one must know to read it."""
    for name, value in report.machine.items():
        console.print(f"[bold]{name}[/] {escape(value)}", highlight=False)
    for name, reason in report.missing.items():
        console.print(f"[yellow]not run: {escape(name)}[/]: {escape(reason)}", highlight=False)
    console.print(f"{_LEGEND}\n", highlight=False)
    headings = True
    for (name, layers), rows in groupby(report.rows, lambda row: (row.workload, row.layers)):
        console.print(f"[bold]{escape(WORKLOADS[name].title)}[/], {layers} layers", highlight=False)
        table = _table(headings)
        for row in rows:
            table.add_row(*_cells(row, report))
        console.print(table)
        headings = False
    failed: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.failure is not None:
            key = (row.peer, words.failure(row))
            failed.setdefault(key, []).append(f"{row.workload} ({row.layers})")
    for (peer, why), where in failed.items():
        line = f"{peer}: {why}: {', '.join(where)}"
        console.print(f"[red]failed[/] {escape(line)}", highlight=False)


def _table(headings: bool) -> Table:
    """A table 80 columns wide, in line with those above it."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_header=headings,
        header_style="dim",
    )
    table.add_column(width=20)
    ratios = ((f"÷ {name}".replace("-", "-\n"), 9) for name in BASELINES)
    columns = (("median", 7), ("spread", 6), ("each", 12), *ratios, ("MiB", 5), ("fds", 4))
    for heading, width in columns:
        table.add_column(heading, justify="right", width=width)
    return table


def _cells(row: Row, report: Report) -> list[str]:
    name = f" {row.peer}"
    if row.median is None:
        return [name, f"[red]{(row.failure and row.failure.error) or 'failed'}[/]"]
    return [
        name,
        words.duration(row.median),
        words.spread(row),
        words.pace(row.median, WORKLOADS[row.workload], report.scale),
        *(words.ratio(row.ratios.get(name)) for name in BASELINES),
        words.memory(row.memory),
        str(row.descriptors or ""),
    ]
