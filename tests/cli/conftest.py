"""The command as a user calls it: a process of its own, in a folder with directories for layers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from unionfs import mount_api

COMMAND = [sys.executable, "-m", "unionfs.cli"]
LAYERS = ("--lower", "app", "--lower", "base")
WRITABLE = (*LAYERS, "--upper", "upper", "--work", "work")
DIRECTORIES = ("app", "base", "upper", "work", "other", "target", "target2")

WITHOUT_FUSE = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"',
    "sh",
)
"""What to run a command with, where the kernel has no FUSE to offer."""
UNPRIVILEGED = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""As a user without root's rights, in a namespace of his own, so that root's files are his."""

Result = subprocess.CompletedProcess[str]


class Call(Protocol):
    """Run `unionmount` with these arguments; options go to subprocess.run."""

    def __call__(self, *arguments: str, **options: Any) -> Result: ...


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with directories for a union; whatever gets mounted on its targets is unmounted."""
    for name in DIRECTORIES:
        (tmp_path / name).mkdir()
    (tmp_path / "base/etc").mkdir()
    (tmp_path / "base/etc/motd").write_text("welcome\n")
    (tmp_path / "base/etc/app.conf").write_text("info\n")
    (tmp_path / "app/etc").mkdir()
    (tmp_path / "app/etc/app.conf").write_text("debug\n")
    yield tmp_path
    for name in ("target", "target2"):
        while os.path.ismount(tmp_path / name):
            mount_api.umount(str(tmp_path / name), lazy=True)


@pytest.fixture
def call(folder: Path) -> Call:
    """Call the command in the folder."""

    def run(*arguments: str, **options: Any) -> Result:
        return subprocess.run(
            [*options.pop("before", ()), *COMMAND, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    return run


def output(result: Result) -> str:
    """What a call printed that must have succeeded without complaints."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def complaint(result: Result) -> str:
    """The one line that a call must have failed with."""
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("unionmount: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip().removeprefix("unionmount: ")
