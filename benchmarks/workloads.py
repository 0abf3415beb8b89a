"""What is timed: each workload as a generator whose clock runs between two yields.

What comes before the first `yield` prepares, what comes after the second one checks that the work
was really done; a generator with one `yield` is timed to its end. WORKLOADS is the one list.

A workload meets a fresh mount with an empty upper. "cold" means that the machine's caches were
dropped after mounting (`Room.chill`); "fresh" that the layers' files lie in the page cache
(`Room.warm`), so that the disk is not measured; "warm" that the same was done just before, through
the same mount.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random
from typing import Final, Literal, final

from benchmarks.fixtures import GIT, GIT_ENVIRONMENT, tree_paths
from benchmarks.peers import View
from benchmarks.scale import MIB, Scale

_PAGE: Final = 4096
_MISSES: Final = 5
_LISTINGS: Final = 10
_IMPORTS: Final = (
    "asyncio, concurrent.futures, csv, ctypes, decimal, difflib, doctest, email.mime.text, "
    "http.server, json, logging.config, multiprocessing.pool, optparse, pdb, pickle, sqlite3, "
    "statistics, tarfile, unittest.mock, urllib.request, uuid, xml.dom.minidom, "
    "xml.etree.ElementTree, xmlrpc.server, zipfile"
)

Steps = Iterator[None]


class WrongAnswer(Exception):
    """A union that did not do what was asked of it."""


@final
@dataclass(frozen=True, slots=True)
class Room:
    """What a workload works with.

    fs: the union. scale: the amounts. places: the directories that hold the files on disk.
    drop: whether the machine's caches can be dropped.
    """

    fs: View
    scale: Scale
    places: tuple[str, ...]
    drop: bool

    def chill(self) -> None:
        """Drop the machine's caches; without the privilege, the mount being fresh must do."""
        if self.drop:
            os.sync()
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
                caches.write("3")

    def warm(self) -> None:
        """Bring all files into the page cache, past the union."""
        for place in self.places:
            for top, _, names in os.walk(place):
                for name in names:
                    _drain(os.open(f"{top}/{name}", os.O_RDONLY))


@final
@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the results.

    fixture: what lies in the layers. run: the workload itself.
    amount, unit: how much it does. writes: whether it changes files.
    layered: whether it is run on deep stacks too. programs: what it runs on the mount; without a
    mount, as for the library, such a workload cannot be run.
    timed: "run", or for the workloads that are about these, what comes before or after it.
    """

    name: str
    title: str
    fixture: str
    run: Callable[[Room], Steps]
    amount: Callable[[Scale], int]
    unit: Literal["file", "name", "call", "byte", "run"]
    writes: bool
    layered: bool
    programs: tuple[str, ...]
    mounted: bool
    timed: Literal["run", "mount", "unmount"]


WORKLOADS: Final[dict[str, Workload]] = {}
"""The workloads by name, in the order that they are run and shown in."""


def _once(scale: Scale) -> int:
    return 1


def _workload(
    name: str,
    title: str,
    fixture: str,
    amount: Callable[[Scale], int] = _once,
    unit: Literal["file", "name", "call", "byte", "run"] = "run",
    *,
    writes: bool = False,
    layered: bool = False,
    programs: tuple[str, ...] = (),
    mounted: bool = False,
    timed: Literal["run", "mount", "unmount"] = "run",
) -> Callable[[Callable[[Room], Steps]], Callable[[Room], Steps]]:
    def enter(run: Callable[[Room], Steps]) -> Callable[[Room], Steps]:
        WORKLOADS[name] = Workload(
            name,
            title,
            fixture,
            run,
            amount,
            unit,
            writes,
            layered,
            programs,
            mounted or bool(programs),
            timed,
        )
        return run

    return enter


def _expect(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise WrongAnswer(f"{what}: expected {expected}, got {found}")


def _drain(fd: int) -> int:
    """Read a file to its end and close it; its size."""
    size = 0
    try:
        while data := os.read(fd, MIB):
            size += len(data)
    finally:
        os.close(fd)
    return size


def _walk(fs: View, top: str = ".") -> int:
    """List everything below top and stat it; how many files that are no directories."""
    files = 0
    pending = [top]
    while pending:
        folder = pending.pop()
        for entry in fs.scandir(folder):
            path = f"{folder}/{entry.name}"
            fs.lstat(path)
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                files += 1
    return files


def _read(fs: View, paths: Iterable[str]) -> int:
    """Read files from beginning to end; their bytes."""
    return sum(_drain(fs.os_open(path, os.O_RDONLY)) for path in paths)


def _some(paths: list[str], count: int) -> list[str]:
    """Files from everywhere in the tree."""
    return paths[:: len(paths) // count][:count]


def _append(fs: View, paths: Iterable[str]) -> None:
    for path in paths:
        fd = fs.os_open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, b"\n")
        finally:
            os.close(fd)


def _create(fs: View, paths: Iterable[str]) -> None:
    for path in paths:
        os.close(fs.os_open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _rename(fs: View, paths: Iterable[str]) -> None:
    for path in paths:
        fs.rename(path, f"{path}.renamed")


def _program(*command: str) -> None:
    """Run a program in the union; CalledProcessError has what it said."""
    environment = os.environ | GIT_ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
    subprocess.run(command, check=True, env=environment, capture_output=True)


def _files(scale: Scale) -> int:
    return scale.files


@_workload("mount", "mount", "tree", layered=True, mounted=True, timed="mount")
def _mount(room: Room) -> Steps:
    yield


@_workload("unmount", "unmount after a walk", "tree", layered=True, mounted=True, timed="unmount")
def _unmount(room: Room) -> Steps:
    yield
    _walk(room.fs)


@_workload("walk-cold", "walk the tree with stat, cold", "tree", _files, "file", layered=True)
def _walk_cold(room: Room) -> Steps:
    room.chill()
    yield
    files = _walk(room.fs)
    yield
    _expect("files", room.scale.files, files)


@_workload("walk-fresh", "walk the tree with stat, fresh", "tree", _files, "file", layered=True)
def _walk_fresh(room: Room) -> Steps:
    room.warm()
    yield
    files = _walk(room.fs)
    yield
    _expect("files", room.scale.files, files)


@_workload("walk-warm", "walk the tree with stat, warm", "tree", _files, "file", layered=True)
def _walk_warm(room: Room) -> Steps:
    _walk(room.fs)
    yield
    files = _walk(room.fs)
    yield
    _expect("files", room.scale.files, files)


def _stat(fs: View, paths: Iterable[str]) -> None:
    for path in paths:
        fs.lstat(path)


@_workload("stat-warm", "stat all files by path, warm", "tree", _files, "file", layered=True)
def _stat_warm(room: Room) -> Steps:
    paths = tree_paths(room.scale)
    _stat(room.fs, paths)
    yield
    _stat(room.fs, paths)


@_workload("read-cold", "read all small files, cold", "tree", _files, "file", layered=True)
def _read_cold(room: Room) -> Steps:
    paths = tree_paths(room.scale)
    room.chill()
    yield
    _read(room.fs, paths)


@_workload("read-fresh", "read all small files, fresh", "tree", _files, "file", layered=True)
def _read_fresh(room: Room) -> Steps:
    paths = tree_paths(room.scale)
    room.warm()
    yield
    _read(room.fs, paths)


@_workload("read-warm", "read all small files, warm", "tree", _files, "file", layered=True)
def _read_warm(room: Room) -> Steps:
    paths = tree_paths(room.scale)
    size = _read(room.fs, paths)
    yield
    again = _read(room.fs, paths)
    yield
    _expect("bytes", size, again)


def _misses(scale: Scale) -> int:
    return _MISSES * len(_absent_folders(scale))


def _absent_folders(scale: Scale) -> list[str]:
    return list(dict.fromkeys(path.rpartition("/")[0] for path in tree_paths(scale)))


def _look_up_absent(room: Room) -> int:
    """Look for names that do not exist; how many were missing indeed."""
    missing = 0
    for folder in _absent_folders(room.scale):
        for number in range(_MISSES):
            try:
                room.fs.lstat(f"{folder}/absent-{number}")
            except FileNotFoundError:
                missing += 1
    return missing


@_workload("absent-first", "look up absent names, once", "tree", _misses, "name", layered=True)
def _absent_first(room: Room) -> Steps:
    _walk(room.fs)
    yield
    missing = _look_up_absent(room)
    yield
    _expect("missing names", _misses(room.scale), missing)


@_workload("absent-repeated", "look up absent names, again", "tree", _misses, "name", layered=True)
def _absent_repeated(room: Room) -> Steps:
    _walk(room.fs)
    _look_up_absent(room)
    yield
    missing = _look_up_absent(room)
    yield
    _expect("missing names", _misses(room.scale), missing)


def _list(fs: View, times: int) -> int:
    return sum(sum(1 for _ in fs.scandir("directory")) for _ in range(times))


@_workload(
    "directory-cold",
    "list a merged directory, cold",
    "directory",
    lambda scale: scale.entries,
    "name",
    layered=True,
)
def _directory_cold(room: Room) -> Steps:
    room.chill()
    yield
    names = _list(room.fs, 1)
    yield
    _expect("names", room.scale.entries, names)


@_workload(
    "directory-warm",
    f"list a merged directory, warm, {_LISTINGS} times",
    "directory",
    lambda scale: scale.entries * _LISTINGS,
    "name",
    layered=True,
)
def _directory_warm(room: Room) -> Steps:
    _list(room.fs, 1)
    yield
    names = _list(room.fs, _LISTINGS)
    yield
    _expect("names", room.scale.entries * _LISTINGS, names)


def _new_paths(count: int) -> list[str]:
    return [f"new/file-{number}" for number in range(count)]


@_workload("create", "create files", "empty", lambda scale: scale.created, "file", writes=True)
def _create_files(room: Room) -> Steps:
    paths = _new_paths(room.scale.created)
    room.fs.mkdir("new")
    yield
    _create(room.fs, paths)
    yield
    _expect("files", len(paths), _walk(room.fs, "new"))


@_workload("unlink", "unlink new files", "empty", lambda scale: scale.created, "file", writes=True)
def _unlink_files(room: Room) -> Steps:
    paths = _new_paths(room.scale.created)
    room.fs.mkdir("new")
    _create(room.fs, paths)
    yield
    for path in paths:
        room.fs.unlink(path)
    yield
    _expect("files", 0, _walk(room.fs, "new"))


@_workload(
    "copy-up-small",
    "append to small lower files",
    "tree",
    lambda scale: scale.copied,
    "file",
    writes=True,
)
def _copy_up_small(room: Room) -> Steps:
    paths = _some(tree_paths(room.scale), room.scale.copied)
    sizes = [room.fs.lstat(path).st_size for path in paths]
    room.warm()
    yield
    _append(room.fs, paths)
    yield
    grown = [room.fs.lstat(path).st_size - 1 for path in paths]
    _expect("sizes before", sizes, grown)


@_workload(
    "copy-up-large",
    "append to a large lower file",
    "large",
    lambda scale: scale.large,
    "byte",
    writes=True,
)
def _copy_up_large(room: Room) -> Steps:
    room.warm()
    yield
    _append(room.fs, ["file"])
    yield
    _expect("size", room.scale.large + 1, room.fs.lstat("file").st_size)


@_workload(
    "rename-lower",
    "rename lower files",
    "tree",
    lambda scale: scale.renamed,
    "file",
    writes=True,
)
def _rename_lower(room: Room) -> Steps:
    paths = _some(tree_paths(room.scale), room.scale.renamed)
    room.warm()
    yield
    _rename(room.fs, paths)
    yield
    _expect("files", room.scale.files, _walk(room.fs, "usr"))


@_workload(
    "rename-upper",
    "rename upper files",
    "empty",
    lambda scale: scale.renamed,
    "file",
    writes=True,
)
def _rename_upper(room: Room) -> Steps:
    paths = _new_paths(room.scale.renamed)
    room.fs.mkdir("new")
    _create(room.fs, paths)
    yield
    _rename(room.fs, paths)
    yield
    _expect("files", len(paths), _walk(room.fs, "new"))


@_workload("rename-directory", "rename a large lower directory", "tree", writes=True)
def _rename_directory(room: Room) -> Steps:
    files = _walk(room.fs, "usr/share")
    yield
    room.fs.rename("usr/share", "usr/moved")
    yield
    _expect("files", files, _walk(room.fs, "usr/moved"))


@_workload(
    "untar",
    "unpack an archive",
    "archive",
    lambda scale: scale.archived,
    "file",
    writes=True,
    programs=("tar",),
)
def _untar(room: Room) -> Steps:
    room.warm()
    yield
    _program("tar", "-xf", "archive.tar")
    yield
    _expect("files", room.scale.archived, _walk(room.fs, "content"))


def _sequential_bytes(scale: Scale) -> int:
    return scale.sequential


@_workload("read-large", "read a large file, fresh", "sequential", _sequential_bytes, "byte")
def _read_large(room: Room) -> Steps:
    room.warm()
    yield
    size = _read(room.fs, ["file"])
    yield
    _expect("bytes", room.scale.sequential, size)


def _write(room: Room, size: int) -> None:
    data = Random(0).randbytes(MIB)
    fd = room.fs.os_open("written", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        for _ in range(size // MIB):
            os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


@_workload(
    "write-large", "write a large file, fsync", "empty", _sequential_bytes, "byte", writes=True
)
def _write_large(room: Room) -> Steps:
    yield
    _write(room, room.scale.sequential)
    yield
    _expect("size", room.scale.sequential, room.fs.lstat("written").st_size)


def _pages(size: int, count: int) -> list[int]:
    """Offsets of random pages in a file of that size."""
    choose = Random(0)
    return [choose.randrange(size // _PAGE) * _PAGE for _ in range(count)]


@_workload(
    "read-random",
    "read random 4 KiB, fresh",
    "sequential",
    lambda scale: scale.random,
    "call",
)
def _read_random(room: Room) -> Steps:
    offsets = _pages(room.scale.sequential, room.scale.random)
    room.warm()
    fd = room.fs.os_open("file", os.O_RDONLY)
    yield
    for offset in offsets:
        os.pread(fd, _PAGE, offset)
    yield
    os.close(fd)


@_workload(
    "write-random",
    "write random 4 KiB, fsync",
    "empty",
    lambda scale: scale.random,
    "call",
    writes=True,
)
def _write_random(room: Room) -> Steps:
    size = room.scale.sequential // 4
    _write(room, size)
    offsets = _pages(size, room.scale.random)
    page = Random(1).randbytes(_PAGE)
    fd = room.fs.os_open("written", os.O_WRONLY)
    yield
    for offset in offsets:
        os.pwrite(fd, page, offset)
    os.fsync(fd)
    yield
    os.close(fd)


@_workload("read-mmap", "read a mapped file, fresh", "sequential", _sequential_bytes, "byte")
def _read_mapped(room: Room) -> Steps:
    room.warm()
    fd = room.fs.os_open("file", os.O_RDONLY)
    yield
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        size = sum(len(mapped[start : start + MIB]) for start in range(0, len(mapped), MIB))
    yield
    os.close(fd)
    _expect("bytes", room.scale.sequential, size)


@_workload("python", "start Python with many imports, fresh", "python", mounted=True)
def _python(room: Room) -> Steps:
    code = f"import sys; sys.path[:] = ['lib', 'lib/lib-dynload']; import {_IMPORTS}"
    room.warm()
    yield
    _program(sys.executable, "-I", "-S", "-c", code)


@_workload(
    "git-status",
    "git status, warm",
    "repository",
    lambda scale: scale.repository,
    "file",
    writes=True,
    programs=("git",),
)
def _git_status(room: Room) -> Steps:
    _program(*GIT, "status")
    yield
    _program(*GIT, "status")


@_workload(
    "git-checkout",
    "git checkout of another branch",
    "repository",
    lambda scale: scale.repository // 10,
    "file",
    writes=True,
    programs=("git",),
)
def _git_checkout(room: Room) -> Steps:
    _program(*GIT, "status")
    yield
    _program(*GIT, "checkout", "--quiet", "other")


@_workload(
    "compile",
    "compile a C project",
    "project",
    lambda scale: scale.sources,
    "file",
    writes=True,
    programs=("make", "cc"),
)
def _compile(room: Room) -> Steps:
    room.warm()
    yield
    _program("make", "--silent", "CC=cc", "program")
    yield
    _program("./program")


def _client(fs: View, number: int, paths: list[str]) -> None:
    """One of several: walk, read a share of the files, create as many."""
    _walk(fs)
    _read(fs, paths)
    fs.mkdir(f"client-{number}")
    _create(fs, [f"client-{number}/{at}" for at in range(len(paths))])


@_workload(
    "clients",
    "several clients at once",
    "tree",
    lambda scale: scale.clients,
    "run",
    writes=True,
    mounted=True,
)
def _clients(room: Room) -> Steps:
    paths = tree_paths(room.scale)
    count = room.scale.clients
    room.warm()
    with ProcessPoolExecutor(count, mp_context=get_context("fork")) as pool:
        yield
        shares = [(number, paths[number :: 4 * count]) for number in range(count)]
        for done in [pool.submit(_client, room.fs, *share) for share in shares]:
            done.result()
        yield
