"""A container: a layer of its own over an image, which any number of them share.

A container is an active snapshot of the store over its image's layers, by its name, with two
labels: what the image was called, and its manifest, which a collection keeps therefore. What runs
or mounts it lies beside the snapshots:

    containers/NAME/rootfs       where it is mounted unless another place is named
    containers/NAME/config.json  what a runtime ran it with

Cost of making one: a snapshot, whatever the image's size, once the image is unpacked.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from typing import BinaryIO, Final, cast, final

import unionfs
from unionfs.images import library
from unionfs.images.documents import Config, Descriptor, History, Manifest
from unionfs.images.library import Image
from unionfs.images.reference import Reference
from unionfs.images.source import read_config
from unionfs.layers import write_layer
from unionfs.stack import LayerStack
from unionfs.store import FailedPrecondition, InvalidArgument, NotFound, Store, Writer, digest
from unionfs.store.collect import GC_REFERENCE
from unionfs.store.snapshots import Info

IMAGE: Final = "unionmount.image"
"""The label that tells a container from other snapshots: what its image was called."""
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


@final
@dataclass(frozen=True, slots=True)
class Container:
    """image: what it was called when this was made. manifest: the image's digest.

    created: nanoseconds since 1970. target: where it is mounted, or None.
    """

    name: str
    image: str
    manifest: str
    created: int
    target: str | None


@final
class Containers:
    """The containers of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, image: str, name: str | None = None) -> Container:
        """A container of an image in the store.

        image: a reference, or the beginning of an ID. name: letters, digits, `_`, `.` and `-`; by
        default one is made up.

        Raises NotFound for the image, AlreadyExists for the name, InvalidReference.
        """
        key = name or uuid.uuid4().hex[:12]
        if not _NAME.fullmatch(key):
            raise InvalidArgument("not a container's name; use letters, digits, _ . and -", key)
        named = library.find(self._store, image)
        chosen = named.image()
        labels = {IMAGE: named.name.familiar, GC_REFERENCE: chosen.target.digest}
        chain = digest.chain_id(chosen.config.rootfs.diff_ids)
        if chain in self._store.layers:
            with contextlib.suppress(NotFound):  # collected meanwhile
                self._store.snapshots.prepare(key, chain, labels)
                return self._container(self._info(key), {})
        with self._store.leases.hold():
            self._store.snapshots.prepare(key, library.unpack(self._store, chosen), labels)
        return self._container(self._info(key), {})

    def get(self, name: str) -> Container:
        """Raises NotFound."""
        return self._container(self._info(name), self._mounts())

    def _info(self, name: str) -> Info:
        try:
            info = self._store.snapshots.stat(name)
        except NotFound:
            raise _no_container(name) from None
        if IMAGE not in info.labels:
            raise _no_container(name)
        return info

    def list(self) -> list[Container]:
        """All of them, by name."""
        mounts = self._mounts()
        return [
            self._container(info, mounts) for info in self._store.snapshots.walk(f"labels.{IMAGE}")
        ]

    def _container(self, info: Info, mounts: dict[str, str]) -> Container:
        upper = self._store.snapshots.directories(info.name).upper or ""
        return Container(
            info.name,
            info.labels[IMAGE],
            info.labels[GC_REFERENCE],
            info.created,
            mounts.get(upper),
        )

    def _mounts(self) -> dict[str, str]:
        """Where the uppers of unions are mounted here."""
        return {mount.upper: mount.target for mount in unionfs.list_mounts() if mount.upper}

    def folder(self, name: str) -> str:
        """Where a container's runtime files lie."""
        return f"{self._store.root}/containers/{name}"

    def mountable(self, name: str, target: str | None = None) -> str:
        """Where to mount a container: at target, else in the store, where the directory is made.

        Raises NotFound.
        """
        self._info(name)
        if target is None:
            target = f"{self.folder(name)}/rootfs"
            os.makedirs(target, mode=0o711, exist_ok=True)
        return target

    def mount(self, name: str, target: str | None = None) -> unionfs.Mount:
        """Mount a container, by default in the store.

        Raises NotFound, StackError (EBUSY) where it is mounted, MountError.
        """
        place = self.mountable(name, target)
        with self._store.snapshots.directories(name).open() as stack:
            return unionfs.mount(stack, place)

    def unmount(self, name: str) -> None:
        """Unmount a container. Raises NotFound, FailedPrecondition where it is not mounted."""
        target = self.get(name).target
        if target is None:
            raise FailedPrecondition("it is not mounted", name)
        unionfs.unmount(target)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a container and what it wrote.

        force: unmount it first. Raises NotFound, FailedPrecondition where it is mounted.
        """
        target = self.get(name).target
        if target is not None and not force:
            message = f"it is mounted at {target}; unmount it, or remove it by force"
            raise FailedPrecondition(message, name)
        if target is not None:
            unionfs.unmount(target, lazy=True)
        self._store.snapshots.remove(name)
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def image(self, name: str) -> Image:
        """The image that a container was made of. Raises NotFound."""
        with self._store.blobs.open(self._info(name).labels[GC_REFERENCE]) as file:
            manifest = Manifest.read(file.read())
        config = read_config(library.Stored(self._store), manifest)
        return Image(Descriptor.to(manifest.raw, manifest.media_type), manifest, config)

    def opened(self, name: str) -> LayerStack:
        """The layers of a container to read, its own on top. Raises NotFound."""
        directories = self._store.snapshots.directories(self._info(name).name)
        assert directories.upper is not None, "a container is an active snapshot"
        return LayerStack((directories.upper, *directories.lower), options=self._store.options)

    def layer(self, name: str, clamp: int | None = None) -> tuple[Descriptor, str]:
        """What a container changes, as a layer in the store, and its diff ID. A lease must keep it.

        clamp: see `write_layer`. Nobody should write to the container meanwhile; it may be mounted.

        Raises NotFound, LayerError.
        """
        with self.opened(name) as stack, self._store.blobs.writer() as writer:
            written = write_layer(stack, cast(BinaryIO, Into(writer)), clamp=clamp)
        return Descriptor(written.media_type, written.digest, written.size), written.diff_id

    def commit(self, name: str, reference: str, *, author: str = "", comment: str = "") -> Image:
        """An image of a container as it is now: its image's layers, and one of its changes.

        Nobody should write to the container meanwhile; it may be mounted.

        Raises NotFound, InvalidReference, LayerError.
        """
        called = Reference.parse(reference)
        with self._store.leases.hold():
            base = self.image(name)
            layer, diff_id = self.layer(name)
            config = self._stepped(base.config, diff_id, author, comment)
            image = library.add(self._store, config, (*base.manifest.layers, layer))
            library.tag(self._store, image.target, called)
        return image

    def _stepped(self, config: Config, diff_id: str, author: str, comment: str) -> Config:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        step = History(
            created=moment, created_by="unionmount commit", author=author, comment=comment
        )
        return config.after(step, diff_id)


@final
class Into(io.RawIOBase):
    """A blob's writer as a file."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        chunk = bytes(cast(bytes, data))
        self._writer.write(chunk)
        return len(chunk)


def _no_container(name: str) -> NotFound:
    return NotFound("the store has no such container; see: unionmount containers", name)
