"""`unionmount create`, `containers`, `commit`, `run` and the like: containers over images."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import Final, Literal

import click

from unionfs.cli.output import complain, describe, json_option, print_columns, print_json
from unionfs.cli.store import moment
from unionfs.cli.storing import store_option
from unionfs.containers import Containers
from unionfs.containers.bundle import RunOptions, Tmpfs, Volume
from unionfs.containers.runtime import NotStarted, Runtime, State, end, ran
from unionfs.store import Store

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_NAME = click.option("--name", help="What to call it; by default made up.")


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Bytes, or with a unit, as 512m."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+)([bkmg]?)", text.lower())
    if not found:
        raise click.BadParameter("not a size; write 512m or 2g")
    return int(found[1]) * _UNITS[found[2]]


def _security(options: tuple[str, ...]) -> tuple[str | None, bool]:
    """The seccomp profile, and whether new privileges may be gained, of `--security-opt`."""
    seccomp, new_privileges = None, True
    for option in options:
        name, _, value = option.partition("=")
        if name == "seccomp" and value:
            seccomp = value
        elif name == "no-new-privileges" and value in ("", "true"):
            new_privileges = False
        else:
            message = f"{option!r} is not known; write seccomp=FILE or no-new-privileges"
            raise click.UsageError(message)
    return seccomp, new_privileges


def _lines(path: str) -> list[str]:
    """The variables of an `--env-file`: NAME=VALUE or NAME a line; # begins a comment."""
    with open(path, "rb") as file:
        lines = [line.lstrip() for line in os.fsdecode(file.read()).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@click.command("create")
@store_option
@_NAME
@json_option
@click.argument("image")
def create_command(store: Store, name: str | None, as_json: bool, image: str) -> None:
    """Make a container, a writable layer over IMAGE; prints its name."""
    container = Containers(store).create(image, name)
    if as_json:
        print_json(container)
    else:
        click.echo(container.name)


@click.command("containers")
@store_option
@json_option
def containers_command(store: Store, as_json: bool) -> None:
    """List the containers of the store."""
    found = [(each, _state(store, each.name)) for each in Containers(store).list()]
    if as_json:
        print_json([dataclasses.asdict(container) | {"state": state} for container, state in found])
        return
    rows = [
        [
            (container.name, "bold"),
            (container.image, ""),
            (moment(container.created), "dim"),
            (state or "", "green" if state == "running" else ""),
            (container.target or "", ""),
        ]
        for container, state in found
    ]
    print_columns(rows, heading=("NAME", "IMAGE", "CREATED", "STATE", "MOUNTED"))


def _state(store: Store, name: str) -> State | None:
    """What a container does; None where no runtime knows it."""
    return Runtime.find(store).state(name) if ran(store, name) else None


@click.command("commit")
@store_option
@click.option("--author", default="", help="For the image's history.")
@click.option("-m", "--message", default="", help="For the image's history.")
@json_option
@click.argument("container")
@click.argument("image")
def commit_command(
    store: Store, author: str, message: str, as_json: bool, container: str, image: str
) -> None:
    """Make IMAGE of CONTAINER as it is now; prints the image's digest."""
    made = Containers(store).commit(container, image, author=author, comment=message)
    if as_json:
        print_json({"digest": made.target.digest, "layers": len(made.manifest.layers)})
    else:
        click.echo(made.target.digest)


@click.command("remove")
@store_option
@click.option("-f", "--force", is_flag=True, help="End and unmount it first.")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def remove_command(store: Store, force: bool, names: tuple[str, ...]) -> int:
    """Remove each CONTAINER and all that it wrote."""
    containers = Containers(store)

    def remove(name: str) -> None:
        end(store, containers.get(name).name, force=force)
        containers.remove(name, force=force)

    return _each(names, remove)


@click.command("logs")
@store_option
@click.argument("container")
def logs_command(store: Store, container: str) -> None:
    """Print what CONTAINER, run with --detach, has printed."""
    with open(Runtime.find(store).output(container), "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


@click.command("stop")
@store_option
@click.option(
    "-t",
    "--time",
    "patience",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to end by itself.",
)
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def stop_command(store: Store, patience: float, names: tuple[str, ...]) -> int:
    """End each CONTAINER that was run with --detach; what it wrote stays."""
    return _each(names, lambda name: Runtime.find(store).stop(name, patience))


def _each(names: tuple[str, ...], act: Callable[[str], None]) -> int:
    """Do something to each container; 1 where that failed for one."""
    failed = 0
    for name in names:
        try:
            act(name)
        except OSError as error:
            complain(describe(error))
            failed = 1
    return failed


@click.command("run", context_settings={"allow_interspersed_args": False})
@store_option
@_NAME
@click.option("-d", "--detach", is_flag=True, help="Return when it runs; prints its name.")
@click.option("--rm", is_flag=True, help="Remove the container when it ends.")
@click.option("-i", "--interactive", is_flag=True, help="Hand it standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="One a line.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="SOURCE:TARGET[:ro]")
@click.option("--tmpfs", multiple=True, metavar="TARGET[:OPTIONS]", help="A directory in memory.")
@click.option("-u", "--user", metavar="USER[:GROUP]")
@click.option("-w", "--workdir", metavar="DIR")
@click.option("--entrypoint", metavar="COMMAND", help="In place of the image's; split as by sh.")
@click.option("--hostname")
@click.option("--memory", callback=_size, metavar="SIZE", help="Such as 512m.")
@click.option("--cpus", type=click.FloatRange(0.01), help="How many processors' time.")
@click.option("--pids", type=click.IntRange(1), help="How many processes and threads.")
@click.option("--read-only", is_flag=True, help="Only volumes and /tmp can be written.")
@click.option("--cap-add", multiple=True, metavar="NAME", help="A capability, or ALL.")
@click.option("--cap-drop", multiple=True, metavar="NAME", help="A capability, or ALL.")
@click.option(
    "--security-opt",
    "security",
    multiple=True,
    metavar="OPTION",
    help="seccomp=FILE, seccomp=unconfined, no-new-privileges.",
)
@click.option("--network", type=click.Choice(["none", "host"]), default="none", show_default=True)
@click.option("--runtime", metavar="PROGRAM", help="crun or runc; by default what fits.")
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run_command(
    store: Store,
    name: str | None,
    detach: bool,
    rm: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    volumes: tuple[str, ...],
    tmpfs: tuple[str, ...],
    user: str | None,
    workdir: str | None,
    entrypoint: str | None,
    hostname: str | None,
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    read_only: bool,
    cap_add: tuple[str, ...],
    cap_drop: tuple[str, ...],
    security: tuple[str, ...],
    network: Literal["none", "host"],
    runtime: str | None,
    image: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND, by default the image's own, in a new container of IMAGE.

    \b
      unionmount run --rm alpine ls -l /
      unionmount run -d --name web --read-only -v /srv/www:/www:ro web-server

    Exits with the command's status; 128 and its number where a signal ended it; 127 where there is
    no such command, 126 where it cannot be run, 125 where the container cannot be made.
    """
    if detach and (rm or tty or interactive):
        raise click.UsageError("--detach goes with none of --rm, --tty, --interactive")
    seccomp, new_privileges = _security(security)
    options = RunOptions(
        command=command,
        entrypoint=None if entrypoint is None else tuple(shlex.split(entrypoint)),
        env=(*(line for file in env_files for line in _lines(file)), *env),
        user=user,
        workdir=workdir,
        hostname=hostname,
        volumes=tuple(map(Volume.parse, volumes)),
        tmpfs=tuple(map(Tmpfs.parse, tmpfs)),
        memory=memory,
        cpus=cpus,
        pids=pids,
        read_only=read_only,
        terminal=tty,
        input=interactive,
        network=network,
        add_capabilities=cap_add,
        drop_capabilities=cap_drop,
        seccomp=seccomp,
        new_privileges=new_privileges,
    )
    program = Runtime.find(store, runtime)
    containers = Containers(store)
    container = containers.create(image, name)
    try:
        status = program.run(container.name, options, detached=detach)
    except NotStarted as error:
        containers.remove(container.name, force=True)
        if detach:  # else the runtime has told on standard error, which it has from us
            complain(describe(error))
        return error.status
    except BaseException:
        containers.remove(container.name, force=True)
        raise
    if rm:
        containers.remove(container.name)
    if detach:
        click.echo(container.name)
        sys.stdout.flush()
    return status
