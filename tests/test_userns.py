"""A part of `make test-userns`: an ordinary user's library and mounts of both kinds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes the user")

CHOSEN = "rename-lower-file-onto-nothing or remove-lower or user- or xattr or copy-up or noise"


def test_as_root_of_a_user_namespace() -> None:
    tests = ["tests/unionfs/test_overlayfs.py", "tests/unionfs/test_resolve.py"]
    tests += ["tests/unionfs/test_union.py", "tests/conformance/test_conformance.py"]
    machine = "tests/conformance/test_machine.py::test_random_operations"
    tests += [f"{machine}[library-redirect_dir=nofollow]"]
    command = [sys.executable, "-m", "tests.userns", "-q", *tests]
    inside = subprocess.run(
        [*command, "-k", f"not test_conformance or {CHOSEN}"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.returncode == 0, inside.stdout + inside.stderr
