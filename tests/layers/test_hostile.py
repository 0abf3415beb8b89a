"""Archives that mean harm, or are broken: an error names the entry, and nothing is made anywhere.

Each is written by `tarfile` or by hand, unpacked in a folder with a neighbour, and must leave both
the neighbour and the folder as they were.
"""

import contextlib
import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import UNPRIVILEGED
from tests.conformance.doors import Folder
from tests.tree import MARKS, snapshot
from unionfs.layers import LayerError, Limits, Rights, apply_layer, apply_onto

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")

Fill = Callable[[tarfile.TarFile], object]


def archive(fill: Fill) -> io.BytesIO:
    """An archive that a function fills."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        fill(tar)
    out.seek(0)
    return out


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A header."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def text(tar: tarfile.TarFile, name: str, data: bytes = b"evil", **fields: object) -> None:
    """Add a regular file."""
    tar.addfile(member(name, size=len(data), **fields), io.BytesIO(data))


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    """Add a symlink or hard link."""
    tar.addfile(member(name, kind, linkname=target))


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Path]:
    """A directory outside, which must stay as it is, beside the one to unpack into."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    before = snapshot(Folder(str(outside)))
    yield outside
    assert snapshot(Folder(str(outside))) == before


def unpack(folder: Path, blob: io.BytesIO, **options: object) -> None:
    apply_layer(blob, folder / "layer", prefix=MARKS, **options)  # type: ignore[arg-type]


def refused(folder: Path, blob: io.BytesIO, entry: str, message: str, **options: object) -> None:
    """Unpacking must fail because of the entry, and leave nothing."""
    before = {*folder.iterdir()}
    with pytest.raises(LayerError, match=message) as caught:
        unpack(folder, blob, **options)
    assert caught.value.filename == entry
    assert caught.value.errno
    assert {*folder.iterdir()} == before


CLIMBING: dict[str, Fill] = {
    "../file": lambda tar: text(tar, "../file"),
    "a/../../file": lambda tar: text(tar, "a/../../file"),
    "../dir/": lambda tar: tar.addfile(member("../dir", tarfile.DIRTYPE)),
    "../.wh.file": lambda tar: text(tar, "../.wh.file", b""),
    "a/../../.wh..wh..opq": lambda tar: text(tar, "a/../../.wh..wh..opq", b""),
}


@pytest.mark.parametrize("entry", CLIMBING)
def test_names_that_climb_out(tmp_path: Path, neighbour: Path, entry: str) -> None:
    refused(tmp_path, archive(CLIMBING[entry]), entry, "climbs out")


@pytest.mark.parametrize("name", ["/outside/file", "//outside/file", "a/../outside/file"])
def test_names_lead_from_the_layers_root(tmp_path: Path, neighbour: Path, name: str) -> None:
    unpack(tmp_path, archive(lambda tar: text(tar, name)))
    assert (tmp_path / "layer/outside/file").read_text() == "evil"


@pytest.mark.parametrize("name", ["out", "sub/out"])
@pytest.mark.parametrize("target", ["{outside}", "../../outside", "a/../../../outside"])
def test_a_symlink_leads_nowhere_else(
    tmp_path: Path, neighbour: Path, target: str, name: str
) -> None:
    """As in a chroot: what is unpacked through it lies below the layer's root."""

    def fill(tar: tarfile.TarFile) -> None:
        link(tar, name, target.format(outside=neighbour))
        text(tar, f"{name}/file")
        tar.addfile(member(f"{name}/dir", tarfile.DIRTYPE, mode=0o777))
        text(tar, f"{name}/.wh.file2", b"")
        text(tar, f"{name}/sub/.wh..wh..opq", b"")
        link(tar, "hard", f"{name}/file", tarfile.LNKTYPE)

    unpack(tmp_path, archive(fill))
    inside = tmp_path / "layer" / (str(neighbour)[1:] if "{" in target else "outside")
    assert (inside / "file").read_text() == "evil"
    assert stat.S_ISCHR(os.lstat(inside / "file2").st_mode)
    assert (tmp_path / "layer/hard").read_text() == "evil"


def test_a_directory_replaced_by_a_symlink_passes_its_attributes_to_nobody(
    tmp_path: Path, neighbour: Path
) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(member("a/dir", tarfile.DIRTYPE, mode=0o777, uid=99))
        link(tar, "a", str(neighbour.parent))
        tar.addfile(member("outside", tarfile.DIRTYPE, mode=0o777, uid=99))
        link(tar, "outside", str(neighbour))

    unpack(tmp_path, archive(fill))
    assert os.readlink(tmp_path / "layer/outside") == str(neighbour)


def test_a_symlink_is_replaced_not_written_through(tmp_path: Path, neighbour: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        link(tar, "file", f"{neighbour}/file")
        text(tar, "file")
        link(tar, "dir", str(neighbour))
        tar.addfile(member("dir", tarfile.DIRTYPE))
        text(tar, "dir/file")

    unpack(tmp_path, archive(fill))
    assert (tmp_path / "layer/file").read_text() == "evil"


def test_symlinks_in_a_circle(tmp_path: Path, neighbour: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        link(tar, "a", "b")
        link(tar, "b", "a")
        text(tar, "a/file")

    refused(tmp_path, archive(fill), "a/file", "symbolic links")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("../outside/file", "climbs out"),
        ("{outside}/file", "no file of the layer"),
        ("out/file", "no file of the layer"),
        (".", "no file of the layer"),
        ("dir", "no file of the layer"),
    ],
)
def test_hard_links_to_what_is_not_the_layers(
    tmp_path: Path, neighbour: Path, target: str, message: str
) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        link(tar, "out", str(neighbour))
        tar.addfile(member("dir", tarfile.DIRTYPE))
        link(tar, "hard", target.format(outside=neighbour), tarfile.LNKTYPE)

    refused(tmp_path, archive(fill), "hard", message)


def test_a_hard_link_to_a_symlink_is_one_more_symlink(tmp_path: Path, neighbour: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        link(tar, "out", str(neighbour / "file"))
        link(tar, "hard", "out", tarfile.LNKTYPE)

    unpack(tmp_path, archive(fill))
    assert os.readlink(tmp_path / "layer/hard") == str(neighbour / "file")


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "dir/.wh..."])
def test_whiteouts_of_no_name(tmp_path: Path, neighbour: Path, name: str) -> None:
    refused(tmp_path, archive(lambda tar: text(tar, name, b"")), name, "whiteout of no name")


def test_a_directory_that_is_called_like_a_whiteout(tmp_path: Path) -> None:
    refused(tmp_path, archive(lambda tar: text(tar, ".wh.dir/a")), ".wh.dir/a", "like a whiteout")


def test_the_bookkeeping_of_aufs_is_passed_over(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, ".wh..wh.plnk/1.2")
        text(tar, ".wh..wh.aufs")

    unpack(tmp_path, archive(fill))
    assert not os.listdir(tmp_path / "layer")


def test_entries_in_what_is_no_directory(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "a")
        text(tar, "a/b")

    refused(tmp_path, archive(fill), "a/b", "Not a directory")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.FIFOTYPE])
def test_the_root_stays_a_directory(tmp_path: Path, kind: bytes) -> None:
    refused(tmp_path, archive(lambda tar: tar.addfile(member(".", kind))), ".", "is a directory")


def test_the_last_of_two_entries_counts(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "file", b"first")
        text(tar, "file", b"last")
        text(tar, "dir/sub/file", b"first")
        text(tar, "dir", b"last")
        text(tar, "other", b"first")
        text(tar, "other2/x", b"")
        link(tar, "other2", "other", tarfile.LNKTYPE)
        tar.addfile(member("other", tarfile.DIRTYPE))
        link(tar, "file2", "file", tarfile.LNKTYPE)
        link(tar, "file2", "file2", tarfile.LNKTYPE)

    unpack(tmp_path, archive(fill))
    layer = tmp_path / "layer"
    assert (layer / "file").read_text() == (layer / "dir").read_text() == "last"
    assert (layer / "other").is_dir()
    assert (layer / "other2").read_text() == "first"
    assert (layer / "file2").samefile(layer / "file")


SMUGGLED = ["trusted.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque"]


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.REGTYPE])
def test_marks_are_not_smuggled_in(tmp_path: Path, kind: bytes) -> None:
    """Nor anything in `trusted.`, nor SELinux' labels."""
    dropped = dict.fromkeys([*SMUGGLED, "trusted.other", "security.selinux"], "y")
    records = {f"SCHILY.xattr.{name}": value for name, value in dropped.items()}
    records["SCHILY.xattr.user.kept"] = "y"
    unpack(tmp_path, archive(lambda tar: tar.addfile(member("a", kind, pax_headers=records))))
    assert os.listxattr(tmp_path / "layer/a") == ["user.kept"]


def test_a_device_that_is_a_whiteout_on_disk(tmp_path: Path) -> None:
    fill: Fill = lambda tar: tar.addfile(member("a", tarfile.CHRTYPE))  # noqa: E731
    refused(tmp_path, archive(fill), "a", "0:0")


def test_devices_are_left_out_on_request(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(member("disk", tarfile.BLKTYPE, devmajor=8, devminor=1))
        tar.addfile(member("pipe", tarfile.FIFOTYPE))

    unpack(tmp_path, archive(fill), rights=Rights(devices=False))
    assert os.listdir(tmp_path / "layer") == ["pipe"]


def test_what_another_thread_cannot_complete(tmp_path: Path) -> None:
    """Of many small files, one has an attribute that no file takes."""

    def fill(tar: tarfile.TarFile) -> None:
        for number in range(300):
            records = {"SCHILY.xattr.nonsense": "x"} if number == 7 else {}
            text(tar, f"file{number}", b"data", pax_headers=records)

    before = threading.active_count()
    refused(tmp_path, archive(fill), "file7", "not supported")
    assert threading.active_count() == before
    assert len(os.listdir("/proc/self/fd")) < 100


def test_more_than_the_limit_of_bytes(tmp_path: Path) -> None:
    bomb = io.BytesIO(gzip.compress(archive(lambda tar: text(tar, "a", bytes(20 << 20))).read()))
    assert len(bomb.getvalue()) < 1 << 16
    refused(tmp_path, bomb, "a", "limit of 10000000 bytes", limit=Limits(size=10_000_000))


def test_an_extended_header_that_fills_the_memory(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "a", b"")
        text(tar, "b", b"", pax_headers={"comment": "x" * (2 << 20)})

    refused(tmp_path, archive(fill), "a", "extended header of 2097")


def test_more_than_the_limit_of_entries(tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for number in range(5):
            text(tar, str(number), b"")

    refused(tmp_path, archive(fill), "3", "limit of 3 entries", limit=Limits(entries=3))


def test_directories_too_deep_for_a_path(tmp_path: Path) -> None:
    name = "d/" * 3000 + "file"
    refused(tmp_path, archive(lambda tar: text(tar, name)), name, "too long")


def test_directories_as_deep_as_paths_are_long(tmp_path: Path) -> None:
    """And gone again, since what follows is refused."""

    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "d/" * 2000 + "file")
        text(tar, "../file")

    refused(tmp_path, archive(fill), "../file", "climbs out")


ODD: dict[str, dict[str, str]] = {
    "uid": {"uid": "99999999999"},
    "negative uid": {"uid": "-1"},
    "no uid": {"uid": "4294967295"},
    "size": {"size": "-5"},
    "time": {"mtime": "9" * 30},
    "word": {"mtime": "yesterday"},
    "huge sparse": {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "9" * 30,
    },
    "overlapping": {"GNU.sparse.map": "0,2,1,2", "GNU.sparse.size": "10"},
    "beyond the end": {"GNU.sparse.map": "9,4", "GNU.sparse.size": "10"},
    "half a map": {"GNU.sparse.map": "0,4,2", "GNU.sparse.size": "10"},
    "map of more": {"GNU.sparse.map": "0,9", "GNU.sparse.size": "10"},
    "no map": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
}


@pytest.mark.parametrize("case", ODD)
def test_numbers_that_are_none(tmp_path: Path, case: str) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "a", b"data", pax_headers=ODD[case])

    refused(tmp_path, archive(fill), "a", "corrupt header")


@pytest.mark.parametrize("record", ["a\0b", "user.a\0b"])
def test_nul_in_names(tmp_path: Path, record: str) -> None:
    key = "path" if record == "a\0b" else f"SCHILY.xattr.{record}"
    with pytest.raises(LayerError, match=r"NUL|corrupt"):
        unpack(tmp_path, archive(lambda tar: text(tar, "a", pax_headers={key: record})))
    assert not [*tmp_path.iterdir()]


def test_broken_archives(tmp_path: Path) -> None:
    """Wherever a bit is flipped or the end is cut off, nothing but a LayerError is raised."""

    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "d/" * 60 + "file", b"x" * 700, pax_headers={"SCHILY.xattr.user.a": "b"})
        link(tar, "link", "file")
        text(tar, "last", b"")

    whole = archive(fill).read()
    for number in range(0, whole.rindex(b"last") + 512, 37):
        flipped = bytearray(whole)
        flipped[number] ^= 0x55
        for data in (bytes(flipped), whole[:number], gzip.compress(whole)[: number // 8]):
            with contextlib.suppress(LayerError):
                unpack(tmp_path, io.BytesIO(data))
                shutil.rmtree(tmp_path / "layer")
            assert not [*tmp_path.iterdir()]


def test_compressed_data_that_is_cut_short(tmp_path: Path) -> None:
    whole = gzip.compress(archive(lambda tar: text(tar, "a")).read())
    refused(tmp_path, io.BytesIO(whole[:-9]), "the first entry", "corrupt or cut short")


def test_what_is_no_tar(tmp_path: Path) -> None:
    refused(tmp_path, io.BytesIO(b"#!/bin/sh\n" * 100), "the first entry", "no tar header")


def test_a_header_that_its_checksum_does_not_fit(tmp_path: Path) -> None:
    data = archive(lambda tar: text(tar, "a")).read().replace(b"a", b"b", 1)
    refused(tmp_path, io.BytesIO(data), "the first entry", "no tar header")


@pytest.mark.parametrize("name", ["file", ".wh.file", ".wh..wh..opq"])
def test_over_a_tree_symlinks_lead_nowhere_else(tmp_path: Path, neighbour: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(neighbour)
    apply_onto(archive(lambda tar: text(tar, f"out/{name}")), root)


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/mine").touch()
    blob = archive(lambda tar: text(tar, "a"))
    refused(tmp_path, blob, str(tmp_path / "layer"), "not empty")
    assert os.listdir(tmp_path / "layer") == ["mine"]


@pytest.mark.parametrize("records", [{}, {"SCHILY.xattr.user.a": "b"}], ids=["plain", "xattr"])
def test_owners_that_nobody_maps(tmp_path: Path, records: dict[str, str]) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        text(tar, "mine", uid=1000, gid=1000, pax_headers=records)
        text(tar, "theirs", uid=5, gid=6, pax_headers=records)

    (tmp_path / "tar").write_bytes(archive(fill).read())
    apply = [*UNPRIVILEGED, sys.executable, "-m", "unionfs.cli", "layer", "apply"]
    command = [*apply, tmp_path / "tar", tmp_path / "layer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "theirs: Invalid argument to give it to 5:6; map these IDs" in done.stderr
    assert os.listdir(tmp_path) == ["tar"]
    command.append("--ignore-chown-errors")
    subprocess.run(command, capture_output=True, check=True)
    assert sorted(os.listdir(tmp_path / "layer")) == ["mine", "theirs"]
