"""RUN: what a command is lent by `--mount`, and how the layer stays free of it.

A bind is a union of its own over the context, or over a stage's layers, whose writes go when the
command ends: what `.dockerignore` leaves out is removed from that union, and nothing from the
context. A cache is a directory of the store, which nothing but builds uses. A secret is a file in
memory. None of them is in the layer, and neither are the directories and files on which the runtime
had to mount something and that the image lacks.

Rules: Dockerfile reference, "RUN --mount"; BuildKit's executor for mount points. Cost: a mount a
bind; for the mount points, a status of each before the command, and after it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, final

import unionfs
from unionfs.build.copying import Source
from unionfs.build.dockerfile import Instruction
from unionfs.build.mounts import Mount
from unionfs.build.settings import working_directory
from unionfs.containers import Containers
from unionfs.containers.bundle import Tmpfs, Volume
from unionfs.containers.container import IMAGE
from unionfs.images import library
from unionfs.images.documents import Settings
from unionfs.images.library import Image
from unionfs.stack import LayerStack
from unionfs.store import Store
from unionfs.store.collect import GC_REFERENCE
from unionfs.store.folders import claimed
from unionfs.store.snapshots import Directories
from unionfs.union import UnionFS

CONTAINER: Final = "build"
"""What the containers of builds say that their image is, and their names begin with."""

CACHES: Final = "build/caches"
"""Where in a store the caches are."""

_SCRIPTS: Final = "/dev/pipes"
_MEMORY: Final = "/dev/shm"


@contextmanager
def container(store: Store, image: Image, parent: str) -> Iterator[str]:
    """A container for a step, removed at the end. parent: the layers that it is over, by chain."""
    name = f"{CONTAINER}-{uuid.uuid4().hex[:12]}"
    labels = {IMAGE: CONTAINER, GC_REFERENCE: image.target.digest}
    store.snapshots.prepare(name, parent, labels)
    try:
        yield name
    finally:
        Containers(store).remove(name, force=True)


@final
@dataclass(slots=True)
class Lent:
    """What a command gets beside the image."""

    volumes: list[Volume] = field(default_factory=list)
    tmpfs: list[Tmpfs] = field(default_factory=list)
    env: list[str] = field(default_factory=list)


@final
@dataclass(frozen=True, slots=True)
class Lender:
    """Lends one RUN what its mounts ask for.

    context: the directory, and its files. image: that of the step. origin: the image of a stage or
    name. secrets: by their IDs.
    """

    store: Store
    context: tuple[str, Source]
    image: Image
    origin: Callable[[str], Image]
    secrets: Mapping[str, bytes]

    @contextmanager
    def lent(self, one: Instruction, mounts: Iterable[Mount], settings: Settings) -> Iterator[Lent]:
        """For as long as the block lasts. Raises BuildError, OSError."""
        found = Lent()
        with ExitStack() as stack:
            for mount in mounts:
                target = working_directory(settings, mount.target) if mount.target else ""
                if mount.kind == "tmpfs":
                    found.tmpfs.append(Tmpfs(target, (f"size={mount.size}",) if mount.size else ()))
                    continue
                if mount.kind == "secret":
                    source = stack.enter_context(self._secret(one, mount, found.env))
                elif mount.kind == "cache":
                    source = stack.enter_context(self._cache(mount))
                else:
                    source = stack.enter_context(self._bind(one, mount))
                if source and target:
                    found.volumes.append(Volume(source, target, not mount.writable))
            if one.names_interpreter:
                source = stack.enter_context(_file(one.script.encode(), 0o755, self.store.root))
                found.volumes.append(Volume(source, script_place(one), read_only=True))
            yield found

    @contextmanager
    def _bind(self, one: Instruction, mount: Mount) -> Iterator[str]:
        over = self.origin(mount.origin) if mount.origin else None
        parent = library.unpack(self.store, over) if over else ""
        with container(self.store, self.image, parent) as name:
            containers = Containers(self.store)
            place = containers.mountable(name)
            directories = self.store.snapshots.directories(name)
            with directories.open() if over else self._context_under(directories) as layers:
                unionfs.mount(layers, place)
            top = os.path.realpath(place)
            source = os.path.realpath(posixpath.join(top, mount.source.lstrip("/")))
            if source != top and not source.startswith(f"{top}/"):
                raise one.error(f"{mount.source} leads out of what is mounted; name its target")
            if not os.path.exists(source):
                raise one.error(f"{mount.source}: no such file to mount; check .dockerignore")
            yield source

    def _context_under(self, directories: Directories) -> LayerStack:
        """The context without the files that are left out, under a throw-away upper."""
        folder, source = self.context
        whole = replace(directories, lower=(folder,))
        with whole.open() as stack:
            union = UnionFS(stack)
            for path in source.left_out():
                if stat.S_ISDIR(union.lstat(f"/{path}").st_mode):
                    union.rmtree(f"/{path}")
                else:
                    union.unlink(f"/{path}")
        return whole.open()

    @contextmanager
    def _cache(self, mount: Mount) -> Iterator[str]:
        flags = os.O_RDONLY | os.O_DIRECTORY
        number = 0
        while True:
            name = sha256(f"{mount.id}\0{number}".encode()).hexdigest()
            path = f"{self.store.root}/{CACHES}/{name}"
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(path)
                os.chown(path, mount.uid, mount.gid)
                os.chmod(path, mount.mode)
            if mount.sharing == "shared":
                yield path
                return
            with claimed(path, flags, wait=mount.sharing == "locked") as fd:
                if fd is not None:
                    yield path
                    return
            number += 1

    @contextmanager
    def _secret(self, one: Instruction, mount: Mount, env: list[str]) -> Iterator[str]:
        """The file of a secret; "" where it is not given, and need not be."""
        content = self.secrets.get(mount.id)
        if content is None:
            if mount.required:
                raise one.error(
                    f"the secret {mount.id} is missing; add --secret id={mount.id},src=FILE"
                )
            yield ""
            return
        if mount.env:
            env.append(f"{mount.env}={os.fsdecode(content)}")
        memory = _MEMORY if os.path.isdir(_MEMORY) else None
        with _file(content, mount.mode, memory, (mount.uid, mount.gid)) as path:
            yield path


def script_place(one: Instruction) -> str:
    """Where the script of a RUN is, that names its own interpreter."""
    return f"{_SCRIPTS}/{one.documents[0].name}"


@contextmanager
def _file(
    content: bytes, mode: int, folder: str | None, owner: tuple[int, int] = (0, 0)
) -> Iterator[str]:
    """A file in a directory of its own, which nobody else may enter."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = f"{directory}/file"
        with open(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content)
        os.chown(path, *owner)
        os.chmod(path, mode)
        yield path


Files = Callable[[], AbstractContextManager[UnionFS]]


@contextmanager
def without_mount_points(files: Files, targets: Iterable[str]) -> Iterator[None]:
    """Remove what a runtime had to make in a container to mount something there.

    files: the container's, while it is not mounted. A directory in which nothing else came or went
    is as old as before.
    """
    with files() as union:
        made = [chain for target in targets if (chain := _missing(union, target))]
        parents = {posixpath.dirname(chain[-1]) for chain in made}
        before = {
            parent: (union.listdir(parent), union.stat(parent))
            for parent in parents
            if union.exists(parent)
        }
    yield
    with files() as union:
        for chain in sorted(made, reverse=True):
            _remove_empty(union, chain)
        for parent, (names, status) in before.items():
            if union.exists(parent) and sorted(union.listdir(parent)) == sorted(names):
                union.utime(parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def _missing(union: UnionFS, target: str) -> list[str]:
    """A path and the directories that lead to it, as far as they are missing; the deepest first."""
    found = []
    path = posixpath.normpath(target)
    while not union.exists(path):
        found.append(path)
        path = posixpath.dirname(path)
    return found


def _remove_empty(union: UnionFS, chain: Iterable[str]) -> None:
    """Remove directories and files as long as they are empty, the deepest first."""
    for path in chain:
        try:
            status = union.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                union.rmdir(path)
            elif stat.S_ISREG(status.st_mode) and not status.st_size:
                union.unlink(path)
            else:
                return
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return
