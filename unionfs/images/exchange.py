"""Images in files: imported from layouts and archives, exported as what is both.

What an image is called in a file may be a full name, a bare tag or nothing; it then is called like
the file: a tag `v1` in `app.tar` is `app:v1`.

Cost: a read and a write of the blobs that are missing where they go.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from unionfs.images import layout
from unionfs.images.bring import Brought, Watch, bring, unwatched
from unionfs.images.files import STANDARD, Files, created, opened
from unionfs.images.layout import Layout, Listed, is_tag, write_layout
from unionfs.images.library import Stored, find
from unionfs.images.platform import Platform
from unionfs.images.reference import DEFAULT_TAG, InvalidReference, Reference
from unionfs.images.saved import Saved
from unionfs.images.source import only, walk, what_is_there
from unionfs.store import Store

_ENDINGS: Final = re.compile(r"\.(tar|tgz|oci|docker)?(\.(gz|zst))?$")


def import_images(
    store: Store,
    path: str,
    name: Reference | None = None,
    *,
    platform: Platform | None = None,
    unpacked: bool = True,
    watch: Watch = unwatched,
) -> list[Brought]:
    """Bring the images of a layout, a folder or a tar, or of an archive by `docker save`.

    path: "-" is standard input. name: what a single image is called; of several the repository,
    where their tags stay. platform: of an index, only its image; otherwise all that are there.

    Raises OSError; InvalidReference where a name is needed.
    """
    try:
        with opened(path) as files:
            source = _source(files, path)
            images = source.images()
            named = [_names(image, name, path, len(images)) for image in images]
            for called, count in Counter(itertools.chain(*named)).items():
                if count > 1:
                    wrong = f"{count} images in it are called {called.familiar}; name them apart"
                    raise InvalidReference(path, wrong)
            choose = only(platform) if platform else what_is_there
            return [
                bring(
                    *(store, source, image.target, names, choose),
                    unpacked=unpacked,
                    watch=watch,
                )
                for image, names in zip(images, named, strict=True)
            ]
    except FileNotFoundError as error:
        if error.filename == path:
            raise
        message = f"{error.filename}: {error.strerror}; the archive is incomplete"
        raise OSError(errno.EINVAL, message, path) from None


def export_images(
    store: Store,
    names: Iterable[str],
    path: str,
    *,
    folder: bool = False,
    platform: Platform | None = None,
) -> None:
    """Write images as an OCI layout that is a Docker archive too; in a folder, else in a tar.

    path: "-" is standard output. platform: of an index, only its image; otherwise all, or the one
    for this machine where not all are there.

    Raises NotFound, FileExistsError and other OSErrors; nothing is left there then.
    """
    source = Stored(store)
    graphs = []
    with store.leases.hold():
        for text in names:
            found = find(store, text)
            if platform:
                graph = walk(source, found.image(platform).target, what_is_there)
            else:
                graph = found.graph(store)
            graphs.append((found.name, graph))
        with created(path, folder=folder) as sink:
            write_layout(sink, source, graphs)


def _source(files: Files, path: str) -> Layout | Saved:
    for name, kind in ((layout.INDEX, Layout), (layout.SAVED, Saved)):
        try:
            files.open(name).close()
        except FileNotFoundError:
            continue
        return kind(files)
    raise OSError(errno.EINVAL, "neither an OCI layout nor an archive by docker save", path)


def _names(image: Listed, given: Reference | None, path: str, count: int) -> list[Reference]:
    """What an image of a file is to be called. count: how many images the file has."""
    if given is not None and count == 1:
        return [given.chosen()]
    base = given or _called_like(path)
    names = []
    for text in image.names or (DEFAULT_TAG,):
        if given is not None or is_tag(text):
            if base is None:
                raise InvalidReference(path, "an image in it has no name; give one")
            text = f"{base.name}:{text.rpartition(':')[2]}"
        names.append(Reference.parse(text).chosen())
    return names


def _called_like(path: str) -> Reference | None:
    """What an image without a name is called, after its file."""
    if path == STANDARD:
        return None
    stem = _ENDINGS.sub("", os.path.basename(os.path.abspath(path)))
    try:
        return replace(Reference.parse(stem), tag=None)
    except InvalidReference:
        return None
