"""The documents that make an image: index, manifest, configuration and history.

    index ──► manifest, one a platform ──► configuration (settings, diff IDs, history)
                                      └──► layers, the lowest first

Each names the next by a descriptor, whose digest is that of the bytes. Both families are read, the
OCI's and Docker's schema 2, which differ in media types alone. A document that could be read as
another than its media type says is refused (CVE-2021-41190).

Rule: OCI image specification 1.1; Docker image manifest version 2, schema 2; for the settings,
Docker's image specification 1.2. Cost: the parsing of a few KiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

from unionfs.images import fields
from unionfs.images.fields import Data, Document, Fields, InvalidDocument, key
from unionfs.images.platform import Platform
from unionfs.store import InvalidArgument, digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation by which an image layout names its images."""

INDEXES: Final = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"


def _digest(data: Any) -> str:
    read = fields.text(data)
    try:
        digest.parts(read)
    except InvalidArgument as error:
        raise InvalidDocument(f"{read}: {error.strerror}") from None
    return read


@final
@dataclass(frozen=True, slots=True)
class Descriptor(Fields):
    """What a document names another blob by.

    size: bytes. platform: what the blob runs on, where it is an image in an index, as JSON with all
    details.
    """

    media_type: str = key("mediaType", fields.text)
    digest: str = key("digest", _digest)
    size: int = key("size", fields.count)
    annotations: Data = key("annotations", fields.texts, factory=dict)
    platform_data: Data | None = key("platform", fields.mapping, default=None)

    @classmethod
    def to(cls, raw: bytes, media_type: str) -> Self:
        """The descriptor of some bytes."""
        return cls(media_type, digest.of_bytes(raw), len(raw))

    @property
    def platform(self) -> Platform | None:
        """What the blob runs on, where the descriptor says it."""
        if self.platform_data is None:
            return None
        known = (self.platform_data.get(name) or "" for name in ("os", "architecture", "variant"))
        return Platform(*map(fields.text, known))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Document):
    """One image: its configuration and its layers, the lowest first."""

    schema_version: int = key("schemaVersion", fields.count, default=2)
    media_type: str = key("mediaType", fields.text, default=OCI_MANIFEST)
    config: Descriptor = key("config", Descriptor.of)
    layers: tuple[Descriptor, ...] = key("layers", fields.each_of(Descriptor.of))
    annotations: Data = key("annotations", fields.texts, factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Document):
    """Images for several platforms under one name; or, in an image layout, under several names."""

    schema_version: int = key("schemaVersion", fields.count, default=2)
    media_type: str = key("mediaType", fields.text, default=OCI_INDEX)
    manifests: tuple[Descriptor, ...] = key("manifests", fields.each_of(Descriptor.of))
    annotations: Data = key("annotations", fields.texts, factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Settings(Fields):
    """How a container of the image starts; all but `labels` can be overridden then.

    env: NAME=VALUE. entrypoint: the program and its first arguments. cmd: those that follow.
    exposed_ports: PORT[/PROTOCOL]. volumes: paths. shell: what runs the text of a RUN.
    """

    user: str = key("User", fields.text, default="")
    exposed_ports: tuple[str, ...] = key(
        "ExposedPorts", fields.names, write=fields.as_set, default=()
    )
    env: tuple[str, ...] = key("Env", fields.each_of(fields.text), default=())
    entrypoint: tuple[str, ...] = key("Entrypoint", fields.each_of(fields.text), default=())
    cmd: tuple[str, ...] = key("Cmd", fields.each_of(fields.text), default=())
    volumes: tuple[str, ...] = key("Volumes", fields.names, write=fields.as_set, default=())
    working_dir: str = key("WorkingDir", fields.text, default="")
    labels: Data = key("Labels", fields.texts, factory=dict)
    stop_signal: str = key("StopSignal", fields.text, default="")
    healthcheck: Data | None = key("Healthcheck", fields.mapping, default=None)
    shell: tuple[str, ...] = key("Shell", fields.each_of(fields.text), default=())
    on_build: tuple[str, ...] = key("OnBuild", fields.each_of(fields.text), default=())


@final
@dataclass(frozen=True, slots=True)
class RootFs(Fields):
    """The layers by their diff IDs, the digests of their tars before compression; lowest first."""

    diff_ids: tuple[str, ...] = key("diff_ids", fields.each_of(_digest))
    type: str = key("type", fields.text, default="layers")


@final
@dataclass(frozen=True, slots=True)
class History(Fields):
    """One step that made the image. created: RFC 3339. empty_layer: the step made no layer."""

    created: str = key("created", fields.text, default="")
    created_by: str = key("created_by", fields.text, default="")
    author: str = key("author", fields.text, default="")
    comment: str = key("comment", fields.text, default="")
    empty_layer: bool = key("empty_layer", fields.truth, default=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Document):
    """An image's configuration; its digest is the image's ID. created: RFC 3339."""

    architecture: str = key("architecture", fields.text)
    os: str = key("os", fields.text)
    variant: str = key("variant", fields.text, default="")
    created: str = key("created", fields.text, default="")
    author: str = key("author", fields.text, default="")
    settings: Settings = key("config", Settings.of, factory=Settings)
    rootfs: RootFs = key("rootfs", RootFs.of)
    history: tuple[History, ...] = key("history", fields.each_of(History.of), default=())

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(self.os, self.architecture, self.variant)

    def after(self, step: History, diff_id: str | None = None) -> Self:
        """The configuration after one more step, and the layer that it made, if any."""
        step = replace(step, empty_layer=diff_id is None)
        more = (diff_id,) if diff_id else ()
        return replace(
            self,
            created=step.created or self.created,
            rootfs=replace(self.rootfs, diff_ids=(*self.rootfs.diff_ids, *more)),
            history=(*self.history, step),
        )


def read_image(raw: bytes, media_type: str) -> Manifest | Index:
    """The document that a descriptor of some media type leads to. Raises InvalidDocument."""
    if media_type.startswith(_SCHEMA_1):
        raise InvalidDocument("an image in Docker's schema 1; push it anew with a later Docker")
    if media_type not in (*INDEXES, *MANIFESTS):
        raise InvalidDocument(f"{media_type} is no image")
    data = fields.parse(raw)
    foreign = ("config", "layers") if media_type in INDEXES else ("manifests",)
    if data.get("mediaType", media_type) != media_type or any(name in data for name in foreign):
        raise InvalidDocument(f"the document is not the {media_type} that it should be")
    return (Index if media_type in INDEXES else Manifest).read(raw)
