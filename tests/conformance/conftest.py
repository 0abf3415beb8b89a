"""Doors run once a session, and only the scenarios that were selected; counts at the end."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS
from tests.conformance.observe import Observations, observe
from tests.conformance.play import Scenario
from tests.mounts import private
from tests.tree import unguarded

_passed: Counter[str] = Counter()


@pytest.fixture(scope="package", autouse=True)
def own_mounts() -> Iterator[None]:
    with private():
        yield


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
        unguarded(str(folder))
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def observations(ground: Path, request: pytest.FixtureRequest) -> Callable[[str], Observations]:
    """By door: what it made of the selected scenarios."""
    chosen: dict[str, Scenario] = {}
    for item in request.session.items:
        scenario = item.callspec.params.get("scenario") if hasattr(item, "callspec") else None
        if isinstance(scenario, Scenario) and not item.get_closest_marker("skip"):
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
