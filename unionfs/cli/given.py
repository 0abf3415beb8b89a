"""Which union a command is about: its layers by options, a mount that holds a path, or a container.

    unionmount ls --lower top --lower base etc
    unionmount ls /mnt/union/etc
    unionmount ls web:/etc

A mounted union is read from its layers too, so what only the union hides can be explained.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final

import click

from unionfs.cli.storing import default_store
from unionfs.mounting import ActiveMount, list_mounts
from unionfs.options import parse
from unionfs.stack import LayerStack

_F = TypeVar("_F", bound=Callable[..., Any])

DIRECTORY: Final = click.Path(readable=False)


@final
@dataclass(frozen=True, slots=True)
class GivenLayers:
    """The layers as options name them; `-o` may name them too, as mount(8) does."""

    lower: tuple[str, ...]
    upper: str | None
    work: str | None
    options: str

    def __bool__(self) -> bool:
        return bool(self.lower or self.upper or self.options)

    def open(self, *, writable: bool = True) -> LayerStack:
        """The stack. Raises OptionError, StackError, and UsageError for layers named twice.

        writable: where False, upper is read as the top layer and needs no work directory.
        """
        parsed = parse(self.options)
        if self.lower and parsed.lower:
            raise click.UsageError("layers are named by --lower and by -o lowerdir; choose one")
        lower = [*(self.lower or parsed.lower)]
        upper, work = self.upper or parsed.upper, self.work or parsed.work
        if not writable and upper and not work:
            lower, upper = [upper, *lower], None
        return LayerStack(lower, upper, work, options=parsed.options, data=parsed.data)


def layer_options(command: _F) -> _F:
    """`--lower`, `--upper`, `--work` and `-o`, given to the command as one `layers`."""

    @functools.wraps(command)
    def gathered(
        lower: tuple[str, ...], upper: str | None, work: str | None, options: str, **rest: Any
    ) -> Any:
        return command(layers=GivenLayers(lower, upper, work, options), **rest)

    for option in (
        click.option("-o", "options", default="", metavar="OPTIONS", help="See docs/options.md."),
        click.option("--work", type=DIRECTORY, metavar="DIR", help="Upper's scratch directory."),
        click.option("--upper", type=DIRECTORY, metavar="DIR", help="The layer that is written."),
        click.option(
            "--lower",
            type=DIRECTORY,
            metavar="DIR",
            multiple=True,
            help="A read-only layer; once a layer, top first.",
        ),
    ):
        gathered = option(gathered)
    return cast(_F, gathered)


@contextmanager
def opened(
    layers: GivenLayers, path: str, directory: str | None = None
) -> Iterator[tuple[LayerStack, str]]:
    """The union that is meant, to read, and the path in it.

    path: in the union where layers are given, else one that leads into a mounted union, or
    CONTAINER or CONTAINER:PATH. directory: the store of containers, None for the default.

    Raises OSError EINVAL where no union is mounted there.
    """
    if layers:
        stack, inside = layers.open(writable=False), path
    else:
        stack, inside = _of_container(path, directory) or _mounted(path)
    with stack:
        yield stack, inside


def _mounted(path: str) -> tuple[LayerStack, str]:
    """Of the mounted union that path leads into. Raises OSError EINVAL."""
    mount, inside = mount_of(path)
    options = mount.options
    return LayerStack(
        mount.lower, mount.upper, mount.work, options=options, data=mount.data
    ), inside


def _of_container(path: str, directory: str | None) -> tuple[LayerStack, str] | None:
    """Of CONTAINER or CONTAINER:PATH; None where that is none."""
    name, _, inside = path.partition(":")
    root = directory or default_store()
    if "/" in name or os.path.lexists(path) or not os.path.isdir(root):
        return None
    from unionfs.containers import Containers
    from unionfs.store import NotFound, Store

    with Store(root) as store:
        try:
            return Containers(store).opened(name), inside or "/"
        except NotFound:
            return None


def mount_of(path: str) -> tuple[ActiveMount, str]:
    """The mounted union that path leads into, and where in it. Raises OSError EINVAL."""
    mounts = {mount.target: mount for mount in list_mounts()}
    inside: list[str] = []
    outside = os.path.abspath(path)
    while (mount := mounts.get(os.path.realpath(outside))) is None:
        if outside == "/":
            message = (
                "no union is mounted there; mount one, or name a container, or layers by --lower"
            )
            raise OSError(errno.EINVAL, message, path)
        outside, name = os.path.split(outside)
        inside.insert(0, name)
    if not mount.lower:
        message = "the layers of this union are not known here; name them by --lower"
        raise OSError(errno.EINVAL, message, mount.target)
    return mount, "/" + "/".join(inside)
