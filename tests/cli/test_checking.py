"""fsck: its lines and exit codes."""

import json
import os
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import WRITABLE, Call, complaint, output

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes whiteouts and mounts")


def _stray(folder: Path, name: str) -> Path:
    path = folder / "upper" / name
    os.mknod(path, stat.S_IFCHR, 0)
    return path


def test_a_sound_stack(call: Call) -> None:
    assert output(call("fsck", *WRITABLE)) == ""


def test_a_fault_is_a_line_and_its_repair_another(call: Call, folder: Path) -> None:
    path = _stray(folder, "gone")
    found = call("fsck", *WRITABLE)
    assert (found.returncode, found.stderr) == (4, "")
    assert found.stdout == f"{path}: stray whiteout: hides nothing; --repair mends it\n"
    repaired = call("fsck", "--repair", *WRITABLE)
    assert (repaired.returncode, repaired.stderr) == (1, "")
    assert repaired.stdout == f"{path}: stray whiteout: hides nothing; repaired: remove it\n"
    assert output(call("fsck", "--repair", *WRITABLE)) == ""


def test_what_is_left_shows_in_the_exit_code(call: Call, folder: Path) -> None:
    _stray(folder, "gone")
    (folder / "upper/.wh.etc").touch()
    done = call("fsck", "--json", "--repair", *WRITABLE)
    assert done.returncode == 4
    findings = json.loads(done.stdout)
    assert [(finding["kind"], finding["repaired"]) for finding in findings] == [
        ("AUFS name", False),
        ("stray whiteout", True),
    ]


def test_a_mounted_stack_is_left_alone(call: Call, folder: Path) -> None:
    path = _stray(folder, "gone")
    output(call("mount", *WRITABLE, "target"))
    done = call("fsck", "--repair", *WRITABLE)
    assert done.returncode == 8
    assert complaint(done).endswith("is mounted by the kernel; unmount that first")
    assert path.is_char_device()


def test_layers_that_cannot_be_read(call: Call) -> None:
    done = call("fsck", "--lower", "missing")
    assert done.returncode == 8
    assert "missing: lower layer: No such file or directory" in complaint(done)
