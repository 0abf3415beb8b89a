"""`unionmount ls`, `cat`, `explain` and `diff`: a union's files and where they come from."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import click

from unionfs.cli.given import GivenLayers, layer_options, opened
from unionfs.cli.output import (
    Cell,
    complain,
    describe,
    json_option,
    print_columns,
    print_json,
    print_line,
)
from unionfs.cli.storing import store_directory
from unionfs.explanation import Explanation, LayerView, explain
from unionfs.layers import Change, changes
from unionfs.place import Place
from unionfs.resolve import resolve, top
from unionfs.union import UnionFS

_STYLES: Final = {
    stat.S_IFDIR: "bold blue",
    stat.S_IFLNK: "cyan",
    stat.S_IFIFO: "yellow",
    stat.S_IFSOCK: "magenta",
    stat.S_IFBLK: "bold yellow",
    stat.S_IFCHR: "bold yellow",
}
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}
_SIGNS: Final = {"added": "A", "modified": "M", "deleted": "D"}
_SIGN_STYLES: Final = {"added": "green", "modified": "yellow", "deleted": "red"}


@click.command("ls")
@layer_options
@store_directory
@click.option("-l", "long", is_flag=True, help="Mode, owner, size, time, and the layer.")
@json_option
@click.argument("path", default=".")
def ls_command(
    layers: GivenLayers, directory: str | None, long: bool, as_json: bool, path: str
) -> None:
    """List PATH, a directory or file in a union.

    \b
      unionmount ls -l /mnt/union/etc            # in a mounted union
      unionmount ls -l CONTAINER:/etc            # in a container
      unionmount ls -l --lower top --lower base etc     # without a mount
    """
    with opened(layers, path, directory) as (stack, inside):
        entries = sorted(_entries(UnionFS(stack), inside), key=lambda entry: entry.name)
    if as_json:
        print_json(entries)
    elif long:
        print_columns([_long(entry) for entry in entries])
    else:
        for entry in entries:
            print_line(_name(entry))


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of `ls`. mtime: seconds. target: a symlink's text. layer: the path of its root."""

    name: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float
    target: str | None
    layer: str


def _entries(union: UnionFS, path: str) -> Iterator[_Entry]:
    found = {path: path}
    # a symlink is what it is, unless a slash asks for what it leads to
    if stat.S_ISDIR(union.stat(path, follow_symlinks=path.endswith("/")).st_mode):
        found = {entry.name: entry.path for entry in union.scandir(path)}
    for name, place in found.items():
        status = union.lstat(place)
        yield _Entry(
            name,
            _KINDS[stat.S_IFMT(status.st_mode)],
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_mtime,
            union.readlink(place) if stat.S_ISLNK(status.st_mode) else None,
            top(union.stack, resolve(union.stack, place, follow=False)).layer.path,
        )


def _name(entry: _Entry) -> Cell:
    return entry.name, _STYLES.get(stat.S_IFMT(entry.mode), "")


def _long(entry: _Entry) -> list[Cell]:
    return [
        (stat.filemode(entry.mode), ""),
        (f"{entry.uid}:{entry.gid}", "dim"),
        (f"{entry.size:>9}", ""),
        (time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime)), "dim"),
        (entry.layer, "green"),
        _name(entry) if entry.target is None else (f"{entry.name} -> {entry.target}", "cyan"),
    ]


@click.command("cat")
@layer_options
@store_directory
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cat_command(layers: GivenLayers, directory: str | None, paths: tuple[str, ...]) -> int:
    """Print the data of each PATH, files in a union."""
    failed = 0
    for path in paths:
        with opened(layers, path, directory) as (stack, inside):
            try:
                with UnionFS(stack).open(inside, "rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
            except BrokenPipeError:
                raise
            except OSError as error:
                complain(f"{describe(error)}; see: unionmount explain")
                failed = 1
    return failed


@click.command("explain")
@layer_options
@store_directory
@json_option
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def explain_command(
    layers: GivenLayers, directory: str | None, as_json: bool, paths: tuple[str, ...]
) -> None:
    """Say which layer answers for each PATH, and why.

    \b
      unionmount explain /mnt/union/etc/passwd           # in a mounted union
      unionmount explain CONTAINER:/etc/passwd
      unionmount explain --lower top --lower base etc/passwd    # without a mount

    A PATH that the union does not have is explained too.
    """
    explanations = []
    for path in paths:
        with opened(layers, path, directory) as (stack, inside):
            explanations.append(explain(stack, inside))
    if as_json:
        print_json([_as_data(explanation) for explanation in explanations])
        return
    for explanation in explanations:
        kind = _KINDS[explanation.kind] if explanation.kind else None
        print_line((explanation.path, "bold"), (f": {kind or 'not in the union'}", ""))
        print_columns([_view(view) for view in explanation.layers])


_WORDS: Final = {
    "answers": "answers",
    "merged": "merged",
    "covered": "covered by {by}",
    "whited out": "hidden by the whiteout {by}",
    "whiteout": "is a whiteout",
    "opaque": "hidden, since {by} is opaque",
    "redirected": "passed over, since {by} is redirected elsewhere",
    "absent": "not there",
}
_WORD_STYLES: Final = {"answers": "bold green", "merged": "green", "absent": "dim"}


def _view(view: LayerView) -> list[Cell]:
    words = _WORDS[view.verdict].format(by=_from_here(view.by))
    if view.redirect:
        words += f", by the redirect of {_from_here(view.redirect)}"
    style = _WORD_STYLES.get(view.verdict, "yellow")
    return [(f"  {_from_here(view.place)}", "dim" if style == "dim" else ""), (words, style)]


def _on_disk(place: Place | None) -> str | None:
    return os.path.join(place.layer.path, place.path).rstrip("/") if place else None


def _from_here(place: Place | None) -> str:
    """The path on disk, relative where it lies below the current directory."""
    return (_on_disk(place) or "").removeprefix(f"{os.getcwd()}/")


def _as_data(explanation: Explanation) -> dict[str, object]:
    views = explanation.layers
    return {
        "path": explanation.path,
        "type": _KINDS[explanation.kind] if explanation.kind else None,
        "layers": [
            {
                "layer": view.place.layer.path,
                "path": view.place.path,
                "verdict": view.verdict,
                "by": _on_disk(view.by),
                "redirect": _on_disk(view.redirect),
            }
            for view in views
        ],
    }


@click.command("diff")
@layer_options
@store_directory
@json_option
@click.argument("path", default=".")
def diff_command(layers: GivenLayers, directory: str | None, as_json: bool, path: str) -> None:
    """Print what the upper layer changes.

    That is what the top layer, upper where there is one, changes over those below.

    \b
      unionmount diff /mnt/union                 # of a mounted union
      unionmount diff CONTAINER                  # of a container, mounted or not
      unionmount diff --lower base --upper changes     # without a mount

    A is added, M modified, D deleted, with all in it. PATH limits it to a part of the union.
    """
    with opened(layers, path, directory) as (stack, inside):
        part = os.path.normpath(f"/./{inside}").rstrip("/") + "/"
        found = [change for change in changes(stack) if f"{change.path}/".startswith(part)]
    if as_json:
        print_json(found)
    else:
        print_columns([change_line(change) for change in found])


def change_line(change: Change) -> list[Cell]:
    """A change as `diff` shows it."""
    style = _SIGN_STYLES[change.kind]
    details = f"  ({', '.join(change.aspects)})" if change.aspects else ""
    return [(_SIGNS[change.kind], style), (f"{change.path}{details}", style)]
