"""Verification: whether what lies on disk is still what the catalogue says.

A blob is hashed. A layer is unpacked once more from its blob, beside the store's, and compared with
what lies there, file by file; so nothing has to be recorded when it is imported. What users
committed has nothing to be compared with; of that, only the directory's presence is checked.

Cost: every byte of the store is read, and each layer written once.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from unionfs import markers, system
from unionfs.store import digest as digests
from unionfs.store.blobs import CHUNK
from unionfs.store.catalogue import DIRECTORY, Catalogue
from unionfs.store.errors import NotFound
from unionfs.store.folders import Folders, claimed
from unionfs.store.layers import Layers

_SHOWN: Final = 5
"""As many paths of a layer as are named."""


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """What is not as it was. name: the blob's digest, or the snapshot's name. path: where it lies.

    message: what is wrong and what can be done. repaired: whether it was.
    """

    kind: Literal["blob", "layer", "snapshot"]
    name: str
    path: str
    message: str
    repaired: bool = False


def verify(
    folders: Folders, catalogue: Catalogue, layers: Layers, *, repair: bool
) -> Iterator[Fault]:
    """The faults of a store, blobs first.

    repair: forget damaged blobs, so that they can be pulled anew, and exchange damaged layers for
        what their blobs hold.
    """
    with catalogue.read() as db:
        blobs = db.execute("SELECT digest FROM blob ORDER BY digest").fetchall()
        rows = db.execute(
            f"SELECT min(id), name, kind, diff_id, blob, {DIRECTORY}, coalesce(implicit, '[]')"
            f" FROM snapshot WHERE kind != 'view' GROUP BY {DIRECTORY} ORDER BY id"
        ).fetchall()
    damaged = set()
    for (digest,) in blobs:
        if (fault := _blob(folders, catalogue, digest, repair)) is not None:
            damaged.add(digest)
            yield fault
    for number, name, kind, diff_id, blob, directory, implicit in rows:
        files = folders.files(directory)
        if not os.path.isdir(files):
            if _catalogued(catalogue, "snapshot", "id", number):
                message = "its directory is gone; remove the snapshot, and what stands on it"
                yield Fault("snapshot", name, files, message)
        elif kind == "committed" and diff_id and blob not in damaged:
            layer = _Layer(name, files, blob, diff_id, frozenset(json.loads(implicit)))
            yield from _layer(folders, catalogue, layers, layer, repair)


def _blob(folders: Folders, catalogue: Catalogue, digest: str, repair: bool) -> Fault | None:
    path = folders.blob(digest)
    hashed = digests.hasher(digest)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                hashed.update(chunk)
        found = digests.of_hash(hashed)
    except OSError as error:
        found = error.strerror or "unreadable"
    if found == digest or not _catalogued(catalogue, "blob", "digest", digest):
        return None
    message = f"the content is damaged ({found})"
    with catalogue.change() as db:
        names = [
            name for (name,) in db.execute("SELECT name FROM name WHERE digest = ?", (digest,))
        ]
        if names:
            remedy = f"remove the image {names[0]} and pull it again"
        elif repair:
            db.execute("DELETE FROM blob WHERE digest = ?", (digest,))
            remedy = "forgotten; pull what needs it again"
        else:
            remedy = "repair the store, and pull what needs it again"
    if repair and not names:
        folders.discard(path)
        folders.empty_trash()
    return Fault("blob", digest, path, f"{message}; {remedy}", repair and not names)


@final
@dataclass(frozen=True, slots=True)
class _Layer:
    """An unpacked layer. implicit: the directories that it has no entries for."""

    name: str
    files: str
    blob: str
    diff_id: str
    implicit: frozenset[str]


def _layer(
    folders: Folders,
    catalogue: Catalogue,
    layers: Layers,
    layer: _Layer,
    repair: bool,
) -> Iterator[Fault]:
    name, files = layer.name, layer.files
    draft = folders.ingest(uuid.uuid4().hex)
    os.mkdir(draft, 0o700)
    try:
        with claimed(draft, os.O_RDONLY | os.O_DIRECTORY):
            fresh = f"{draft}/fs"
            try:
                layers.apply(layer.blob, layer.diff_id, fresh, layers.stack(name)[1:])
            except NotFound:
                return  # its blob was collected: another one unpacks to the same
            different = [*differences(fresh, files, layer.implicit)]
            if not different or not _catalogued(catalogue, "snapshot", "name", name):
                return
            shown = ", ".join(different[:_SHOWN])
            more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
            remedy = "exchanged for what its blob holds" if repair else "repair the store"
            if repair:
                _exchange(fresh, files)
            message = f"not what its blob unpacks to: {shown}{more}; {remedy}"
            yield Fault("layer", name, files, message, repair)
    finally:
        folders.discard(draft)
        folders.empty_trash()


def _exchange(one: str, other: str) -> None:
    with contextlib.ExitStack() as opened:
        fds = []
        for path in (one, other):
            fds.append(os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])
        names = [os.path.basename(path) for path in (one, other)]
        system.rename(fds[0], names[0], fds[1], names[1], system.RENAME_EXCHANGE)


def _catalogued(catalogue: Catalogue, table: str, column: str, value: object) -> bool:
    """Whether it is there still: others may have removed it meanwhile."""
    with catalogue.read() as db:
        query = f"SELECT 1 FROM {table} WHERE {column} = ?"
        return db.execute(query, (value,)).fetchone() is not None


def differences(expected: str, found: str, untimed: Collection[str] = frozenset()) -> Iterator[str]:
    """The paths, from the root, at which two trees differ.

    untimed: directories, by paths without a slash before them, whose times may.
    """
    pending = [""]
    while pending:
        path = pending.pop()
        one, other = f"{expected}{path}", f"{found}{path}"
        timed = path[1:] not in untimed
        if _description(one, timed=timed) != _description(other, timed=timed):
            yield path or "/"
            continue
        if not stat.S_ISDIR(os.lstat(one).st_mode):
            continue
        names = {name: [*_there(one, name), *_there(other, name)] for name in _names(one, other)}
        for name, places in sorted(names.items()):
            if len(places) == 2:
                pending.append(f"{path}/{name}")
            else:
                yield f"{path}/{name}"


def _names(*directories: str) -> set[str]:
    return {name for directory in directories for name in os.listdir(directory)}


def _there(directory: str, name: str) -> Iterator[str]:
    if os.path.lexists(f"{directory}/{name}"):
        yield f"{directory}/{name}"


def _description(path: str, *, timed: bool) -> tuple[object, ...]:
    """All that a layer says of a file; times of access and inode numbers are not part of it."""
    status = os.lstat(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    content: object = None
    if _is_whiteout(status, xattrs):
        return ("whiteout",)  # it has no time of its own, and may share an inode
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        hashed = digests.hasher(None)
        with contextlib.suppress(PermissionError), open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                hashed.update(chunk)
        content = hashed.hexdigest()
    return (
        *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev),
        status.st_mtime_ns if timed else 0,
        *(0 if stat.S_ISDIR(status.st_mode) else status.st_nlink, xattrs, content),
    )


def _is_whiteout(status: os.stat_result, xattrs: Mapping[str, bytes]) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    marks = {prefix + markers.WHITEOUT for prefix in (markers.TRUSTED, markers.USER)}
    return not marks.isdisjoint(xattrs)
