"""The measurement of containers, in small: every step is in the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_every_step_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.containers", "--quick", "--rounds=2"]
    command += ["--folder", str(tmp_path), "--output", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report/containers.json").read_text())
    steps = ("create", "mount", "bare mount", "remove", "beyond it")
    assert [(row["image"], row["step"]) for row in report["rows"]] == [
        (image, step) for image in ("small", "large") for step in steps
    ]
    assert 0 < report["bytes_each"] <= 8192
    assert [*tmp_path.iterdir()] == [tmp_path / "report"]
