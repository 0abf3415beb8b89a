"""The subcommands joined: found when called, listed by what they are for, errors as one line."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, final

import click

from unionfs.cli.__main__ import COMMANDS
from unionfs.cli.output import complain, describe
from unionfs.options import OptionError

_SECTIONS: Final = {
    "Mount": ("mount", "umount", "list"),
    "Look into a union, mounted or not": ("ls", "cat", "explain", "diff", "fsck"),
    "Layers and images": ("image", "pull", "push", "build", "layer"),
    "Containers over images": ("run", "logs", "stop", "create", "containers", "commit", "remove"),
    "What images and containers are kept in": ("store", "snapshot"),
    "This machine": ("doctor", "bench", "completion"),
}
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@final
class _Ended(BaseException):
    """A signal asks for the end; what was begun is undone on the way out.

    It is no KeyboardInterrupt, of which click and subprocess make something of their own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, _: object) -> None:
    raise _Ended(number)


@final
class _Commands(click.Group):
    """Imports the module of a subcommand when it is called, of all of them for `--help`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"unionfs.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                found = ((name, self.get_command(ctx, name)) for name in names)
                formatter.write_dl(
                    [(name, command.get_short_help_str(80)) for name, command in found if command]
                )


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="As a mount program: unionmount -o lowerdir=TOP:BASE,upperdir=DIR,workdir=DIR TARGET",
)
@click.version_option(
    None, "-V", "--version", package_name="unionmount", message="%(prog)s %(version)s"
)
def commands() -> None:
    """Stack directories to one union, in overlayfs' own format, with or without root."""


def run(arguments: Sequence[str]) -> int:
    """Run a subcommand; returns the exit code: 1 where it failed, 2 where it was called wrongly."""
    # names are bytes: those that are no text leave as they came
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        result: Any = commands.main([*arguments], "unionmount", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        if error.ctx is not None and isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message())
            return 2
        command = error.ctx.command_path if error.ctx else "unionmount"
        complain(f"{error.format_message().rstrip('.')}; see {command} --help")
        return 2
    except OptionError as error:
        complain(str(error))
        return 2
    except BrokenPipeError:
        # whoever read has enough; nothing may be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        complain(describe(error))
        return 1
    except _Ended as ended:
        complain("interrupted")
        return 128 + ended.number
    return result if isinstance(result, int) else 0
