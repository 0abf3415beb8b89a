"""The tutorial's commands do what it says that they do; the registry is the test's own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.server import registry
from unionfs import mount_api

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and runs")

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"
_REGISTRY = "localhost:5000"
_DONE = "-- done"


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command of the tutorial, and the lines that it says are printed."""
    for block in re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(), re.S | re.M):
        for step in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, printed = step, ""
            if here := re.match(r".*<<'END'\n.*?^END\n", step, re.S | re.M):
                command, printed = here[0], step[here.end() :]
            else:
                command, _, printed = step.partition("\n")
            yield command, printed.splitlines()


def pattern(line: str) -> str:
    """What a line of the tutorial allows: … is anything, and blanks are alike."""
    words = re.escape(" ".join(line.split()))
    return words.replace(re.escape("…"), ".*")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    yield tmp_path
    while os.path.ismount(tmp_path / "root"):
        mount_api.umount(str(tmp_path / "root"), lazy=True)


def test_the_tutorial(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "UNIONMOUNT_STORE": str(folder / "store")}
    with (
        registry(folder / "registry") as host,
        subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as shell,
    ):
        assert shell.stdin
        assert shell.stdout
        commands = 0
        for command, promised in steps():
            commands += 1
            command = command.replace(_REGISTRY, host)
            # what a container reads must not be the commands that follow
            shell.stdin.write(f"{{ {command}\n}} </dev/null; echo '{_DONE}' $?\n")
            shell.stdin.flush()
            printed = []
            while not (line := shell.stdout.readline()).startswith(_DONE):
                assert line, f"the shell ended in: {command}"
                printed.append(" ".join(line.split()).replace(host, _REGISTRY))
            assert line == f"{_DONE} 0\n", (command, printed)
            assert len(printed) == len(promised), (command, printed)
            for got, wanted in zip(printed, promised, strict=True):
                assert re.fullmatch(pattern(wanted), got), (command, got, wanted)
        shell.stdin.close()
    assert commands > 20
