"""`unionmount bench`: hands on to `benchmarks`, which is in a source tree, and in no wheel."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click


@click.command("bench", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench_command(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Compare unions: how long everyday work takes in each, side by side."""
    home = Path(__file__).parents[2]
    if not (home / "benchmarks").is_dir():
        message = "the benchmarks come with unionmount's source tree alone; run `make bench` there"
        raise OSError(errno.ENOENT, message)
    sys.path.append(str(home))
    try:
        from benchmarks.command import bench
    except ImportError as error:
        message = f"{error}; run: pip install 'unionmount[bench]'"
        raise OSError(errno.ENOENT, message) from error
    context.exit(bench.main([*arguments], context.command_path, standalone_mode=False))
