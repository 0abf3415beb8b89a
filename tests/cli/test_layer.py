"""`unionmount layer write` and `layer apply`: a layer to a file and back, and what goes wrong."""

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, UNPRIVILEGED, Call, complaint, output

STACK = ("--lower", "base", "--upper", "app")


@pytest.fixture
def layer(folder: Path, call: Call) -> Path:
    """The archive of app over base."""
    output(call("layer", "write", *STACK, "app.tar"))
    return folder / "app.tar"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def members(file: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(file) as archive:
        return archive.getmembers()


def test_a_layer_is_written_and_applied(call: Call, folder: Path) -> None:
    (folder / "base/etc/gone").touch()
    (folder / "app/etc/.wh.gone").touch()
    written = json.loads(output(call("layer", "write", "--json", *STACK, "app.tar.gz")))
    data = (folder / "app.tar.gz").read_bytes()
    assert (written["digest"], written["size"]) == (digest(data), len(data))
    assert written["media_type"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert [member.name for member in members(folder / "app.tar.gz")] == [
        "etc",
        "etc/app.conf",
        "etc/.wh.gone",
    ]
    applied = json.loads(output(call("layer", "apply", "--json", "app.tar.gz", "again")))
    assert (applied["digest"], applied["diff_id"]) == (written["digest"], written["diff_id"])
    found = output(call("diff", "--lower", "base", "--upper", "again"))
    assert found == output(call("diff", *STACK))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_of_a_mounted_union(call: Call, folder: Path) -> None:
    stack = ("--lower", "base", "--upper", "upper", "--work", "work")
    output(call("mount", *stack, "--backend", "overlayfs", "target"))
    (folder / "target/new").touch()
    output(call("layer", "write", "new.tar", "target"))
    assert [member.name for member in members(folder / "new.tar")] == ["new"]


@pytest.mark.parametrize(
    ("name", "begin"), [("a.tar", b"PaxHeaders/etc/"), ("a.zst", b"\x28\xb5\x2f\xfd")]
)
def test_the_files_ending_tells_the_compression(
    call: Call, folder: Path, name: str, begin: bytes
) -> None:
    output(call("layer", "write", *STACK, name))
    assert (folder / name).read_bytes().startswith(begin)


def test_through_pipes(folder: Path, layer: Path) -> None:
    wrote = subprocess.run(
        [*COMMAND, "layer", "write", *STACK, "--compression", "none", "-"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert wrote.stdout == layer.read_bytes()
    command = [*COMMAND, "layer", "apply", "-", "again"]
    subprocess.run(command, cwd=folder, input=wrote.stdout, check=True, capture_output=True)
    assert (folder / "again/etc/app.conf").read_text() == "debug\n"


def test_times_are_clamped(call: Call, folder: Path) -> None:
    for before in ([], ["env", "SOURCE_DATE_EPOCH=5"]):
        clamp = [] if before else ["--clamp", "5"]
        output(call("layer", "write", *clamp, *STACK, "a.tar", before=before))
        assert {member.mtime for member in members(folder / "a.tar")} == {5}


def test_over_a_tree(call: Call, folder: Path, layer: Path) -> None:
    output(call("layer", "apply", "--onto", "app.tar", "base"))
    assert (folder / "base/etc/app.conf").read_text() == "debug\n"
    assert (folder / "base/etc/motd").exists()


def test_a_user_without_rights_gets_marks_of_his_own(call: Call, folder: Path, layer: Path) -> None:
    (folder / "app/etc/.wh.motd").touch()
    output(call("layer", "write", *STACK, "app.tar"))
    output(call("layer", "apply", "app.tar", "again", "--ignore-chown-errors", before=UNPRIVILEGED))
    shown = output(call("ls", "-o", "userxattr", "--lower", "again", "--lower", "base", "etc"))
    assert shown == "app.conf\n"


BAD = {
    ("write", *STACK, "missing/app.tar"): "missing/app.tar: No such file or directory",
    ("write", *STACK, "target"): "target: is a directory",
    ("write", *STACK, "--level", "9", "app.tar.gz"): "gzip has no level 9; take 0 to 3",
    ("write", "app.tar"): "no union is mounted there",
    ("apply", "missing.tar", "again"): "missing.tar: No such file or directory",
    ("apply", "app.tar", "base"): "base: is not empty",
    ("apply", "app.tar", "missing/again"): "check the path",
    ("apply", "app.tar", "again", "--digest", "sha256:00"): "not sha256:00",
    ("apply", "app.tar", "again", "--max-size", "100"): "limit of 100 bytes",
    ("apply", "app.tar", "again", "--onto", "--digest", "a"): "--onto goes with neither",
    ("apply", "base/etc/motd", "again"): "the archive ends",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_mistakes(call: Call, folder: Path, layer: Path, arguments: tuple[str, ...]) -> None:
    before = {*folder.rglob("*")}
    assert BAD[arguments] in complaint(call("layer", *arguments))
    assert {*folder.rglob("*")} == before
