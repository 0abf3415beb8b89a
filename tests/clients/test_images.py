"""Images travel: what podman, buildah and umoci make is imported and pulled, and ours by them.

Whatever way an image takes, its files are compared with those that the other program shows: owners,
modes, times, links, attributes, content.
"""

import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.client import Client
from tests.clients.test_layers import DOCKERFILE, comparable, mounted_by_podman, packed, shown
from tests.conformance.doors import Folder
from tests.images.conftest import MakeImage, make_image
from tests.images.server import PASSWORD, USER, registry
from tests.store.conftest import make_layer
from tests.tree import (
    Snapshot,
    Tree,
    differences,
    directory,
    file,
    hard_link,
    opaque,
    snapshot,
    symlink,
    whiteout,
)
from unionfs.images import library
from unionfs.images.connection import Patience
from unionfs.images.documents import Settings
from unionfs.images.exchange import export_images, import_images
from unionfs.images.library import Named, find
from unionfs.images.reference import Reference
from unionfs.images.remote import Access, pull, push
from unionfs.store import Store

pytestmark = pytest.mark.parametrize("store", ["rootful"], indirect=True)

__all__ = ["make_image", "make_layer"]

BASE: Tree = {
    "etc/motd": file(b"welcome\n", xattrs={"user.note": b"kept"}),
    "etc/dir/old": file(b"old"),
    "srv": directory(0o1777, 5, 6),
    "gone/file": file(),
}
TOP: Tree = {
    "etc/motd": file(b"changed\n", 0o4755, 7, 8, xattrs={"user.note": b"\0\xff"}),
    "etc/dir": opaque(),
    "etc/dir/new": file(b"new"),
    "etc/link": hard_link("etc/motd"),
    "etc/soft": symlink("motd"),
    "gone": whiteout(),
}
ACCESS = Access(patience=Patience(pause=0))


@pytest.fixture
def ours(tmp_path: Path) -> Store:
    """Our store; `store` is podman's."""
    return Store(tmp_path / "ours")


def tree_of(store: Store, image: Named, folder: Path) -> Snapshot:
    """What kernel overlayfs shows of an image in our store."""
    chain = library.unpack(store, image.image())
    folder.mkdir()
    return shown([Path(layer) for layer in store.layers.stack(chain)], folder)


@pytest.fixture
def built(client: Client, tmp_path: Path) -> Snapshot:
    """What podman shows of the image `built` that buildah has made."""
    context = client.home / tmp_path.name
    context.mkdir()
    (context / "Dockerfile").write_text(f'{DOCKERFILE}\nENV A=b\nCMD ["sh"]\n')
    packed(context / "packed.tar")
    client.build("built", context, "chroot", "--layers=true")
    return mounted_by_podman(client, "built")


def test_what_podman_saves_is_imported(
    client: Client, built: Snapshot, ours: Store, tmp_path: Path
) -> None:
    for form in ("oci-archive", "oci-dir", "docker-archive"):
        saved = client.home / f"{tmp_path.name}.{form}"
        client.podman("save", "--quiet", f"--format={form}", "--output", saved, "built")
        import_images(ours, str(saved), Reference.parse(f"saved:{form}"))
        image = find(ours, f"saved:{form}")
        assert differences(built, tree_of(ours, image, tmp_path / form)) == []
        settings = image.image().config.settings
        assert (settings.cmd, "A=b" in settings.env) == (("sh",), True)


def test_what_podman_pushes_is_pulled(
    client: Client, built: Snapshot, ours: Store, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry") as host:
        for form in ("oci", "v2s2"):
            name = f"{host}/team/{form}:v1"
            client.podman(
                "push", "--quiet", "--tls-verify=false", f"--format={form}", "built", name
            )
            pull(ours, Reference.parse(name), access=ACCESS)
            assert differences(built, tree_of(ours, find(ours, name), tmp_path / form)) == []


def test_what_we_push_is_pulled_by_podman(
    client: Client,
    ours: Store,
    make_image: MakeImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = make_image(ours, "app:v1", BASE, TOP)
    tree = tree_of(ours, image, tmp_path / "shown")
    login = client.home / f"{tmp_path.name}.json"
    with registry(tmp_path / "registry", login=True) as host:
        name = f"{host}/team/app:v1"
        client.podman(
            *("login", "--tls-verify=false", f"--authfile={login}"),
            *(f"--username={USER}", f"--password={PASSWORD}", host),
        )
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(login))
        push(ours, "app:v1", Reference.parse(name), access=ACCESS)
        client.podman("pull", "--quiet", "--tls-verify=false", f"--authfile={login}", name)
        assert differences(tree, mounted_by_podman(client, name)) == []


def test_podman_loads_what_we_export(
    client: Client, ours: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    trees = {
        name: tree_of(ours, make_image(ours, name, *layers), tmp_path / name.partition(":")[2])
        for name, layers in (("app:v1", [BASE, TOP]), ("app:v2", [BASE, TOP, {"more": file()}]))
    }
    for names in (["app:v1"], ["app:v1", "app:v2"]):
        archive = client.home / f"{tmp_path.name}-{len(names)}.tar"
        export_images(ours, names, str(archive))
        client.podman("load", "--quiet", "--input", archive)
        for name in names:
            loaded = f"docker.io/library/{name}"
            assert differences(trees[name], mounted_by_podman(client, loaded)) == []
            client.podman("rmi", loaded)


def test_an_image_that_we_change_runs_in_podman(
    client: Client, built: Snapshot, ours: Store, tmp_path: Path
) -> None:
    saved, changed = (client.home / f"{tmp_path.name}.{name}" for name in ("saved", "changed"))
    client.podman("save", "--quiet", "--format=oci-archive", "--output", saved, "built")
    import_images(ours, str(saved), Reference.parse("built"))
    image = find(ours, "built").image()
    settings = Settings.of(image.config.settings.data() | {"Cmd": ["cat", "/data/kept"]})
    with ours.leases.hold():
        config = replace(image.config, settings=settings)
        made = library.add(ours, config, image.manifest.layers)
        library.tag(ours, made.target, Reference.parse("changed"))
    export_images(ours, ["changed"], str(changed))
    client.podman("load", "--quiet", "--input", changed)
    assert client.podman("run", "--rm", "docker.io/library/changed") == "kept\n"


def test_umoci_unpacks_what_we_export(
    client: Client, ours: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    tree = tree_of(ours, make_image(ours, "app:v1", BASE, TOP), tmp_path / "shown")
    layout, root = tmp_path / "layout", tmp_path / "root"
    export_images(ours, ["app:v1"], str(layout), folder=True)
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:v1", root], check=True)
    assert differences(tree, comparable(snapshot(Folder(str(root))))) == []


def test_what_umoci_makes_of_ours_is_imported(
    client: Client, ours: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    make_image(ours, "app:v1", BASE, TOP)
    layout, bundle, root = tmp_path / "layout", tmp_path / "bundle", tmp_path / "root"
    export_images(ours, ["app:v1"], str(layout), folder=True)

    def umoci(*arguments: str | Path) -> None:
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("unpack", "--image", f"{layout}:v1", bundle)
    (bundle / "rootfs/etc/own").write_text("made in the bundle\n")
    (bundle / "rootfs/etc/soft").unlink()
    umoci("repack", "--image", f"{layout}:v2", bundle)
    umoci("raw", "unpack", "--image", f"{layout}:v2", root)
    with tarfile.open(tmp_path / "app.tar", "w") as tar:
        tar.add(layout, ".")
    import_images(ours, str(tmp_path / "app.tar"))

    made = comparable(snapshot(Folder(str(root))))
    assert "etc/own" in made
    assert "etc/soft" not in made
    assert differences(made, tree_of(ours, find(ours, "app:v2"), tmp_path / "shown")) == []
