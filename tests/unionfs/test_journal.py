"""Which filesystems keep data before names, on real disks of each kind."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.disk import looped, mounted
from tests.privilege import NO_DISKS, machine_only
from unionfs import journal
from unionfs.workdir import mount_table

pytestmark = machine_only(NO_DISKS)

_EXT4 = ["mkfs.ext4", "-q"]


def _keeps_order(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return journal.keeps_order(fd, mount_table())
    finally:
        os.close(fd)


def _make(image: Path, *command: str) -> Path:
    subprocess.run(["truncate", "-s", "400M", image], check=True)
    subprocess.run([*command, image], check=True, capture_output=True)
    return image


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (_EXT4, True),
        ([*_EXT4, "-O", "^has_journal"], False),
        (["mkfs.xfs", "-q"], True),
        (["mkfs.btrfs", "-q"], False),
    ],
)
def test_one_disk(tmp_path: Path, command: list[str], kept: bool) -> None:
    with mounted(_make(tmp_path / "image", *command), tmp_path / "mounted"):
        assert _keeps_order(tmp_path / "mounted") is kept


@pytest.mark.parametrize(
    ("log", "data", "option"),
    [
        ([*_EXT4, "-O", "journal_dev"], [*_EXT4, "-J", "device={}"], "rw"),
        (["true"], ["mkfs.xfs", "-q", "-l", "logdev={}"], "logdev={}"),
    ],
)
def test_a_journal_on_another_disk(
    tmp_path: Path, log: list[str], data: list[str], option: str
) -> None:
    """Its flushes do not reach the data."""
    with ExitStack() as stack:
        device = stack.enter_context(looped(_make(tmp_path / "log", *log)))
        image = _make(tmp_path / "image", *(word.format(device) for word in data))
        options = "-o", option.format(device)
        stack.enter_context(mounted(image, tmp_path / "mounted", *options))
        assert not _keeps_order(tmp_path / "mounted")


def test_no_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        assert not _keeps_order(tmp_path)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
