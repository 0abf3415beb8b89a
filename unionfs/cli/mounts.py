"""`unionmount mount`, `umount` and `list`."""

from __future__ import annotations

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
from unionfs.mounting import list_mounts, mount, unmount

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
@json_option
@click.argument("target", type=DIRECTORY)
def mount_command(
    layers: GivenLayers,
    backend: Literal["auto", "overlayfs", "fuse"],
    foreground: bool,
    as_json: bool,
    target: str,
) -> None:
    """Mount a union of layers on the directory TARGET.

    \b
      unionmount mount --lower app --lower base --upper changes --work scratch root

    Prints the backend that was taken, and why. Without --upper the union is read-only.
    """
    with layers.open() as stack, ExitStack() as block:
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
@click.argument("targets", type=DIRECTORY, nargs=-1, required=True, metavar="TARGET...")
def umount_command(targets: tuple[str, ...], lazy: bool) -> int:
    """Unmount the unions on each TARGET."""
    failed = 0
    for target in targets:
        try:
            unmount(target, lazy=lazy)
        except OSError as error:
            complain(describe(error))
            failed = 1
    return failed


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
