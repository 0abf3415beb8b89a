"""`unionmount mount`, `umount` and `list`."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

import click

from unionfs.cli.given import DIRECTORY, GivenLayers, layer_options
from unionfs.cli.output import (
    complain,
    describe,
    json_option,
    print_columns,
    print_json,
    print_line,
)
from unionfs.cli.storing import default_store, store_directory
from unionfs.mounting import list_mounts, mount, unmount
from unionfs.stack import LayerStack

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("mount")
@layer_options
@click.option(
    "--backend",
    type=click.Choice(["auto", "overlayfs", "fuse"]),
    default="auto",
    show_default=True,
    help="auto: the kernel's overlayfs, or FUSE where the kernel cannot.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay, and unmount on Ctrl-C or SIGTERM.")
@store_directory
@json_option
@click.argument("target", type=DIRECTORY, metavar="[CONTAINER] [TARGET]")
@click.argument("place", type=DIRECTORY, required=False, metavar="")
def mount_command(
    layers: GivenLayers,
    backend: Literal["auto", "overlayfs", "fuse"],
    foreground: bool,
    directory: str | None,
    as_json: bool,
    target: str,
    place: str | None,
) -> None:
    """Mount a union of layers, or a container, on the directory TARGET.

    \b
      unionmount mount --lower app --lower base --upper changes --work scratch root
      unionmount mount CONTAINER [root]

    Prints the backend that was taken, and why. Without --upper the union is read-only. A container
    without TARGET is mounted in the store.
    """
    with ExitStack() as block:
        if layers:
            if place is not None:
                raise click.UsageError("a container has its own layers; leave it or the layers out")
            stack = block.enter_context(layers.open())
        else:
            stack, target = _container(block, directory, target, place)
        if stack.options.debug:
            words = "option debug logs to the terminal; run: unionmount -o OPTIONS,debug TARGET"
            raise click.UsageError(words)
        told = block.enter_context(_told_to_end()) if foreground else None
        mounted = mount(stack, target, backend)
        if as_json:
            print_json(mounted)
        else:
            print_line(
                (mounted.target, "bold"),
                (": mounted by ", ""),
                (mounted.backend, "green"),
                (f" ({mounted.why})", "dim"),
            )
        if told is not None:
            sys.stdout.flush()
            _wait(mounted.target, told)
            if os.path.ismount(mounted.target):
                mounted.unmount(lazy=True)


def _container(
    block: ExitStack, directory: str | None, name: str, place: str | None
) -> tuple[LayerStack, str]:
    """A container's layers, and where to mount it."""
    from unionfs.containers import Containers
    from unionfs.containers.runtime import end
    from unionfs.store import NotFound, Store

    root = directory or default_store()
    try:
        if not os.path.isdir(root):
            raise NotFound("no such store", root)
        store = block.enter_context(Store(root))
        target = Containers(store).mountable(name, place)
        end(store, name)  # it may run in a mount namespace that we do not see
    except NotFound:
        message = "no such container; name one, or at least one lower layer by --lower"
        raise OSError(errno.ENOENT, message, name) from None
    return block.enter_context(store.snapshots.directories(name).open()), target


@contextmanager
def _told_to_end() -> Iterator[int]:
    """A descriptor that can be read from once a signal has asked for the end.

    Signals are handled, not blocked: a mount program that is started meanwhile would inherit that.
    """
    told, tell = os.pipe()
    before = {number: signal.signal(number, lambda *_: os.write(tell, b"!")) for number in _ENDING}
    try:
        yield told
    finally:
        for number, action in before.items():
            signal.signal(number, action)
        os.close(told)
        os.close(tell)


def _wait(target: str, told: int) -> None:
    """Return when the end was asked for, or nothing is mounted on target any more."""
    with open("/proc/self/mountinfo", "rb") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        changes.register(told, select.POLLIN)
        while os.path.ismount(target):
            if told in dict(changes.poll()):
                return


@click.command("umount")
@click.option("-l", "--lazy", is_flag=True, help="Out of sight now, down when nothing uses it.")
@store_directory
@click.argument("targets", type=DIRECTORY, nargs=-1, required=True, metavar="TARGET...")
def umount_command(targets: tuple[str, ...], lazy: bool, directory: str | None) -> int:
    """Unmount the unions on each TARGET, a directory or a container."""
    failed = 0
    for target in targets:
        try:
            unmount(_place(directory, target), lazy=lazy)
        except OSError as error:
            complain(describe(error))
            failed = 1
    return failed


def _place(directory: str | None, name: str) -> str:
    """Where the container of that name is mounted; the name where there is none."""
    root = directory or default_store()
    if os.path.ismount(name) or not os.path.isdir(root):
        return name
    from unionfs.containers import Containers
    from unionfs.store import NotFound, Store

    with Store(root) as store:
        try:
            return Containers(store).get(name).target or name
        except NotFound:
            return name


@click.command("list")
@click.option("-a", "--all", "everyones", is_flag=True, help="Also what others mounted.")
@json_option
def list_command(everyones: bool, as_json: bool) -> None:
    """List the unions that unionmount mounted."""
    mounts = [active for active in list_mounts() if everyones or active.ours]
    if as_json:
        print_json(mounts)
        return
    rows = [
        [
            (active.target, "bold"),
            (active.backend, "green"),
            ("dead", "red") if active.dead else ("ro" if active.read_only else "rw", ""),
            (str(len(active.lower)) if active.lower else "?", ""),
            (active.upper or "", ""),
        ]
        for active in mounts
    ]
    print_columns(rows, heading=("TARGET", "BACKEND", "ACCESS", "LOWERS", "UPPER"))
