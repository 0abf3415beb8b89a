"""Snapshots as containerd defines them: what can be mounted, each over the one that is its parent.

An active snapshot may be written; committed, it never changes again and may be a parent. A view
shows a committed one read-only. Each has a layer of its own, but for views, and the layers below it
are its parents': a stack. Keys of all kinds share one space of names.

Rules: containerd, core/snapshots/snapshotter.go. Cost: one transaction a change; `prepare` makes
three directories, whatever lies below; `commit` and `usage` look at each file of the one layer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, final

from unionfs import system
from unionfs.options import MountOptions
from unionfs.stack import LayerStack
from unionfs.store import filters
from unionfs.store.catalogue import DIRECTORY, Catalogue, now
from unionfs.store.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from unionfs.store.folders import Folders, flush_directory

Kind = Literal["active", "view", "committed"]

_BLOCK: Final = 512  # bytes, of st_blocks
_COLUMNS: Final = "child.name, child.kind, parent.name, child.labels, child.created, child.updated"
_JOINED: Final = "snapshot AS child LEFT JOIN snapshot AS parent ON child.parent = parent.id"
_ANCESTORS: Final = f"""
    WITH RECURSIVE line (id, depth) AS (
        SELECT id, 0 FROM snapshot WHERE name = ?
        UNION ALL SELECT parent, depth + 1 FROM line JOIN snapshot USING (id)
            WHERE parent IS NOT NULL
    ) SELECT id, {DIRECTORY}, kind FROM line JOIN snapshot USING (id) ORDER BY depth
"""


@final
@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot. parent: "" where it has none. created, updated: nanoseconds since 1970."""

    name: str
    kind: Kind
    parent: str
    labels: Mapping[str, str]
    created: int
    updated: int


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What a directory takes by itself. size: bytes on disk; inodes: files, directories too."""

    size: int = 0
    inodes: int = 0


@final
@dataclass(frozen=True, slots=True)
class MountCall:
    """A mount as containerd hands it to a runtime: mount(2)'s arguments but the target."""

    type: str
    source: str
    options: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Directories:
    """What a snapshot is stacked of. lower: top first. upper, work: of an active one."""

    lower: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    options: MountOptions = field(default_factory=MountOptions)

    def open(self) -> LayerStack:
        """The stack, to mount or to read. Raises StackError, as for an active one in use."""
        return LayerStack(self.lower, self.upper, self.work, options=self.options)


@final
class Snapshots:
    """The snapshots of a store. Its methods may be called from any thread.

    They raise NotFound, AlreadyExists, FailedPrecondition and InvalidArgument where containerd's
    do.
    """

    def __init__(self, folders: Folders, catalogue: Catalogue, options: MountOptions) -> None:
        self._folders = folders
        self._catalogue = catalogue
        self._options = options

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[MountCall]:
        """An active snapshot over a committed one, or over nothing, and how to mount it."""
        with self._catalogue.change() as db:
            number, above = self._create(db, key, "active", parent, labels or {})
            self._make_directory(number, self._folders.files(above[0].directory) if above else None)
        return self.mounts(key)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[MountCall]:
        """A committed snapshot to read, and how to mount it; nothing where there is no parent."""
        with self._catalogue.change() as db:
            number, above = self._create(db, key, "view", parent, labels or {})
            if not above:
                self._make_directory(number, None)
        return self.mounts(key)

    def _create(
        self, db: sqlite3.Connection, key: str, kind: Kind, parent: str, labels: Mapping[str, str]
    ) -> tuple[int, list[_Row]]:
        """A new row: its number, and the rows below it, top first."""
        if not key:
            raise InvalidArgument("a snapshot needs a key", key)
        above = _line(db, parent) if parent else []
        if above and above[0].kind != "committed":
            raise InvalidArgument(f"it is {above[0].kind}; commit it to use it as parent", parent)
        if _exists(db, key):
            raise AlreadyExists("a snapshot has that name; choose another, or remove it", key)
        moment = now()
        made = db.execute(
            "INSERT INTO snapshot (name, kind, parent, labels, created, updated)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key, kind, above[0].number if above else None, json.dumps({**labels}), moment, moment),
        )
        assert made.lastrowid is not None, "it was inserted"
        return made.lastrowid, above

    def _make_directory(self, number: int, like: str | None) -> None:
        """An empty directory for a new row, whose root has owner and mode of the directory like."""
        place = self._folders.snapshot(number)
        self._folders.discard(place)  # of a row that a crash undid
        os.mkdir(place, 0o711)
        os.mkdir(f"{place}/fs", 0o755)
        os.mkdir(f"{place}/work", 0o700)
        os.chmod(f"{place}/fs", 0o755)
        if like is not None:
            status = os.stat(like)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(f"{place}/fs", status.st_uid, status.st_gid)
            os.chmod(f"{place}/fs", stat.S_IMODE(status.st_mode))
        flush_directory(os.path.dirname(place))

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Make an active snapshot, which must not be mounted, a committed one of that name.

        labels: the ones it has then; those of the active one are dropped.
        """
        with self._catalogue.read() as db:
            number = self._active(db, name, key)
        usage = disk_usage(self._folders.files(number))
        self.flush()
        with self._catalogue.change() as db:
            if self._active(db, name, key) != number:
                raise FailedPrecondition("it was exchanged meanwhile; commit it again", key)
            moment = now()
            db.execute(
                "UPDATE snapshot SET name = ?, kind = 'committed', labels = ?, created = ?,"
                " updated = ?, size = ?, inodes = ? WHERE id = ?",
                (
                    *(name, json.dumps({**(labels or {})}), moment, moment),
                    *(usage.size, usage.inodes, number),
                ),
            )
            self._catalogue.keep(db, name)
        self._folders.discard(self._folders.work(number))
        self._folders.empty_trash()

    def _active(self, db: sqlite3.Connection, name: str, key: str) -> int:
        """The number of the active snapshot key, which may be committed by name."""
        if name != key and _exists(db, name):
            raise AlreadyExists("a snapshot has that name; choose another, or remove it", name)
        number, _, kind = _line(db, key)[0]
        if kind != "active":
            raise FailedPrecondition(f"it is {kind}; only an active snapshot is committed", key)
        return number

    def flush(self) -> None:
        """Have all files of the store outlive a loss of power."""
        fd = os.open(self._folders.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            system.sync_filesystem(fd)
        finally:
            os.close(fd)

    def remove(self, key: str) -> None:
        """Remove a snapshot of any kind and its files.

        Raises FailedPrecondition while it is the parent of another.
        """
        with self._catalogue.change() as db:
            number, directory, _ = _line(db, key)[0]
            child = db.execute("SELECT name FROM snapshot WHERE parent = ?", (number,)).fetchone()
            if child:
                message = f"cannot remove snapshot with child {child[0]}; remove that first"
                raise FailedPrecondition(message, key)
            db.execute("DELETE FROM snapshot WHERE id = ?", (number,))
            needed = is_needed(db, directory)
        if not needed:
            self._folders.discard(self._folders.snapshot(directory))
            self._folders.empty_trash()

    def stat(self, key: str) -> Info:
        """What is known of a snapshot."""
        with self._catalogue.read() as db:
            return _info(db, key)

    def walk(self, *wanted: str) -> Iterator[Info]:
        """The snapshots that one of the filters takes, sorted by name; all where there are none.

        wanted: filters as `filters` has them, on name, parent, kind and labels.
        """
        matches = filters.matcher(wanted)
        with self._catalogue.read() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM {_JOINED} ORDER BY child.name").fetchall()
        return (info for info in map(_as_info, rows) if matches(_adaptor(info)))

    def update(self, info: Info, *fields: str) -> Info:
        """Change the labels of a snapshot, which are all that can be; as it is then.

        fields: "labels" for all of them, "labels.NAME" for one, which goes where info has none or
            an empty one; without fields, all.
        """
        with self._catalogue.change() as db:
            before = _info(db, info.name)
            labels = {**(before.labels if fields else info.labels)}
            for path in fields:
                if path == "labels":
                    labels = {**info.labels}
                elif path.startswith("labels."):
                    name = path.removeprefix("labels.")
                    labels[name] = info.labels.get(name, "")
                else:
                    raise InvalidArgument(f"{path} cannot be changed; labels can", info.name)
            labels = {name: value for name, value in labels.items() if value}
            db.execute(
                "UPDATE snapshot SET labels = ?, updated = ? WHERE name = ?",
                (json.dumps(labels), now(), info.name),
            )
            return _info(db, info.name)

    def usage(self, key: str) -> Usage:
        """What a snapshot takes on disk beside its parents: an active one now, a view nothing."""
        with self._catalogue.read() as db:
            number, _, kind = _line(db, key)[0]
            row = db.execute("SELECT size, inodes FROM snapshot WHERE id = ?", (number,)).fetchone()
        if kind == "committed":
            return Usage(*row)
        return disk_usage(self._folders.files(number)) if kind == "active" else Usage()

    def directories(self, key: str) -> Directories:
        """The layers of a snapshot of any kind: of a committed one, to read.

        Those below never change, so each has an index beside it, made when that is of use.
        """
        options = replace(self._options, layer_index="..")
        with self._catalogue.read() as db:
            (_, number, kind), *below = _line(db, key)
        lower = self._lower(below)
        if kind != "active":
            own = [] if kind == "view" and lower else [self._folders.files(number)]
            return Directories((*dict.fromkeys((*own, *lower)),), options=options)
        upper, work = self._folders.files(number), self._folders.work(number)
        if not lower:
            # overlayfs wants something below; the work directory's parent has an empty one
            empty = f"{self._folders.snapshot(number)}/empty"
            os.makedirs(empty, exist_ok=True)
            lower = [empty]
        return Directories((*lower,), upper, work, options)

    def _lower(self, rows: Sequence[_Row]) -> list[str]:
        """The directories of layers, top first, each once.

        A layer that comes again further down shows nothing: all it holds is decided above.
        """
        return [self._folders.files(number) for number in dict.fromkeys(row[1] for row in rows)]

    def mounts(self, key: str) -> list[MountCall]:
        """How to mount an active snapshot, or a view, in containerd's words."""
        with self._catalogue.read() as db:
            (_, number, kind), *below = _line(db, key)
        if kind == "committed":
            message = "it is committed; prepare or view a snapshot over it"
            raise FailedPrecondition(message, key)
        lower = self._lower(below)
        if not lower or (kind == "view" and len(lower) == 1):
            access = "rw" if kind == "active" else "ro"
            source = lower[0] if lower else self._folders.files(number)
            return [MountCall("bind", source, (access, "rbind"))]
        options = [f"lowerdir={':'.join(lower)}", "index=off"]
        if kind == "active":
            options = [
                f"workdir={self._folders.work(number)}",
                f"upperdir={self._folders.files(number)}",
                *options,
            ]
        if self._options.userxattr:
            options.append("userxattr")
        return [MountCall("overlay", "overlay", (*options,))]


class _Row(NamedTuple):
    """A snapshot's number, that of its directory, and its kind."""

    number: int
    directory: int
    kind: Kind


def _line(db: sqlite3.Connection, key: str) -> list[_Row]:
    """The row of a snapshot, and those of its parents upwards. Raises NotFound."""
    rows = [_Row(*row) for row in db.execute(_ANCESTORS, (key,))]
    if not rows:
        raise NotFound("the store has no such snapshot; see: unionmount snapshot list", key)
    return rows


def is_needed(db: sqlite3.Connection, directory: int) -> bool:
    """Whether a snapshot has the directory of that number."""
    query = "SELECT 1 FROM snapshot WHERE id = ?1 AND directory IS NULL OR directory = ?1"
    return db.execute(query, (directory,)).fetchone() is not None


def _exists(db: sqlite3.Connection, key: str) -> bool:
    return db.execute("SELECT 1 FROM snapshot WHERE name = ?", (key,)).fetchone() is not None


def _info(db: sqlite3.Connection, key: str) -> Info:
    row = db.execute(f"SELECT {_COLUMNS} FROM {_JOINED} WHERE child.name = ?", (key,)).fetchone()
    if row is None:
        raise NotFound("the store has no such snapshot; see: unionmount snapshot list", key)
    return _as_info(row)


def _as_info(row: tuple[Any, ...]) -> Info:
    name, kind, parent, labels, created, updated = row
    return Info(name, kind, parent or "", json.loads(labels), created, updated)


def _adaptor(info: Info) -> filters.Adaptor:
    fields = {"name": info.name, "kind": info.kind, "parent": info.parent}
    return filters.adaptor_of(fields, info.labels)


def disk_usage(directory: str) -> Usage:
    """What a directory and all in it take; a file with several names counts once."""
    first = os.stat(directory)
    seen = {first.st_ino}
    size = first.st_blocks * _BLOCK
    todo = [directory]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    size += status.st_blocks * _BLOCK
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return Usage(size, len(seen))
