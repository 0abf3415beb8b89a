"""`unionmount image`, `pull` and `push`: the images of a store, and how they come and go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from unionfs.cli.output import (
    Cell,
    complain,
    describe,
    json_option,
    print_columns,
    print_json,
    print_line,
)
from unionfs.cli.progress import transfers
from unionfs.cli.reading import change_line
from unionfs.cli.store import amount, moment
from unionfs.cli.storing import default_store, store_option
from unionfs.images import library
from unionfs.images.bring import Moved
from unionfs.images.exchange import export_images, import_images
from unionfs.images.library import Image, Named
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.store import Store

if TYPE_CHECKING:
    from unionfs.images.remote import Access

_F = TypeVar("_F", bound=Callable[..., Any])

_HOW: Final = {
    "here": ("already here", "dim"),
    "fetched": ("fetched", "green"),
    "there": ("already there", "dim"),
    "mounted": ("mounted from another repository", "cyan"),
    "sent": ("sent", "green"),
}
_SHORT: Final = 12
"""Digits of an ID that people are shown."""


def complete_image(context: click.Context, _: click.Parameter, start: str) -> list[CompletionItem]:
    """The names in the store that begin so, for the shell."""
    root = context.params.get("directory") or os.environ.get("UNIONMOUNT_STORE") or default_store()
    if not os.path.isdir(root):
        return []
    try:
        with Store(root) as store:
            names = [row.name for row in store.names]
    except OSError:
        return []  # completion has nowhere to complain
    shown = (Reference.parse(name).familiar for name in names)
    return [CompletionItem(name) for name in shown if name.startswith(start)]


def _image_argument(name: str = "image", **options: Any) -> Callable[[_F], _F]:
    return click.argument(name, shell_complete=complete_image, **options)


def _as_reference(_: click.Context, __: click.Parameter, text: str | None) -> Reference | None:
    return None if text is None else Reference.parse(text)


def as_platform(_: click.Context, __: click.Parameter, text: str | None) -> Platform | None:
    """What `--platform` names, as its option's callback."""
    return None if text is None else Platform.parse(text)


_platform_option = click.option(
    "--platform",
    callback=as_platform,
    metavar="OS/ARCH[/VARIANT]",
    help="Of an image for several platforms, the one for this.",
)
_unpack_option = click.option(
    "--unpack/--no-unpack",
    "unpacked",
    default=True,
    help="Unpack the layers now, or when the image is used.  [default: now]",
)


def _access_options(command: _F) -> _F:
    """`--plain-http` and `--cert-dir`, for `_access`."""
    command = click.option(
        "--cert-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The registry's *.crt, and *.cert with *.key for us.",
    )(command)
    return click.option("--plain-http", is_flag=True, help="Without TLS.")(command)


def _access(plain_http: bool, cert_dir: Path | None) -> Access:
    from unionfs.images.remote import Access

    return Access(plain_http, cert_dir)


@click.group("image")
def image_command() -> None:
    """The images of a store: list, name, look into, import and export them.

    An IMAGE is a name as Docker takes it (ubuntu:14.04), or the beginning of an ID.
    """


@image_command.command("list")
@store_option
@json_option
def list_images_command(store: Store, as_json: bool) -> int:
    """List the images of the store by name."""
    found, failed = [], 0
    for row in store.names:
        try:
            found.append(library.load(store, row.name))
        except OSError as error:
            complain(f"{row.name}: {describe(error)}; remove it, or pull it again")
            failed = 1
    if as_json:
        print_json([_listed(each) for each in found])
        return failed
    rows = [
        [
            (each.name.familiar, "bold"),
            (_short(each.target.digest), "green"),
            (", ".join(str(image.platform) for image in each.images), ""),
            (moment(each.updated), "dim"),
            (amount(_size(each)), ""),
        ]
        for each in found
    ]
    print_columns(rows, heading=("NAME", "ID", "PLATFORM", "TAGGED", "SIZE"))
    return failed


def _listed(found: Named) -> dict[str, object]:
    return {
        "name": str(found.name),
        "digest": found.target.digest,
        "media_type": found.target.media_type,
        "platforms": [str(image.platform) for image in found.images],
        "whole": found.whole,
        "updated": found.updated,
        "size": _size(found),
    }


def _size(found: Named) -> int:
    return sum(image.size for image in found.images)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_SHORT]


@image_command.command("inspect")
@store_option
@_platform_option
@json_option
@_image_argument()
def inspect_command(store: Store, platform: Platform | None, as_json: bool, image: str) -> None:
    """Show what IMAGE is: its settings and its layers."""
    found = library.find(store, image)
    chosen = found.image(platform)
    if as_json:
        more = {
            "platform": str(chosen.platform),
            "manifest_digest": chosen.target.digest,
            "manifest": chosen.manifest.data(),
            "config": chosen.config.data(),
        }
        print_json(_listed(found) | more)
        return
    rows = [[(name, "dim"), (text, "")] for name, text in _facts(found, chosen)]
    print_columns(rows)


def _facts(found: Named, image: Image) -> Iterable[tuple[str, str]]:
    """What `inspect` tells a person."""
    settings = image.config.settings
    yield "name", str(found.name)
    yield "digest", found.target.digest
    yield "platform", str(image.platform)
    yield "size", amount(image.size)
    for name, text in (("created", image.config.created), ("author", image.config.author)):
        if text:
            yield name, text
    for name, words in (("entrypoint", settings.entrypoint), ("command", settings.cmd)):
        if words:
            yield name, " ".join(words)
    for name, text in (("user", settings.user), ("directory", settings.working_dir)):
        if text:
            yield name, text
    for name, texts in (
        ("environment", settings.env),
        ("port", settings.exposed_ports),
        ("volume", settings.volumes),
        ("label", [f"{name}={value}" for name, value in settings.labels.items()]),
        ("layer", [f"{each.digest}  {amount(each.size)}" for each in image.manifest.layers]),
    ):
        yield from ((name, text) for text in texts)


@image_command.command("history")
@store_option
@_platform_option
@json_option
@_image_argument()
def history_command(store: Store, platform: Platform | None, as_json: bool, image: str) -> None:
    """Show the steps that made IMAGE, the last one first, and the layers that they made."""
    chosen = library.find(store, image).image(platform)
    layers = iter(chosen.manifest.layers)
    steps = []
    for step in chosen.config.history:
        layer = None if step.empty_layer else next(layers, None)
        size = layer.size if layer else 0
        steps.append(step.data() | {"layer": layer.digest if layer else None, "size": size})
    steps.reverse()
    if as_json:
        print_json(steps)
        return
    rows: list[list[Cell]] = [
        [
            (step.get("created", "")[:19].replace("T", " "), "dim"),
            (amount(step["size"]) if step["layer"] else "", "green"),
            (step.get("created_by", ""), ""),
            (step.get("comment", ""), "dim"),
        ]
        for step in steps
    ]
    print_columns(rows, heading=("CREATED", "SIZE", "CREATED BY", "COMMENT"))


@image_command.command("tag")
@store_option
@_image_argument()
@click.argument("name", callback=_as_reference)
def tag_command(store: Store, image: str, name: Reference) -> None:
    """Give IMAGE one more NAME."""
    library.tag(store, library.find(store, image).target, name)


@image_command.command("remove")
@store_option
@json_option
@_image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
def remove_images_command(store: Store, as_json: bool, images: tuple[str, ...]) -> int:
    """Forget each IMAGE, and remove what nothing else needs."""
    removed, failed = [], 0
    for image in images:
        try:
            removed.append(library.remove(store, image))
        except OSError as error:
            complain(describe(error))
            failed = 1
    collected = store.gc()
    if as_json:
        print_json({"removed": removed, "collected": collected})
    else:
        for name in removed:
            print_line((name, "bold"), (": removed", ""))
        print_line((f"{amount(collected.bytes)} freed", "dim"))
    return failed


@image_command.command("import")
@store_option
@_platform_option
@_unpack_option
@json_option
@click.argument("path", type=click.Path())
@click.argument("name", callback=_as_reference, required=False)
def import_command(
    store: Store,
    platform: Platform | None,
    unpacked: bool,
    as_json: bool,
    path: str,
    name: Reference | None,
) -> None:
    """Import the images in PATH: an OCI layout, or an archive by docker save; - is standard input.

    \b
      unionmount image import app.tar
      docker save app | unionmount image import -

    Images without a name in PATH are called like it, or NAME.
    """
    with transfers() as watch:
        brought = import_images(
            store, path, name, platform=platform, unpacked=unpacked, watch=watch
        )
    if as_json:
        print_json(
            [_told([*map(str, each.names)], each.target.digest, each.moved) for each in brought]
        )
        return
    for each in brought:
        for called in each.names:
            print_line((called.familiar, "bold"), (f": {each.target.digest}", ""))


@image_command.command("export")
@store_option
@_platform_option
@click.option("--folder", is_flag=True, help="A folder in place of a tar.")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="PATH", help="Where to.")
@_image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
def export_command(
    store: Store, platform: Platform | None, folder: bool, output: str, images: tuple[str, ...]
) -> None:
    """Write each IMAGE to PATH, or to standard output for -, for Docker, podman and others.

    \b
      unionmount image export -o app.tar app:v1 app:v2
      unionmount image export -o - app | docker load

    It is an OCI layout that is an archive like docker save's too.
    """
    export_images(store, images, output, folder=folder, platform=platform)


@image_command.command("diff")
@store_option
@_platform_option
@json_option
@_image_argument("old")
@_image_argument("new")
def diff_images_command(
    store: Store, platform: Platform | None, as_json: bool, old: str, new: str
) -> None:
    """Print what changes in the files from the image OLD to the image NEW.

    A is added, M modified, D deleted, with all in it.
    """
    before, after = (library.find(store, each).image(platform) for each in (old, new))
    found = library.diff(store, before, after)
    if as_json:
        print_json(found)
    else:
        print_columns([change_line(change) for change in found])


@click.command("pull")
@store_option
@_platform_option
@click.option("--all-platforms", is_flag=True, help="The images for all platforms.")
@_unpack_option
@_access_options
@json_option
@click.argument("name", callback=_as_reference)
def pull_command(
    store: Store,
    platform: Platform | None,
    all_platforms: bool,
    unpacked: bool,
    plain_http: bool,
    cert_dir: Path | None,
    as_json: bool,
    name: Reference,
) -> None:
    """Pull the image NAME from its registry: the layers that are not here yet.

    A download that breaks off goes on where it ended, now or when the image is pulled again. For
    logins, see: podman login, docker login.
    """
    if platform and all_platforms:
        raise click.UsageError("--platform is one, --all-platforms are all; choose one")
    from unionfs.images.remote import pull

    with transfers() as watch:
        brought = pull(
            store,
            name,
            platform=platform,
            every=all_platforms,
            unpacked=unpacked,
            access=_access(plain_http, cert_dir),
            watch=watch,
        )
    _print_moved(str(brought.names[0]), brought.target.digest, brought.moved, "fetched", as_json)


@click.command("push")
@store_option
@_access_options
@json_option
@_image_argument()
@click.argument("name", callback=_as_reference, required=False)
def push_command(
    store: Store,
    plain_http: bool,
    cert_dir: Path | None,
    as_json: bool,
    image: str,
    name: Reference | None,
) -> None:
    """Push IMAGE to its registry: the layers that are not there yet.

    It goes where its name says, or to NAME.
    """
    from unionfs.images.remote import push

    with transfers() as watch:
        pushed = push(store, image, name, access=_access(plain_http, cert_dir), watch=watch)
    _print_moved(str(pushed.name), pushed.target.digest, pushed.moved, "sent", as_json)


def _print_moved(name: str, digest: str, moved: tuple[Moved, ...], did: str, as_json: bool) -> None:
    """What a pull or push moved, blob by blob, and in all."""
    told = _told([name], digest, moved)
    if as_json:
        print_json(told)
        return
    rows: list[list[Cell]] = []
    for each in moved:
        words, style = _HOW[each.how]
        part = f" {amount(each.bytes)} of it" if 0 < each.bytes < each.size else ""
        rows.append(
            [(_short(each.digest), ""), (f"{amount(each.size):>8}", ""), (words + part, style)]
        )
    print_columns(rows)
    print_line((name, "bold"), (f": {digest}", ""))
    print_line((f"{did} {told['bytes']} bytes of {told['size']}", "dim"))


def _told(names: list[str], digest: str, moved: tuple[Moved, ...]) -> dict[str, object]:
    return {
        "names": names,
        "digest": digest,
        "bytes": sum(each.bytes for each in moved),
        "size": sum(each.size for each in moved),
        "blobs": moved,
    }
