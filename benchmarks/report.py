"""What the benchmarks of layers and containers share: their options, and the report they write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks import machine

_OPTIONS: Final = (
    click.option("--quick", is_flag=True, help="Small amounts: for a look, or a test."),
    click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, resolve_path=True),
        default="/var/tmp",
        show_default=True,
        help="Where to work.",
    ),
    click.option(
        "--output",
        "-o",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where to write the report, as JSON.",
    ),
)


def command(rounds: int) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function, with --rounds, --quick, --folder and --output."""

    def decorated(function: Callable[..., None]) -> click.Command:
        kind = click.IntRange(1)
        one = click.option("--rounds", "-r", type=kind, default=rounds, show_default=True)
        for option in (*reversed(_OPTIONS), one):
            function = option(function)
        settings = {"help_option_names": ["-h", "--help"]}
        return click.command(context_settings=settings)(function)

    return decorated


def write(
    output: Path | None, name: str, folder: str, rounds: int, rows: Iterable[Any], **more: object
) -> None:
    """Write NAME.json into output, if that is asked for: on what machine, how often, which rows."""
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine.describe(folder, drop=False),
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
        **more,
    }
    path = output / f"{name}.json"
    path.write_text(json.dumps(document, indent=1))
    Console().print(f"written: {path}", markup=False)
