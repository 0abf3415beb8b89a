"""The images of a store: by name or ID, what they consist of, what they are called.

A name stands for a manifest, or for an index of which the store may have only some images. An
image's ID is the digest of its manifest or index; that of its configuration finds it too.

The rule: whatever a document needs is in the store before it, so one that is there is whole; but
for an index, whose missing images are simply not there.

Cost: reading one document an image, and its configuration.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, final

from unionfs.images.documents import OCI_CONFIG, OCI_MANIFEST, Config, Descriptor, Manifest
from unionfs.images.files import chunks
from unionfs.images.platform import Platform, best
from unionfs.images.reference import InvalidReference, Reference
from unionfs.images.source import Graph, blobs_of, read_config, walk, what_is_there
from unionfs.layers import Change, changes
from unionfs.layers.streams import MEDIA_TYPES
from unionfs.stack import LayerStack
from unionfs.store import NotFound, Store

_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
_DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_LAYERS: Final = {
    _DOCKER_LAYER: MEDIA_TYPES["none"],
    f"{_DOCKER_LAYER}.gzip": MEDIA_TYPES["gzip"],
    f"{_DOCKER_LAYER}.zstd": MEDIA_TYPES["zstd"],
}


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """A store as a source of images."""

    store: Store

    def document(self, descriptor: Descriptor) -> bytes:
        """See `Source`."""
        with self.store.blobs.open(descriptor.digest) as file:
            return file.read()

    def chunks(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """See `Source`."""
        return chunks(self.store.blobs.open(descriptor.digest), start)


@final
@dataclass(frozen=True, slots=True)
class Image:
    """One image, for one platform. target: its manifest."""

    target: Descriptor
    manifest: Manifest
    config: Config

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return self.config.platform.normal()

    @property
    def chain(self) -> list[tuple[str, str]]:
        """Digest and diff ID of each layer, the lowest first, as the store unpacks them."""
        digests = (layer.digest for layer in self.manifest.layers)
        return [*zip(digests, self.config.rootfs.diff_ids, strict=True)]

    @property
    def size(self) -> int:
        """Bytes of its blobs, compressed as they are."""
        blobs = {blob.digest: blob.size for blob in blobs_of(self.manifest)}
        return sum(blobs.values()) + self.target.size


@final
@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for. target: a manifest or index; images: those that are in the store.

    whole: whether these are all. updated: when the name was set, nanoseconds since 1970.
    """

    name: Reference
    target: Descriptor
    images: tuple[Image, ...]
    whole: bool
    updated: int

    def image(self, platform: Platform | None = None) -> Image:
        """The image that runs best on a platform, by default on this machine.

        Raises FileNotFoundError where none does.
        """
        wanted = platform or Platform.of_this_machine()
        offered = [image.platform for image in self.images]
        position = best(wanted, offered)
        if position is None and platform is None and len(offered) == 1:
            position = 0
        if position is None:
            message = f"no image for {wanted}; there are: {', '.join(map(str, offered))}"
            raise FileNotFoundError(errno.ENOENT, message, self.name.familiar)
        return self.images[position]

    def graph(self, store: Store) -> Graph:
        """What to hand on: all where all is there, else the image for this machine."""
        target = self.target if self.whole else self.image().target
        return walk(Stored(store), target, what_is_there)


def named(store: Store, domain: str | None = None) -> Iterator[Named]:
    """What the names stand for, sorted; without broken images, about which `load` raises.

    domain: only names on that registry.
    """
    for row in store.names:
        if domain is None or Reference.parse(row.name).domain == domain:
            with suppress(OSError):
                yield load(store, row.name)


def find(store: Store, text: str) -> Named:
    """The image that a name means, or the beginning of an ID. Raises InvalidReference, NotFound."""
    id_ = _ID.fullmatch(text)
    try:
        return load(store, str(Reference.parse(text).chosen()))
    except (NotFound, InvalidReference):
        if id_ is None:
            raise
    found = [each for each in named(store) if _is_called(each, id_[1])]
    targets = {each.target.digest for each in found}
    if len(targets) > 1:
        message = f"begins the IDs of {len(targets)} images; give more of it"
        raise OSError(errno.EINVAL, message, text)
    if not found:
        raise NotFound("the store has no such image; pull or import it", text)
    return found[0]


def _is_called(found: Named, digits: str) -> bool:
    ids = [found.target.digest]
    for image in found.images:
        ids += [image.target.digest, image.manifest.config.digest]
    return any(each.partition(":")[2].startswith(digits) for each in ids)


def load(store: Store, name: str) -> Named:
    """What a full name stands for. Raises NotFound, and other OSErrors for a broken image."""
    row = store.names.get(name)
    target = Descriptor(row.media_type, row.digest, row.size)
    source = Stored(store)
    graph = walk(source, target, what_is_there)
    images = tuple(
        Image(descriptor, manifest, read_config(source, manifest))
        for descriptor, manifest in graph.manifests
    )
    return Named(Reference.parse(name), target, images, graph.whole, row.updated)


def tag(store: Store, target: Descriptor, name: Reference) -> None:
    """Have a name stand for a manifest or index in the store."""
    store.names.set(str(name.chosen()), target.digest, target.media_type, target.size)


def remove(store: Store, text: str) -> str:
    """Take away a name, or the one name of the image with an ID; returns it in full.

    What nothing else needs goes with the next collection. Raises NotFound, OSError EINVAL.
    """
    with suppress(NotFound, InvalidReference):
        name = str(Reference.parse(text).chosen())
        store.names.remove(name)
        return name
    target = find(store, text).target
    names = [row.name for row in store.names if row.digest == target.digest]
    if len(names) > 1:
        message = f"it has {len(names)} names; remove it by these: {', '.join(names)}"
        raise OSError(errno.EINVAL, message, text)
    store.names.remove(names[0])
    return names[0]


def add(store: Store, config: Config, layers: Sequence[Descriptor]) -> Image:
    """Add an image of layers that are in the store, the lowest first. A lease must keep it.

    Layers that came by Docker's names for their kinds have OCI's in it.
    """
    described = Descriptor.to(config.raw, OCI_CONFIG)
    renamed = (
        replace(layer, media_type=_DOCKER_LAYERS.get(layer.media_type, layer.media_type))
        for layer in layers
    )
    manifest = Manifest(config=described, layers=tuple(renamed))
    target = Descriptor.to(manifest.raw, OCI_MANIFEST)
    store.blobs.add(config.raw)
    store.blobs.add(manifest.raw)
    store.blobs.refer(target.digest, [blob.digest for blob in blobs_of(manifest)])
    return Image(target, manifest, config)


def unpack(store: Store, image: Image) -> str:
    """Have the layers of an image unpacked; the chain ID of all, "" of none.

    Raises LayerError for a layer that is not what its diff ID says.
    """
    return store.layers.unpack(image.chain, image=image.target.digest)


def diff(store: Store, old: Image, new: Image) -> list[Change]:
    """The changes that lead from one image to another; see `unionfs.layers.changes`."""
    with store.leases.hold():
        mine, theirs = (_layers(store, image) for image in (new, old))
        shared = 0
        while shared < min(len(mine), len(theirs)) and mine[-1 - shared] == theirs[-1 - shared]:
            shared += 1
        own, others = mine[: len(mine) - shared], theirs[: len(theirs) - shared]
        if not own and not others:
            return []
        with LayerStack([*own, *others, *mine[len(own) :]], options=store.options) as stack:
            return [*changes(stack, len(own), len(others))]


def _layers(store: Store, image: Image) -> list[str]:
    """The directories of an image's layers, top first."""
    chain_id = unpack(store, image)
    return store.layers.stack(chain_id) if chain_id else []
