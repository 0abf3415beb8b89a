"""`unionmount store` and `unionmount snapshot`: what a store holds, and containerd's snapshots."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import click

from unionfs.cli.output import Cell, json_option, print_columns, print_json, print_line
from unionfs.cli.storing import store_option
from unionfs.store import Info, InvalidArgument, MountCall, Share, Store

_KINDS: Final = {"active": "green", "view": "cyan", "committed": ""}


def amount(size: int) -> str:
    """Bytes in words, such as 1.5 MB."""
    from rich.filesize import decimal

    return decimal(size)


def moment(nanoseconds: int) -> str:
    """A time of the catalogue in words, here."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(nanoseconds / 1e9))


@click.group("store")
def store_command() -> None:
    """Look after a store: what takes its space, what is damaged, what nothing needs."""


@store_command.command("usage")
@store_option
@json_option
def usage_command(store: Store, as_json: bool) -> None:
    """What layers, images and containers take, alone and shared with others."""
    used = store.usage()
    if as_json:
        print_json(used)
        return
    rows = [_share(share) for share in (*used.layers, *used.images, *used.containers)]
    print_columns(rows, heading=("OWN", "SHARED", "USERS", "KIND", "NAME"))
    print_line((f"{amount(used.total)} in all, {amount(used.blobs)} of it as it was sent", "dim"))


def _share(share: Share) -> list[Cell]:
    return [
        (f"{amount(share.own):>8}", "green"),
        (f"{amount(share.shared):>8}", ""),
        (str(share.users), "dim"),
        (share.kind, ""),
        (share.name, "bold"),
    ]


@store_command.command("gc")
@store_option
@json_option
def gc_command(store: Store, as_json: bool) -> None:
    """Remove what no image, container, snapshot or lease needs."""
    collected = store.gc()
    if as_json:
        print_json(collected)
        return
    taken = f"removed {collected.blobs} blobs and {collected.layers} layers"
    print_line((taken, "bold"), (f": {amount(collected.bytes)}", ""))


@store_command.command("verify")
@store_option
@click.option("--repair", is_flag=True, help="Forget damaged blobs, unpack damaged layers again.")
@json_option
def verify_command(store: Store, repair: bool, as_json: bool) -> int:
    """Compare what is on disk with the digests that name it; exits with 1 where that differs.

    No container may run while damaged layers are repaired.
    """
    faults = []
    for fault in store.verify(repair=repair):
        faults.append(fault)
        if not as_json:
            style = "yellow" if fault.repaired else "red"
            print_line((f"{fault.kind} {fault.name}", style), (f": {fault.message}", ""))
    if as_json:
        print_json(faults)
    elif not faults:
        print_line(("all is as it should be", "green"))
    return int(any(not fault.repaired for fault in faults))


@click.group("snapshot")
def snapshot_command() -> None:
    """Snapshots as containerd defines them: prepare or view, mount, commit, remove."""


_LABELS = click.option("--label", "labels", multiple=True, metavar="NAME=VALUE")


def _labels(texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgument("not a label; write NAME=VALUE", text)
        found[name] = value
    return found


def _print_mounts(calls: list[MountCall], as_json: bool) -> None:
    """As commands that can be run, but for the target."""
    if as_json:
        print_json(calls)
        return
    for call in calls:
        options = ",".join(call.options)
        print_line((f"mount -t {call.type} -o {options} {call.source} TARGET", ""))


@snapshot_command.command("prepare")
@store_option
@_LABELS
@json_option
@click.argument("key")
@click.argument("parent", default="")
def prepare_command(
    store: Store, labels: tuple[str, ...], as_json: bool, key: str, parent: str
) -> None:
    """Make KEY, an active snapshot over the committed PARENT; prints how to mount it."""
    _print_mounts(store.snapshots.prepare(key, parent, _labels(labels)), as_json)


@snapshot_command.command("view")
@store_option
@_LABELS
@json_option
@click.argument("key")
@click.argument("parent", default="")
def view_command(
    store: Store, labels: tuple[str, ...], as_json: bool, key: str, parent: str
) -> None:
    """Make KEY, a read-only view of the committed PARENT; prints how to mount it."""
    _print_mounts(store.snapshots.view(key, parent, _labels(labels)), as_json)


@snapshot_command.command("mounts")
@store_option
@json_option
@click.argument("key")
def mounts_command(store: Store, as_json: bool, key: str) -> None:
    """How to mount the active snapshot or view KEY."""
    _print_mounts(store.snapshots.mounts(key), as_json)


@snapshot_command.command("commit")
@store_option
@_LABELS
@click.argument("name")
@click.argument("key")
def commit_snapshot_command(store: Store, labels: tuple[str, ...], name: str, key: str) -> None:
    """Make the active snapshot KEY, unmounted, the committed one NAME."""
    store.snapshots.commit(name, key, _labels(labels))


@snapshot_command.command("remove")
@store_option
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def remove_snapshot_command(store: Store, keys: tuple[str, ...]) -> None:
    """Remove each KEY, a snapshot of any kind, and its files."""
    for key in keys:
        store.snapshots.remove(key)


@snapshot_command.command("label")
@store_option
@json_option
@click.argument("key")
@click.argument("labels", nargs=-1, required=True, metavar="NAME=[VALUE]...")
def label_command(store: Store, as_json: bool, key: str, labels: tuple[str, ...]) -> None:
    """Give the snapshot KEY labels; one without a value goes."""
    changed = _labels(labels)
    info = store.snapshots.stat(key)
    wanted = Info(info.name, info.kind, info.parent, changed, info.created, info.updated)
    updated = store.snapshots.update(wanted, *(f"labels.{name}" for name in changed))
    if as_json:
        print_json(updated)


@snapshot_command.command("list")
@store_option
@json_option
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
def list_snapshots_command(store: Store, as_json: bool, filters: tuple[str, ...]) -> None:
    """List the snapshots that one FILTER takes, or all.

    \b
      unionmount snapshot list kind==active,labels.app 'parent!=""'
    """
    found = [*store.snapshots.walk(*filters)]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            (info.name, "bold"),
            (info.kind, _KINDS[info.kind]),
            (moment(info.created), "dim"),
            (info.parent, ""),
        ]
        for info in found
    ]
    print_columns(rows, heading=("NAME", "KIND", "CREATED", "PARENT"))


@snapshot_command.command("stat")
@store_option
@json_option
@click.argument("key")
def stat_command(store: Store, as_json: bool, key: str) -> None:
    """What is known of the snapshot KEY, and what it takes beside its parents."""
    info, used = store.snapshots.stat(key), store.snapshots.usage(key)
    if as_json:
        print_json({"info": info, "usage": used})
        return
    rows: list[list[Cell]] = [
        [("kind", "dim"), (info.kind, _KINDS[info.kind])],
        [("parent", "dim"), (info.parent, "")],
        [("created", "dim"), (moment(info.created), "")],
        [("updated", "dim"), (moment(info.updated), "")],
        [("usage", "dim"), (f"{amount(used.size)}, {used.inodes} files", "")],
    ]
    rows += [[("label", "dim"), (f"{name}={value}", "")] for name, value in info.labels.items()]
    print_columns(rows)
