"""The command: what to run is chosen here, and where the results go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from benchmarks import machine, page, runner, terminal
from benchmarks.peers import PEERS
from benchmarks.results import Report, summarise
from benchmarks.scale import FULL, QUICK
from benchmarks.workloads import WORKLOADS

_UNSAFE = ":,=\\"


def _chosen(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Names, each once; without any, all that there are."""
    assert isinstance(parameter.type, click.Choice)
    return tuple(dict.fromkeys(names)) or tuple(parameter.type.choices)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Workloads: {', '.join(WORKLOADS)}.\n\nPeers: {', '.join(PEERS)}.",
)
@click.option(
    "--workload",
    "-w",
    "workloads",
    multiple=True,
    type=click.Choice(list(WORKLOADS)),
    metavar="NAME",
    callback=_chosen,
    help="Run this workload; may be repeated. Else all.",
)
@click.option(
    "--peer",
    "-p",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    metavar="NAME",
    callback=_chosen,
    help="Compare this peer; may be repeated. Else all that are installed.",
)
@click.option(
    "--layers",
    "-l",
    multiple=True,
    type=click.IntRange(1, 500),
    help="How many layers; may be repeated: the first is for all workloads, the others for those "
    "that depend on the number. Else 5, 60 and 500.",
)
@click.option(
    "--rounds", "-r", type=click.IntRange(1), help="How many rounds. Else 3; with --quick 1."
)
@click.option(
    "--files",
    type=click.IntRange(500),
    help=f"How many files the tree has. Else {FULL.files:,}; with --quick {QUICK.files}.",
)
@click.option("--quick", is_flag=True, help="Small amounts and 5 layers: for a look, or a test.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True),
    default="/var/tmp",
    show_default=True,
    help="Where to work: what filesystem is below the union. Takes 10 GB.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="Where to write bench.json and bench.html. Else here.",
)
def bench(
    workloads: tuple[str, ...],
    peers: tuple[str, ...],
    layers: tuple[int, ...],
    rounds: int | None,
    files: int | None,
    quick: bool,
    folder: str,
    output: Path,
) -> None:
    """Compare unions: how long everyday work takes in each, side by side.

    Prints a table, and writes bench.json and bench.html.
    """
    if set(_UNSAFE) & set(str(Path(folder).absolute())):
        message = f"{folder}: mount options cannot hold one of {_UNSAFE}; name another folder"
        raise click.BadParameter(message, param_hint="--folder")
    scale = QUICK if quick else FULL
    plan, missing = runner.plan(
        workloads,
        peers,
        layers=layers or ((5,) if quick else (5, 60, 500)),
        rounds=rounds or (1 if quick else 3),
        scale=replace(scale, files=files or scale.files),
    )
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    with runner.Bench(plan, folder) as running:
        on = machine.describe(folder, drop=running.drop)
        samples = terminal.run(running, console)
    versions = {peer.name: peer.version() for peer in plan.peers}
    report = Report(on, plan.scale, plan.rounds, versions, missing, summarise(samples))
    terminal.show(report, console)
    (output / "bench.json").write_text(json.dumps(report.document(), indent=1), "utf-8")
    (output / "bench.html").write_text(page.render(report), "utf-8")
    console.print(f"written: {output / 'bench.json'}, {output / 'bench.html'}", markup=False)
    if not samples:
        click.get_current_context().exit(1)
