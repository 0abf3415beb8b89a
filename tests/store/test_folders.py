"""Directories that go whatever their modes, and places that one process has at a time."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import UNPRIVILEGED
from unionfs.store.folders import claimed, remove

CLOSED = """
import os, sys
from unionfs.store.folders import remove

root = sys.argv[1]
os.makedirs(f"{root}/a/closed/b")
open(f"{root}/a/closed/b/file", "w").close()
os.makedirs(f"{root}/a/unreadable")
open(f"{root}/a/unwritable", "w").close()
for path, mode in (("a/closed", 0), ("a/unreadable", 0o300), ("a", 0o500)):
    os.chmod(f"{root}/{path}", mode)
remove(f"{root}/a")
assert os.listdir(root) == [], os.listdir(root)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the test makes namespaces")
def test_an_ordinary_user_removes_what_is_closed(tmp_path: Path) -> None:
    command = [*UNPRIVILEGED, sys.executable, "-c", CLOSED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_anything_is_removed_and_nothing_is_missed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    for name in ("file", "link", "absent"):
        remove(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["kept"]


def test_a_place_is_claimed_by_one_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "draft")
    flags = os.O_RDONLY | os.O_DIRECTORY
    with claimed(path, flags) as absent:
        assert absent is None
    os.mkdir(path)
    waiting = threading.Event()
    found: list[int | None] = []

    def wait() -> None:
        waiting.set()
        with claimed(path, flags) as fd:
            found.append(fd)

    other = threading.Thread(target=wait)
    with claimed(path, flags) as fd:
        assert fd is not None
        with claimed(path, flags, wait=False) as busy:
            assert busy is None
        other.start()
        waiting.wait()
        os.rename(path, tmp_path / "done")  # what was made there has its place by now
    other.join()
    assert found == [None]
