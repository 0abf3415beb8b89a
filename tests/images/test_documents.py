"""Documents keep what they do not know, and their bytes; strangers' mistakes are told."""

import json
from dataclasses import replace
from typing import Any

import pytest

from unionfs.images.documents import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Config,
    Descriptor,
    History,
    Index,
    Manifest,
    read_image,
)
from unionfs.images.fields import InvalidDocument
from unionfs.images.platform import Platform
from unionfs.store import digest

SHA = "sha256:" + "0123456789abcdef" * 4
DESCRIPTOR = {"mediaType": OCI_CONFIG, "digest": SHA, "size": 2}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": DOCKER_MANIFEST,
    "config": DESCRIPTOR,
    "layers": [DESCRIPTOR | {"urls": ["https://host.com/layer"]}],
    "annotations": {"a": "b"},
    "subject": DESCRIPTOR,
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "manifests": [
        DESCRIPTOR
        | {"platform": {"os": "linux", "architecture": "arm", "variant": "v6", "os.version": "1"}}
    ],
}
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "container_config": {"Cmd": None},
    "docker_version": "20.10",
    "config": {
        "Env": ["PATH=/bin"],
        "Cmd": ["sh"],
        "Entrypoint": None,
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"l": "v"},
        "ArgsEscaped": True,
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5},
    },
    "rootfs": {"type": "layers", "diff_ids": [SHA]},
    "history": [{"created_by": "ADD"}, {"created_by": "CMD", "empty_layer": True, "more": 1}],
}


def without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_nulls(value) for key, value in data.items() if value is not None}
    return data


@pytest.mark.parametrize(("kind", "data"), [(Manifest, MANIFEST), (Index, INDEX), (Config, CONFIG)])
def test_bytes_and_unknown_keys_are_kept(kind: type[Manifest], data: dict[str, Any]) -> None:
    raw = json.dumps(data, indent=3).encode()
    document = kind.read(raw)
    assert document.raw == raw
    written = replace(document)
    assert written == document
    assert kind.read(written.raw) == document
    again = json.loads(written.raw)
    left = {} if "mediaType" in data or kind is Config else {"mediaType": OCI_INDEX}
    assert without_nulls(again) == without_nulls(data | left)


def test_what_a_configuration_says() -> None:
    config = Config.read(json.dumps(CONFIG).encode())
    settings = config.settings
    assert config.platform == Platform("linux", "amd64")
    assert (settings.env, settings.cmd, settings.entrypoint) == (("PATH=/bin",), ("sh",), ())
    assert (settings.exposed_ports, settings.volumes) == (("80/tcp",), ("/data",))
    assert [step.empty_layer for step in config.history] == [False, True]


def test_a_step_more() -> None:
    other = SHA.replace("0", "1")
    config = Config.read(json.dumps(CONFIG).encode())
    config = config.after(History(created_by="ENV"))
    config = config.after(History(created_by="RUN", created="2020-01-01T00:00:00Z"), other)
    assert config.rootfs.diff_ids == (SHA, other)
    assert [step.empty_layer for step in config.history] == [False, True, True, False]
    data = json.loads(config.raw)
    assert data["created"] == "2020-01-01T00:00:00Z"
    assert data["docker_version"] == "20.10"
    assert data["config"]["ArgsEscaped"] is True


def test_the_platform_of_an_image_in_an_index() -> None:
    [descriptor] = Index.read(json.dumps(INDEX).encode()).manifests
    assert descriptor.platform == Platform("linux", "arm", "v6")
    assert descriptor.data()["platform"]["os.version"] == "1"
    assert Descriptor.of(DESCRIPTOR).platform is None


def test_a_descriptor_of_bytes() -> None:
    made = Descriptor.to(b"{}", OCI_CONFIG)
    assert made == Descriptor(OCI_CONFIG, digest.of_bytes(b"{}"), 2)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([], "not an object"),
        (MANIFEST | {"config": None}, "config is missing"),
        (MANIFEST | {"layers": {}}, "layers: not an array"),
        (MANIFEST | {"layers": [DESCRIPTOR | {"size": -1}]}, "layers: size: not a count"),
        (MANIFEST | {"layers": [DESCRIPTOR | {"size": True}]}, "layers: size: not a count"),
        (MANIFEST | {"config": DESCRIPTOR | {"digest": "sha256:1"}}, "config: digest: sha256:1: "),
        (MANIFEST | {"annotations": {"a": 1}}, "annotations: not a string"),
        (MANIFEST | {"manifests": []}, "not the"),
        (MANIFEST | {"mediaType": OCI_MANIFEST}, "not the"),
    ],
)
def test_a_wrong_document_is_told_where(data: Any, wrong: str) -> None:
    with pytest.raises(InvalidDocument, match=wrong):
        read_image(json.dumps(data).encode(), DOCKER_MANIFEST)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"{", b"[" * 100_000, b" " * (9 << 20)])
def test_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        read_image(raw, OCI_MANIFEST)


def test_kinds_of_images() -> None:
    raw = json.dumps(INDEX).encode()
    assert isinstance(read_image(raw, OCI_INDEX), Index)
    assert isinstance(read_image(raw, DOCKER_INDEX), Index)
    with pytest.raises(InvalidDocument, match="schema 1"):
        read_image(raw, "application/vnd.docker.distribution.manifest.v1+prettyjws")
    with pytest.raises(InvalidDocument, match="text/html is no image"):
        read_image(raw, "text/html")
