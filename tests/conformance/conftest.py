"""Doors run once a session, and only the scenarios that were selected; counts at the end."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS
from tests.conformance.observe import Observations, observe
from tests.conformance.play import Scenario

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS

_passed: Counter[str] = Counter()


@pytest.fixture(scope="package", autouse=True)
def own_mounts() -> Iterator[None]:
    """Mounts that nothing else on the machine copies into a namespace of its own.

    For as long as such a copy lives, the kernel mounts no upper with an index again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open(".", os.O_PATH)
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    yield
    if libc.setns(outside, _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "setns")
    os.fchdir(here)
    os.close(outside)
    os.close(here)


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A folder that ordinary users may enter too, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    folder.chmod(0o755)
    mask = os.umask(0o022)
    try:
        yield folder
    finally:
        os.umask(mask)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def observations(ground: Path, request: pytest.FixtureRequest) -> Callable[[str], Observations]:
    """By door: what it made of the selected scenarios."""
    chosen: dict[str, Scenario] = {}
    for item in request.session.items:
        scenario = item.callspec.params.get("scenario") if hasattr(item, "callspec") else None
        if isinstance(scenario, Scenario):
            chosen[scenario.name] = scenario
    reference = cache(lambda: observe(DOORS["kernel"], [*chosen.values()], ground / "ref", None))

    @cache
    def of(door: str) -> Observations:
        return observe(DOORS[door], [*chosen.values()], ground / door, reference())

    return lambda door: of(door) if door != "reference" else reference()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count each door's passed tests."""
    if report.when == "call" and report.passed and "conformance" in report.nodeid:
        properties = dict(report.user_properties)
        _passed[str(properties.get("door"))] += 1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the door in the report, where the count finds it."""
    if hasattr(item, "callspec") and "door" in item.callspec.params:
        item.user_properties.append(("door", item.callspec.params["door"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """conformance: kernel N, library N, … passed."""
    counts = ", ".join(f"{door} {_passed[door]}" for door in DOORS)
    if any(_passed[door] for door in DOORS):
        terminalreporter.write_line(f"conformance: {counts} passed")
