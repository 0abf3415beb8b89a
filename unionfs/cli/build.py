"""`unionmount build`: an image from a Dockerfile."""

from __future__ import annotations

import os
import sys
from typing import Literal

import click

from unionfs.build import BuildOptions, Step, build
from unionfs.cli.given import DIRECTORY
from unionfs.cli.images import as_platform
from unionfs.cli.output import json_option, print_json, print_line
from unionfs.cli.storing import store_option
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.store import InvalidArgument, Store

_STANDARD = "-"


@click.command("build")
@store_option
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME", help="What to call the image.")
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="By default CONTEXT/Dockerfile or Containerfile; - is standard input.",
)
@click.option(
    "--build-arg",
    "arguments",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A value for ARG; without one, that of the environment.",
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="id=ID,src=FILE",
    help="For RUN --mount=type=secret; or id=ID,env=NAME.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="One more label.")
@click.option(
    "--platform",
    callback=as_platform,
    metavar="OS/ARCH[/VARIANT]",
    help="What the image is for; by default this machine.",
)
@click.option("--target", metavar="STAGE", help="The stage to build; by default the last.")
@click.option("--no-cache", is_flag=True, help="Do all steps again.")
@click.option(
    "--network",
    type=click.Choice(["none", "host"]),
    default="none",
    show_default=True,
    help="What RUN has.",
)
@click.option("--runtime", metavar="PROGRAM", help="For RUN; by default crun or runc.")
@click.option(
    "--clamp",
    type=int,
    envvar="SOURCE_DATE_EPOCH",
    metavar="SECONDS",
    help="No time is later than that, since 1970; or $SOURCE_DATE_EPOCH.",
)
@json_option
@click.argument("context", type=DIRECTORY)
def build_command(
    store: Store,
    tags: tuple[str, ...],
    file: str | None,
    arguments: tuple[str, ...],
    secrets: tuple[str, ...],
    labels: tuple[str, ...],
    platform: Platform | None,
    target: str | None,
    no_cache: bool,
    network: Literal["none", "host"],
    runtime: str | None,
    clamp: int | None,
    as_json: bool,
    context: str,
) -> None:
    """Build an image from a Dockerfile and the files in CONTEXT.

    \b
      unionmount build -t app .
      unionmount build -t app -f app.dockerfile --build-arg VERSION=2 src

    Each step makes one layer. What a step made before is taken again where nothing that it
    depends on has changed.
    """
    options = BuildOptions(
        arguments=dict(map(_argument, arguments)),
        target=target,
        cached=not no_cache,
        network=network,
        runtime=runtime,
        clamp=clamp,
        platform=platform,
        labels=dict(map(_label, labels)),
        secrets=dict(map(_secret, secrets)),
    )
    names = [Reference.parse(tag) for tag in tags]
    text, name = _dockerfile(file, context)
    image = build(store, context, text, names, name=name, options=options, watch=_show)
    if as_json:
        print_json(
            {
                "digest": image.target.digest,
                "config": image.manifest.config.digest,
                "names": [str(each.chosen()) for each in names],
                "layers": image.manifest.layers,
            }
        )
    else:
        print_line((image.target.digest, "bold"))


def _argument(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if equals:
        return name, value
    if name not in os.environ:
        raise InvalidArgument("the environment has no such variable; write NAME=VALUE", name)
    return name, os.environ[name]


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _secret(text: str) -> tuple[str, bytes]:
    """The ID and the content of id=ID,src=FILE or id=ID,env=NAME, where ID may be that too."""
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    name = fields.get("id", "")
    if not name or not {*fields} <= {"type", "id", "src", "source", "env"}:
        raise InvalidArgument("not a secret; write id=ID,src=FILE or id=ID,env=NAME", text)
    path = fields.get("src") or fields.get("source")
    variable = fields.get("env") or name
    if path is None and variable in os.environ:
        return name, os.environb[os.fsencode(variable)]
    if path is None and "env" in fields:
        raise InvalidArgument("the environment has no such variable", variable)
    with open(path or name, "rb") as file:
        return name, file.read()


def _dockerfile(file: str | None, context: str) -> tuple[str, str]:
    """The text of the Dockerfile, and what errors call it."""
    if file == _STANDARD:
        return os.fsdecode(sys.stdin.buffer.read()), "standard input"
    name = file or os.path.join(context, "Dockerfile")
    other = os.path.join(context, "Containerfile")
    if not file and not os.path.exists(name) and os.path.exists(other):
        name = other
    with open(name, "rb") as opened:
        return os.fsdecode(opened.read()), name


def _show(step: Step) -> None:
    """Say on standard error which step begins, and whether it was known."""
    if not step.done:
        click.secho(f"[{step.number}/{step.count}] {step.text}", err=True, bold=True)
    elif step.cached:
        click.secho("  taken from an earlier build", err=True, dim=True)
