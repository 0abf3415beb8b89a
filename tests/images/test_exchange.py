"""What is exported is imported the same, from a folder, a tar, a compressed one, by any reader."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.images.conftest import MakeImage
from tests.tree import build, file, symlink, whiteout
from unionfs.images import library
from unionfs.images.documents import (
    OCI_INDEX,
    Config,
    Descriptor,
    History,
    Index,
    RootFs,
)
from unionfs.images.exchange import export_images, import_images
from unionfs.images.library import find, named
from unionfs.images.platform import Platform
from unionfs.images.reference import InvalidReference, Reference
from unionfs.layers import Compression, LayerError, write_layer
from unionfs.stack import LayerStack
from unionfs.store import NotFound, Store

BASE = {"bin/sh": file(b"#!", mode=0o755), "etc/motd": file(b"welcome\n"), "lib": symlink("bin")}
TOP = {"etc/motd": whiteout(), "app": file(b"v1" * 5000)}


def names(store: Store) -> list[str]:
    return [row.name for row in store.names]


def digests(store: Store) -> list[str]:
    return [blob.digest for blob in store.blobs]


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tar.zst"])
def test_an_image_comes_back_the_same(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path, form: str
) -> None:
    made = make_image(store, "app:v1", BASE, TOP)
    path = tmp_path / "out.tar"
    export_images(store, ["app:v1"], str(path), folder=form == "folder")
    if form == "tar.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif form == "tar.zst":
        path.write_bytes(zstandard.compress(path.read_bytes()))

    [brought] = import_images(other, str(path))
    assert [str(name) for name in brought.names] == ["docker.io/library/app:v1"]
    assert find(other, "app:v1") == replace(made, updated=find(other, "app:v1").updated)
    assert digests(other) == digests(store)
    [image] = find(other, "app:v1").images
    assert library.unpack(other, image) in other.layers
    assert {each.how for each in brought.moved} == {"fetched"}
    assert {each.how for each in import_images(other, str(path))[0].moved} == {"here"}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_of_each_compression(
    store: Store, other: Store, tmp_path: Path, compression: Compression
) -> None:
    build(str(tmp_path / "tree"), BASE)
    machine = Platform.of_this_machine()
    config = Config(architecture=machine.architecture, os=machine.os, rootfs=RootFs(()))
    out = io.BytesIO()
    with LayerStack([tmp_path / "tree"]) as stack:
        layer = write_layer(stack, out, compression=compression)
    with store.leases.hold():
        store.blobs.add(out.getvalue())
        described = Descriptor(layer.media_type, layer.digest, layer.size)
        image = library.add(store, config.after(History(), layer.diff_id), [described])
        library.tag(store, image.target, Reference.parse("app"))
    export_images(store, ["app"], str(tmp_path / "app.tar"))
    import_images(other, str(tmp_path / "app.tar"))
    chain = library.unpack(other, find(other, "app").image())
    assert Path(other.layers.path(chain), "etc/motd").read_bytes() == b"welcome\n"


def test_the_same_image_makes_the_same_archive(
    store: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    make_image(store, "app", BASE)
    for name in ("one.tar", "two.tar"):
        export_images(store, ["app"], str(tmp_path / name))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_several_images_in_one_file_share_their_layers(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    for name, trees in (("base:v1", [BASE]), ("app:v1", [BASE, TOP]), ("app:v2", [BASE, TOP])):
        make_image(store, name, *trees)
    export_images(store, ["base:v1", "app:v1", "app:v2"], str(tmp_path / "all.tar"))
    with tarfile.open(tmp_path / "all.tar") as tar:
        members = tar.getnames()
    assert len(members) == len({*members})
    import_images(other, str(tmp_path / "all.tar"))
    assert names(other) == names(store)
    assert digests(other) == digests(store)


def index_of(store: Store, name: str, *images: library.Named) -> Index:
    children = tuple(
        replace(
            image.target,
            platform_data={
                "os": image.images[0].platform.os,
                "architecture": image.images[0].platform.architecture,
            },
        )
        for image in images
    )
    index = Index(manifests=children)
    store.blobs.add(index.raw)
    target = Descriptor.to(index.raw, OCI_INDEX)
    store.blobs.refer(target.digest, [child.digest for child in children])
    library.tag(store, target, Reference.parse(name))
    return index


def test_an_index_goes_whole_or_by_platform(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    mine, theirs = Platform.of_this_machine(), Platform("linux", "s390x")
    both = [make_image(store, "one", BASE), make_image(store, "two", BASE, platform=theirs)]
    index_of(store, "many", *both)
    assert [image.platform for image in find(store, "many").images] == [mine, theirs]
    assert find(store, "many").image().target.digest == both[0].target.digest
    assert find(store, "many").image(theirs).target.digest == both[1].target.digest
    with pytest.raises(FileNotFoundError, match="no image for linux/riscv64; there are: "):
        find(store, "many").image(Platform("linux", "riscv64"))

    export_images(store, ["many"], str(tmp_path / "all.tar"))
    import_images(other, str(tmp_path / "all.tar"))
    assert len(find(other, "many").images) == 2

    import_images(other, str(tmp_path / "all.tar"), Reference.parse("mine"), platform=mine)
    other.names.remove("docker.io/library/many:latest")
    assert find(other, "mine").target == find(store, "many").target

    export_images(store, ["many"], str(tmp_path / "one.tar"), platform=theirs)
    [brought] = import_images(other, str(tmp_path / "one.tar"), Reference.parse("theirs"))
    assert brought.target.digest == both[1].target.digest


def test_of_a_part_of_an_index_only_what_is_there_goes_on(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    theirs = Platform("linux", "s390x")
    both = [make_image(store, "one", BASE), make_image(store, "two", BASE, platform=theirs)]
    index_of(store, "many", *both)
    export_images(store, ["many"], str(tmp_path / "all"), folder=True)
    mine = Platform.of_this_machine()
    import_images(other, str(tmp_path / "all"), platform=mine)
    found = find(other, "many")
    assert (found.whole, [image.platform for image in found.images]) == (False, [mine])

    export_images(other, ["many"], str(tmp_path / "again.tar"))
    import_images(store, str(tmp_path / "again.tar"), Reference.parse("again"))
    assert find(store, "again").target.digest == both[0].target.digest


def skopeo(*arguments: str) -> None:
    subprocess.run(["skopeo", "copy", "-q", *arguments], check=True)


@pytest.mark.parametrize(
    ("form", "compressed"),
    [("docker-archive", False), ("oci-archive", True), ("oci", True)],
)
def test_what_skopeo_makes_of_it(
    store: Store,
    other: Store,
    make_image: MakeImage,
    tmp_path: Path,
    form: str,
    compressed: bool,
) -> None:
    """An archive by `docker save`, legacy as skopeo writes it, has the same layers unpacked."""
    make_image(store, "app:v1", BASE, TOP)
    export_images(store, ["app:v1"], str(tmp_path / "out.tar"))
    for source in ("oci-archive", "docker-archive"):
        made = str(tmp_path / f"{form}-{source}")
        skopeo(f"{source}:{tmp_path / 'out.tar'}", f"{form}:{made}:app:v1")
        import_images(other, made, unpacked=False)
        [image] = find(other, "app:v1").images
        assert image.config.rootfs == find(store, "app:v1").images[0].config.rootfs
        assert library.unpack(other, image) in other.layers
        assert all(
            layer.media_type.endswith("gzip") == compressed for layer in image.manifest.layers
        )


def test_an_archive_of_compressed_layers(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    """containerd and we write such ones; without their layout they are read all the same."""
    made = make_image(store, "app:v1", BASE, TOP)
    export_images(store, ["app:v1"], str(tmp_path / "out"), folder=True)
    (tmp_path / "out/index.json").unlink()
    import_images(other, str(tmp_path / "out"))
    assert find(other, "app:v1").images[0].manifest.layers == made.images[0].manifest.layers


@pytest.mark.parametrize(
    ("listed", "given", "called"),
    [
        (["v1"], None, ["out:v1"]),
        ([], None, ["out:latest"]),
        (["host.com/app:v2"], None, ["host.com/app:v2"]),
        (["host.com/app:v2"], "mine", ["mine:latest"]),
        (["v1"], "mine:v9", ["mine:v9"]),
        (["v1", "app:v2"], None, ["app:v2", "out:v1"]),
        (["v1", "app:v2"], "mine", ["mine:v1", "mine:v2"]),
    ],
)
def test_what_an_image_is_called(
    store: Store,
    other: Store,
    make_image: MakeImage,
    tmp_path: Path,
    listed: list[str],
    given: str | None,
    called: list[str],
) -> None:
    made = [make_image(store, "a", BASE), make_image(store, "b", TOP)]
    export_images(store, ["a", "b"], str(tmp_path / "out"), folder=True)
    targets = [
        replace(image.target, annotations={"org.opencontainers.image.ref.name": name})
        for image, name in zip(made, listed, strict=False)
    ]
    index = Index(manifests=tuple(targets or [made[0].target]))
    (tmp_path / "out/index.json").write_bytes(index.raw)
    name = Reference.parse(given) if given else None
    import_images(other, str(tmp_path / "out"), name)
    assert [Reference.parse(name).familiar for name in names(other)] == called


def test_two_images_of_one_name_are_refused(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    targets = [make_image(store, name, tree).target for name, tree in (("a", BASE), ("b", TOP))]
    export_images(store, ["a", "b"], str(tmp_path / "out"), folder=True)
    (tmp_path / "out/index.json").write_bytes(Index(manifests=tuple(targets)).raw)
    with pytest.raises(InvalidReference, match="2 images in it are called out:latest"):
        import_images(other, str(tmp_path / "out"))
    assert names(other) == []


def test_a_file_without_any_name(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    make_image(store, "a", BASE)
    export_images(store, ["a"], str(tmp_path / "NO NAME"), folder=True)
    (tmp_path / "NO NAME/index.json").write_bytes(Index(manifests=(find(store, "a").target,)).raw)
    with pytest.raises(InvalidReference, match="give one"):
        import_images(other, str(tmp_path / "NO NAME"))


def test_what_is_there_already_is_not_written_over(
    store: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    make_image(store, "a", BASE)
    (tmp_path / "out").write_text("precious")
    for folder in (False, True):
        with pytest.raises(FileExistsError, match="another place"):
            export_images(store, ["a"], str(tmp_path / "out"), folder=folder)
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("folder", [False, True])
def test_an_export_that_fails_leaves_nothing(
    store: Store, make_image: MakeImage, tmp_path: Path, folder: bool
) -> None:
    made = make_image(store, "a", BASE, TOP)
    os.unlink(store.blobs.path(made.images[0].manifest.layers[1].digest))
    before = {*os.listdir(tmp_path)}
    with pytest.raises(FileNotFoundError):
        export_images(store, ["a"], str(tmp_path / "out"), folder=folder)
    assert {*os.listdir(tmp_path)} == before


def layer_of(image: library.Named, folder: Path, number: int = 0) -> Path:
    digest = image.images[0].manifest.layers[number].digest
    return folder / "blobs" / digest.replace(":", "/")


def test_broken_images_get_no_name(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    made = make_image(store, "a", BASE, TOP)
    out = tmp_path / "out"

    def fails(error: type[OSError], match: str) -> None:
        with pytest.raises(error, match=match):
            import_images(other, str(out))
        assert names(other) == []
        shutil.rmtree(out)
        export_images(store, ["a"], str(out), folder=True)

    export_images(store, ["a"], str(out), folder=True)
    layer = layer_of(made, out, 1)
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    fails(OSError, "get them anew")
    layer.unlink()
    fails(OSError, "incomplete")
    layer.write_bytes(layer.read_bytes()[:-9])
    fails(OSError, "were promised")
    (out / "index.json").write_text("{")
    fails(OSError, "no JSON")
    (out / "index.json").unlink()
    (out / "manifest.json").unlink()
    fails(OSError, "neither an OCI layout")
    os.rename(layer, tmp_path / "elsewhere")
    layer.symlink_to(tmp_path / "elsewhere")
    fails(OSError, r".+")


def test_a_layer_that_is_not_its_diff_id_gets_no_name(
    store: Store, other: Store, make_image: MakeImage, tmp_path: Path
) -> None:
    made = make_image(store, "a", BASE)
    [image] = made.images
    wrong = replace(image.config.rootfs, diff_ids=("sha256:" + "0" * 64,))
    with store.leases.hold():
        broken = library.add(store, replace(image.config, rootfs=wrong), image.manifest.layers)
        library.tag(store, broken.target, Reference.parse("broken"))
    export_images(store, ["broken"], str(tmp_path / "out.tar"))
    with pytest.raises(LayerError):
        import_images(other, str(tmp_path / "out.tar"))
    assert names(other) == []
    other.gc()
    assert digests(other) == []


def archive(folder: Path, **files: bytes) -> str:
    with tarfile.open(folder / "hostile.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(folder / "hostile.tar")


def test_hostile_archives(other: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    climbing = json.dumps([{"Config": "../secret", "Layers": [], "RepoTags": None}]).encode()
    for files in (
        {"manifest.json": climbing},
        {"manifest.json": b"[1]"},
        {"manifest.json": b'[{"Config": "config", "Layers": ["x"]}]', "config": b"{}"},
        {"index.json": b'{"manifests": 1}'},
        {"readme": b""},
    ):
        with pytest.raises(OSError, match=r".+"):
            import_images(other, archive(tmp_path, **files))
    (tmp_path / "noise").write_bytes(os.urandom(2000))
    with pytest.raises(OSError, match="no archive"):
        import_images(other, str(tmp_path / "noise"))
    with pytest.raises(FileNotFoundError):
        import_images(other, str(tmp_path / "absent"))
    assert digests(other) == []


def test_images_are_found_by_name_and_by_id(store: Store, make_image: MakeImage) -> None:
    app, base = make_image(store, "app:v1", BASE, TOP), make_image(store, "base", BASE)
    assert [*named(store)] == [app, base]
    digits = app.target.digest.partition(":")[2]
    config = app.images[0].manifest.config.digest
    for text in ("app:v1", "docker.io/library/app:v1", digits[:12], f"sha256:{digits}", config):
        assert find(store, text) == app
    for text in ("app", "app:v2", "ffff"):
        with pytest.raises(NotFound, match="pull or import"):
            find(store, text)
    with pytest.raises(InvalidReference):
        find(store, "App")
    library.tag(store, base.target, Reference.parse("beef"))
    assert find(store, "beef").target == base.target
