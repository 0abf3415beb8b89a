"""Malformed and unexpected requests are answered with an errno, and the program goes on."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_no_kernel_sends(seed: int) -> None:
    command = [sys.executable, "-m", "tests.fuse_mount.requests", str(seed), "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
