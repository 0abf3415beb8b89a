"""The doctor tries what this machine can do, in namespaces that lack one thing or another."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import UNPRIVILEGED, WITHOUT_FUSE, WRITABLE, Call, complaint, output
from tests.privilege import NO_DEVICES, machine_only

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


def diagnosis(call: Call, *before: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the doctor says for programs, and its checks by name."""
    result = call("doctor", "--json", "--upper", "upper", before=before)
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert result.returncode == (0 if found["backend"] else 1)
    return found, {check["name"]: check for check in found["mounts"] + found["filesystem"]}


def test_a_machine_that_can_mount(call: Call, folder: Path) -> None:
    found, checks = diagnosis(call)
    assert (found["backend"], found["why"]) == ("overlayfs", "the kernel mounted the trial")
    for name in ("kernel overlayfs", "FUSE", "/dev/fuse", "user. attributes", "whiteout devices"):
        assert checks[name]["ok"], checks[name]
    assert all(check["remedy"] for check in checks.values() if not check["ok"])
    assert os.listdir(folder / "upper") == []


def test_a_person_reads_the_same(call: Call) -> None:
    _, checks = diagnosis(call)
    shown = output(call("doctor", "--upper", "upper"))
    for check in checks.values():
        (line,) = [line for line in shown.splitlines() if f" {check['name']}  " in line]
        assert line.startswith("  yes " if check["ok"] else "  no ")
        assert check["says"] in line
        assert (check["remedy"] or "") in shown
    assert shown.endswith("unionmount mount takes overlayfs: the kernel mounted the trial\n")


@machine_only(NO_DEVICES)
def test_without_the_fuse_device(call: Call) -> None:
    found, checks = diagnosis(call, *WITHOUT_FUSE)
    assert found["backend"] == "overlayfs"
    assert not checks["/dev/fuse"]["ok"]
    assert "modprobe fuse" in checks["/dev/fuse"]["remedy"]
    assert "/dev/fuse" in checks["FUSE"]["says"]


def test_without_the_privilege_to_mount(call: Call) -> None:
    found, checks = diagnosis(call, *UNPRIVILEGED)
    assert found["backend"] is None
    assert "user namespace" in checks["kernel overlayfs"]["says"]
    assert not checks["FUSE"]["ok"]
    assert not checks["trusted. attributes"]["ok"]


def test_where_the_kernel_refuses(call: Call) -> None:
    """Overlayfs takes no upper on overlayfs, which is what a container's root lies on."""
    output(call("mount", *WRITABLE, "--backend", "overlayfs", "target"))
    result = call("doctor", "--upper", "target")
    assert "\nunionmount mount takes fuse: kernel overlayfs: " in output(result)


def test_with_the_privilege_of_a_user_namespace(call: Call) -> None:
    found, checks = diagnosis(call, "unshare", "--user", "--map-root-user", "--mount")
    assert found["backend"] == "overlayfs"
    assert not checks["trusted. attributes"]["ok"]


def test_a_directory_that_cannot_be_tried(call: Call) -> None:
    assert complaint(call("doctor", "--upper", "none")).endswith("No such file or directory")
