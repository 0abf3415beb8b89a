"""Layers travel: those of buildah, podman and umoci are applied here, and ours are by them.

The trees are compared file by file: owners, modes, times, links, attributes, content.
"""

import base64
import hashlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clients.client import BASE, Client
from tests.conformance.doors import Folder
from tests.tree import (
    Seen,
    Snapshot,
    Tree,
    build,
    device,
    differences,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    snapshot,
    symlink,
    there,
    whiteout,
)
from unionfs import LayerStack, markers, mount
from unionfs.layers import Written, apply_layer, write_layer

pytestmark = pytest.mark.parametrize("store", ["rootful"], indirect=True)

_REPOSITORY = Path(__file__).parents[2]
_LOOK = """if True:
    import base64, pickle, sys
    from tests.conformance.doors import Folder
    from tests.tree import snapshot
    print(base64.b64encode(pickle.dumps(snapshot(Folder(sys.argv[1])))).decode())
"""
DOCKERFILE = f"""
FROM {BASE}
ADD packed.tar /opt/
RUN rm /data/deleted && mv /data/tree /data/moved && echo new > /data/moved/sub/new
RUN rm -r /srv/opaque && mkdir /srv/opaque && echo new > /srv/opaque/new
RUN ln /data/kept /data/link && ln -s kept /data/soft && mkfifo /data/pipe
RUN chown 1000:1001 /data/attributes && chmod 4750 /data/attributes && chmod 2770 /srv/opaque
RUN rm /data/soft && mkdir /data/soft && rm -r /data/moved && echo file > /data/moved
RUN touch -d @1000000000 /data/one
"""
_BASE: Tree = {
    "etc/motd": file(b"welcome\n", xattrs={"user.note": b"kept"}),
    "etc/hosts": file(b"localhost\n"),
    "etc/dir/old": file(b"old"),
    "srv": directory(0o1777, 5, 6),
    "srv/a": file(b"a"),
    "gone/file": file(),
}
_TOP: Tree = {
    "etc/motd": file(b"changed\n", 0o4755, 7, 8, xattrs={"user.note": b"\0\xff"}),
    "etc/dir": opaque(),
    "etc/dir/new": file(b"new"),
    "etc/link": hard_link("etc/motd"),
    "gone": whiteout(),
    "srv/null": device(stat.S_IFCHR, 1, 3),
    "srv/pipe": fifo(),
    "n" * 150 + "/soft": symlink("t" * 200),
}


def unpacked(layout: Path, folder: Path) -> list[Path]:
    """The layers of the one image in an OCI layout, applied, top first."""

    def blob(descriptor: Any) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    found: list[Path] = []
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        target = folder / f"layer{len(found)}"
        with blob(layer).open("rb") as data:
            apply_layer(
                data,
                target,
                prefix=markers.TRUSTED,
                below=found,
                digest=layer["digest"],
                diff_id=diff_id,
            )
        found.insert(0, target)
    return found


def shown(layers: Sequence[Path], folder: Path) -> Snapshot:
    """What kernel overlayfs shows of the layers."""
    target = folder / "shown"
    target.mkdir()
    with LayerStack(layers) as stack, mount(stack, target, "overlayfs"):
        return comparable(snapshot(Folder(str(target))))


def comparable(found: Snapshot) -> Snapshot:
    """Without what each client makes up for the root, and without directories' links."""
    return {
        path: replace(seen, nlink=0)
        if isinstance(seen, Seen) and seen.kind == "directory"
        else seen
        for path, seen in there(found).items()
        if path != "."
    }


def mounted_by_podman(client: Client, image: str) -> Snapshot:
    where = client.podman("image", "mount", image).strip()
    seen = client.room.run(sys.executable, "-c", _LOOK, where, folder=_REPOSITORY)
    client.podman("image", "umount", image)
    found: Snapshot = pickle.loads(base64.b64decode(seen))
    return comparable(found)


def packed(archive: Path) -> None:
    """Write the archive that DOCKERFILE adds."""
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("packed/file")
        member.size, member.mode, member.uid, member.gid, member.mtime = 7, 0o640, 7, 8, 10**9
        tar.addfile(member, io.BytesIO(b"packed\n"))


def test_layers_of_buildah_are_what_podman_mounts(client: Client, tmp_path: Path) -> None:
    context = client.home / tmp_path.name
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    packed(context / "packed.tar")
    client.build("built", context, "chroot", "--layers=true")
    layout = client.home / f"{tmp_path.name}.saved"
    client.podman("save", "--quiet", "--format=oci-dir", "--output", layout, "built")

    layers = unpacked(layout, tmp_path)

    assert len(layers) > 5
    assert differences(mounted_by_podman(client, "built"), shown(layers, tmp_path)) == []


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An OCI layout with one image, called `ours`, of two layers that we wrote."""
    build(str(tmp_path / "base"), _BASE)
    build(str(tmp_path / "top"), _TOP)
    layout = tmp_path / "ours"
    (layout / "blobs/sha256").mkdir(parents=True)

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def layer(*layers: Path) -> Written:
        out = io.BytesIO()
        with LayerStack(layers) as stack:
            written = write_layer(stack, out)
        put(out.getvalue())
        return written

    written = [layer(tmp_path / "base"), layer(tmp_path / "top", tmp_path / "base")]
    diff_ids = [layer.diff_id for layer in written]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    kind = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}manifest.v1+json",
        "config": {"mediaType": f"{kind}config.v1+json", **put(json.dumps(config).encode())},
        "layers": [
            {"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in written
        ],
    }
    described = {
        "mediaType": f"{kind}manifest.v1+json",
        **put(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "ours"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


def test_podman_mounts_what_we_wrote(client: Client, image: Path, tmp_path: Path) -> None:
    client.podman("pull", "--quiet", f"oci:{image}:ours")
    [name] = client.podman("images", "--quiet", "--filter=reference=*ours*").split()
    ours = shown([tmp_path / "top", tmp_path / "base"], tmp_path)
    assert differences(ours, mounted_by_podman(client, name)) == []


def test_umoci_unpacks_what_we_wrote(client: Client, image: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{image}:ours", root], check=True)
    ours = shown([tmp_path / "top", tmp_path / "base"], tmp_path)
    assert differences(ours, comparable(snapshot(Folder(str(root))))) == []


def test_layers_of_umoci_are_what_it_unpacks(client: Client, tmp_path: Path) -> None:
    build(str(tmp_path / "base"), _BASE)
    build(str(tmp_path / "more"), {"new": file(b"new", 0o2755, 3, 4), "soft": symlink("new")})
    layout = tmp_path / "layout"
    tag = f"{layout}:made"

    def umoci(*arguments: str | os.PathLike[str]) -> None:
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("init", "--layout", layout)
    umoci("new", "--image", tag)
    umoci("insert", "--image", tag, tmp_path / "base", "/")
    umoci("insert", "--image", tag, "--opaque", tmp_path / "more", "/etc")
    umoci("insert", "--image", tag, "--whiteout", "/gone")
    umoci("raw", "unpack", "--image", tag, tmp_path / "root")

    layers = unpacked(layout, tmp_path)

    theirs = comparable(snapshot(Folder(str(tmp_path / "root"))))
    assert {"etc/new", "srv/a"} <= theirs.keys()
    assert not {"gone", "etc/motd"} & theirs.keys()
    assert differences(theirs, shown(layers, tmp_path)) == []


def test_gnu_tar_unpacks_what_we_wrote(client: Client, tmp_path: Path) -> None:
    build(str(tmp_path / "base"), _BASE | {"etc/link": hard_link("etc/hosts")})
    with LayerStack([tmp_path / "base"]) as stack, (tmp_path / "tar").open("wb") as out:
        write_layer(stack, out)
    (tmp_path / "root").mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--same-owner", "--same-permissions"]
    command = ["tar", "-xzf", tmp_path / "tar", *options, "-C", tmp_path / "root"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    ours = snapshot(Folder(str(tmp_path / "base")))
    assert differences(ours, snapshot(Folder(str(tmp_path / "root")))) == []
