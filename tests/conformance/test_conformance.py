"""Every door does what kernel overlayfs does: results, errnos, trees, and layers on disk."""

from collections.abc import Callable

import pytest

from tests.conformance.doors import DOORS
from tests.conformance.known import KNOWN_DIFFERENCES
from tests.conformance.observe import Observations
from tests.conformance.play import Scenario, better, beyond_namespaces
from tests.conformance.scenarios import SCENARIOS
from tests.privilege import IN_USER_NAMESPACE
from tests.tree import differences, there, unrepaired

Observe = Callable[[str], Observations]


def _known_as(door: str, scenario: Scenario) -> str:
    """The door whose differences it has."""
    if door != "fuse":
        return door
    if scenario.options:
        return "fuse-pure"  # with options C answers nothing
    return "fuse-cached" if IN_USER_NAMESPACE else door


def _beyond(scenario: Scenario) -> list[pytest.MarkDecorator]:
    reason = beyond_namespaces(scenario) if IN_USER_NAMESPACE else None
    return [pytest.mark.skip(reason=reason)] if reason else []


def _cases() -> list[object]:
    """Door and scenario; a known difference must stay one, or leave the table."""
    return [
        pytest.param(
            door,
            scenario,
            id=f"{door}-{scenario.name}",
            marks=_beyond(scenario)
            or [
                pytest.mark.xfail(strict=True, reason=known.reason)
                for known in KNOWN_DIFFERENCES
                if _known_as(door, scenario) in known.doors
                and {scenario.name, scenario.name.removeprefix("metacopy-")} & known.scenarios
            ],
        )
        for door in DOORS
        for scenario in SCENARIOS
        if not (door == "fuse-cached" and scenario.options)  # it would be fuse once more
    ]


@pytest.mark.parametrize(("door", "scenario"), _cases())
def test_scenario(door: str, scenario: Scenario, observations: Observe) -> None:
    """Given the scenario's layers and steps, the door leaves and shows what the kernel does."""
    expected = observations("reference").by_name[scenario.name]
    actual = observations(door).by_name[scenario.name]
    outcomes = {
        step: expected.outcomes[step]
        if better(step, expected.outcomes.get(step), outcome)
        # by handles alone, which cannot be opened there, the library knows where a file came from
        or (IN_USER_NAMESPACE and door == "library" and "number_kept" in step)
        else outcome
        for step, outcome in actual.outcomes.items()
    }
    refused = {step for step, outcome in expected.outcomes.items() if outcome == "EXDEV"}
    if IN_USER_NAMESPACE and any(outcomes[step] != "EXDEV" for step in refused):
        pytest.xfail("without redirects the kernel renames no directory of a lower layer")
    unlike = [
        f"{what}: {line}"
        for what, wanted, got in (
            ("outcome", expected.outcomes, outcomes),
            ("merged tree", expected.merged, actual.merged),
            (
                "upper on disk",
                expected.upper if scenario.upper is None else unrepaired(expected.upper),
                actual.upper if scenario.upper is None else unrepaired(actual.upper),
            ),
            ("layers mounted natively", expected.remounted, actual.remounted),
            ("kernel's layers through the door", expected.remounted, actual.reread),
        )
        for line in differences(there(wanted), there(got))
    ]
    if unlike:
        pytest.fail("\n".join(unlike), pytrace=False)


@pytest.mark.parametrize("door", DOORS)
def test_work_is_left_empty(door: str, observations: Observe) -> None:
    """Nothing stays in work once the door is closed."""
    assert not observations(door).leftovers


@pytest.mark.parametrize("door", DOORS)
def test_the_log_is_clean(door: str, observations: Observe) -> None:
    """No scenario, however wrong its calls, makes a mount complain."""
    assert not observations(door).complaints
