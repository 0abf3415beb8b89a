"""The comparison of layers, in small: every tool does every task, and the table has them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="umoci and tar give files to their owners")
def test_every_tool_does_every_task() -> None:
    # podman takes no long paths, and reads some as images' names, which this is none of
    with TemporaryDirectory(dir="/var/tmp", suffix="_A_") as short:
        compare(Path(short))


def compare(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.layers", "--quick", "--rounds=1"]
    command += ["--folder", tmp_path, "--output", tmp_path / "report"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "report/layers.json").read_text())["rows"]
    assert {(row["task"], row["tool"]) for row in rows} == {
        *(("unpack", tool) for tool in ("unionmount", "umoci", "skopeo and tar", "tar")),
        *(("import", tool) for tool in ("unionmount", "podman")),
        *(("make", tool) for tool in ("unionmount", "umoci", "tar")),
        *(("commit", tool) for tool in ("unionmount", "podman", "umoci")),
    }
    assert all(row["size"] > 100_000 for row in rows), "all made something"
    unpacked = {(row["tree"], row["size"]) for row in rows if row["task"] == "unpack"}
    assert len(unpacked) == 2, "all unpacked the same"
    assert [*tmp_path.iterdir()] == [tmp_path / "report"]
