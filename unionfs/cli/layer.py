"""`unionmount layer`: a union's top layer as the archive in which images ship it, and back."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, cast, get_args

import click

from unionfs import markers
from unionfs.cli.given import DIRECTORY, GivenLayers, layer_options, opened
from unionfs.cli.output import json_option, print_columns, print_json
from unionfs.cli.progress import progress
from unionfs.layers import (
    Applied,
    Compression,
    Limits,
    Rights,
    Written,
    apply_layer,
    apply_onto,
    write_layer,
)
from unionfs.layers.streams import DEFAULT_LEVELS, LEVELS, THREADS
from unionfs.layers.unpack import umask

_STANDARD: Final = "-"
_ENDINGS: Final[dict[str, Compression]] = {".tar": "none", ".zst": "zstd", ".tzst": "zstd"}


@click.group("layer")
def layer_command() -> None:
    """Write a union's top layer as an OCI layer, or apply one."""


_LEVELS: Final = ", ".join(
    f"{name} {levels[0]} to {levels[-1]} ({DEFAULT_LEVELS[name]})"
    for name, levels in LEVELS.items()
    if name != "none"
)


@layer_command.command("write")
@layer_options
@click.option(
    "--compression",
    type=click.Choice(get_args(Compression)),
    help="Not asked for: as FILE's ending says, or gzip.",
)
@click.option("--level", type=int, metavar="LEVEL", help=f"Of the compression: {_LEVELS}.")
@click.option("--threads", type=click.IntRange(1), default=THREADS, help="That compress.")
@click.option(
    "--clamp",
    type=int,
    envvar="SOURCE_DATE_EPOCH",
    metavar="SECONDS",
    help="No file's time is later than that, since 1970; or $SOURCE_DATE_EPOCH.",
)
@json_option
@click.argument("file")
@click.argument("path", default=".")
def write_command(
    layers: GivenLayers,
    compression: Compression | None,
    level: int | None,
    threads: int,
    clamp: int | None,
    as_json: bool,
    file: str,
    path: str,
) -> None:
    """Write the top layer of the union at PATH to FILE, or to standard output for -.

    \b
      unionmount layer write changes.tar.gz /mnt/union       # of a mounted union
      unionmount layer write --lower base --upper changes changes.tar.zst

    The same layer gives the same bytes.
    """
    chosen = compression or _ENDINGS.get(os.path.splitext(file)[1], "gzip")
    with (
        opened(layers, path) as (stack, _),
        _output(file) as out,
        progress("writing") as advance,
    ):
        written = write_layer(
            stack,
            out,
            compression=chosen,
            level=level,
            threads=threads,
            clamp=clamp,
            progress=lambda _: advance(1),
        )
    if file != _STANDARD:
        _print(written, as_json)


@layer_command.command("apply")
@click.option(
    "--below",
    type=DIRECTORY,
    multiple=True,
    metavar="DIR",
    help="A layer that it will lie on, top first: has the attributes of directories left unsaid.",
)
@click.option("--onto", is_flag=True, help="Change the tree in DIRECTORY: whiteouts remove files.")
@click.option("--digest", metavar="DIGEST", help="The digest that FILE must have.")
@click.option("--diff-id", metavar="DIGEST", help="The digest that the tar in it must have.")
@click.option("--max-size", type=click.IntRange(1), default=Limits().size, metavar="BYTES")
@click.option("--max-entries", type=click.IntRange(1), default=Limits().entries, metavar="COUNT")
@click.option("--no-devices", is_flag=True, help="Leave device nodes out.")
@click.option("--ignore-chown-errors", is_flag=True, help="Keep files whose owner cannot be set.")
@json_option
@click.argument("file")
@click.argument("directory", type=DIRECTORY)
def apply_command(
    below: tuple[str, ...],
    onto: bool,
    digest: str | None,
    diff_id: str | None,
    max_size: int,
    max_entries: int,
    no_devices: bool,
    ignore_chown_errors: bool,
    as_json: bool,
    file: str,
    directory: str,
) -> None:
    """Unpack an OCI layer from FILE into a new DIRECTORY, as a layer of a union.

    \b
      unionmount layer apply changes.tar.gz changes
      curl … | unionmount layer apply - changes

    Whiteouts become overlayfs' marks. DIRECTORY appears when it is whole, or not at all.
    """
    if onto and (below or digest or diff_id):
        raise click.UsageError("--onto goes with neither --below nor --digest nor --diff-id")
    limit = Limits(max_size, max_entries)
    rights = Rights(devices=not no_devices, ignore_chown_errors=ignore_chown_errors)
    with _input(file) as blob:
        if onto:
            applied = apply_onto(blob, directory, limit=limit, rights=rights)
        else:
            prefix = markers.TRUSTED if markers.trusted_permitted() else markers.USER
            applied = apply_layer(
                blob,
                directory,
                prefix=prefix,
                below=below,
                limit=limit,
                rights=rights,
                digest=digest,
                diff_id=diff_id,
            )
    _print(applied, as_json)


def _print(layer: Written | Applied, as_json: bool) -> None:
    if as_json:
        print_json(layer)
        return
    rows = {"digest": layer.digest, "diff ID": layer.diff_id, "size": f"{layer.size} bytes"}
    print_columns([[(name, "dim"), (text, "")] for name, text in rows.items()])


@contextlib.contextmanager
def _output(file: str) -> Iterator[BinaryIO]:
    """A file to write, which is there when it is whole; or standard output."""
    if file == _STANDARD:
        yield sys.stdout.buffer
        return
    if os.path.isdir(file):
        raise OSError(errno.EISDIR, "is a directory; name a file", file)
    directory, name = os.path.split(os.path.abspath(file))
    try:
        fd, draft = tempfile.mkstemp(prefix=f".{name[:200]}.", dir=directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from error
    try:
        with open(fd, "wb", buffering=0) as out:
            yield cast(BinaryIO, out)
            os.fchmod(fd, 0o666 & ~umask())
        os.replace(draft, file)
    except BaseException:
        os.unlink(draft)
        raise


@contextlib.contextmanager
def _input(file: str) -> Iterator[BinaryIO]:
    """A file to read, which shows how far it is; or standard input."""
    if file == _STANDARD:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as blob, progress("unpacking", os.fstat(blob.fileno()).st_size) as told:
        yield cast(BinaryIO, _Told(blob, told))


class _Told:
    """A file that tells of what is read from it."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self._file = file
        self._told = told

    def read(self, *arguments: Any) -> bytes:
        data = self._file.read(*arguments)
        self._told(len(data))
        return data
