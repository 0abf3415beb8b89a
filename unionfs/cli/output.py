"""How commands print: columns for people, in colour where that is wanted, JSON for programs.

rich decides on colour: a terminal has it unless NO_COLOR is set. It is imported with the first
line, since it takes as long as all else together.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

_F = TypeVar("_F", bound=Callable[..., Any])

_BYTES: Final = {os.fsdecode(bytes([byte])) for byte in range(0x80, 0x100)}

Cell = tuple[str, str]
"""A text and its style, as rich names it: "bold red"; "" is plain."""


def json_option(command: _F) -> _F:
    """`--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: object) -> None:
    """Print dataclasses, and what holds them; a byte of a name that is no text is \\udcXX."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"no JSON for {value!r}")


def print_line(*cells: Cell) -> None:
    """Print cells in one line, however long; only a terminal wraps it."""
    from rich.text import Text

    line = Text()
    for text, style in cells:
        line.append(printable(text), style)
    _console().print(line, soft_wrap=True)


def print_columns(rows: Iterable[Sequence[Cell]], heading: Sequence[str] = ()) -> None:
    """Print rows with aligned columns, the last one ragged."""
    lines = [[(text, "dim") for text in heading]] if heading else []
    lines += [[(printable(text), style) for text, style in row] for row in rows]
    if not lines:
        return
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            (text + " " * (width - _width((text, style)) + 2), style)
            for (text, style), width in zip(line[:-1], widths, strict=False)
        ]
        print_line(*padded, line[-1])


def complain(message: str) -> None:
    """Print an error: one line on standard error."""
    print(f"unionmount: {printable(message)}", file=sys.stderr)


def describe(error: OSError) -> str:
    """An error in words: what it is about, then what is wrong."""
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        words += "; make room, and try again"
    return f"{error.filename}: {words}" if error.filename else words


def _width(cell: Cell) -> int:
    from rich.cells import cell_len

    return cell_len(cell[0])


def printable(text: str) -> str:
    """Text that stays on its line: what is no text in a file's name is escaped, but for bytes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _BYTES else repr(char)[1:-1] for char in text
    )


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)
