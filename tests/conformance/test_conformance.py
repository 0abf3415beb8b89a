"""Every door does what kernel overlayfs does: results, errnos, trees, and layers on disk."""

from collections.abc import Callable

import pytest

from tests.conformance.doors import DOORS
from tests.conformance.known import KNOWN_DIFFERENCES
from tests.conformance.observe import Observations
from tests.conformance.play import Scenario, better
from tests.conformance.scenarios import SCENARIOS
from tests.tree import differences, there, unrepaired

Observe = Callable[[str], Observations]


def _cases() -> list[object]:
    """Door and scenario; a known difference must stay one, or leave the table."""
    return [
        pytest.param(
            door,
            scenario,
            id=f"{door}-{scenario.name}",
            marks=[
                pytest.mark.xfail(strict=True, reason=known.reason)
                for known in KNOWN_DIFFERENCES
                # with options C answers nothing
                if ("fuse-pure" if door == "fuse" and scenario.options else door) in known.doors
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
        else outcome
        for step, outcome in actual.outcomes.items()
    }
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
