"""What a door makes of scenarios: outcomes, trees, and the layers that it leaves.

Scenarios share a union, each in a directory of its own, so that a door opens once for all but
the few that need the roots of the layers. Every observation is a value that compares.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from tests.conformance.doors import Door, Folder, Layers, Opener, alive, kernel, watched
from tests.conformance.play import Player, Scenario
from tests.tree import Snapshot, build, snapshot


@final
@dataclass(slots=True)
class Observation:
    """One scenario through one door.

    outcomes: each step's. merged: the tree through the door, after the last step. upper: the
    same on disk, marks included, and the index, where the union is its alone. remounted: what a
    fresh kernel mount of the layers shows. reread: what the door shows of the layers that the
    kernel's door left.
    """

    outcomes: dict[str, object]
    merged: Snapshot
    upper: Snapshot
    remounted: Snapshot = field(default_factory=dict)
    reread: Snapshot = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Observations:
    """All scenarios through one door; where their layers lie, and what else the door left."""

    by_name: dict[str, Observation]
    layers: dict[str, Layers]
    leftovers: list[str]
    complaints: list[str]


def _unions(scenarios: Iterable[Scenario]) -> dict[str, list[Scenario]]:
    """Which scenarios share a union, by the union's name."""
    unions: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        shared = f"shared{'-data' * scenario.data}-{scenario.options}".replace(",", "-")
        unions.setdefault(scenario.name if scenario.alone else shared, []).append(scenario)
    return unions


def _top(scenario: Scenario) -> str:
    return "." if scenario.alone else scenario.name


def _shown(door: Door, scenario: Scenario) -> Snapshot:
    with watched(door):
        return snapshot(door, _top(scenario))


def prepare(layers: Layers, scenarios: Sequence[Scenario]) -> None:
    """Build the layers that scenarios of one union start from."""
    layers.make()
    for scenario in scenarios:
        for root, tree in zip(layers.lower, scenario.lower, strict=False):
            build(f"{root}/{_top(scenario)}", tree)
        if scenario.upper is not None:
            build(f"{layers.upper}/{_top(scenario)}", scenario.upper)


def observe(
    opener: Opener, scenarios: Sequence[Scenario], base: Path, reference: Observations | None
) -> Observations:
    """Run the scenarios through a door, over new layers below base.

    reference: the kernel's observations, whose layers the door then reads.
    """
    seen: dict[str, Observation] = {}
    places: dict[str, Layers] = {}
    for union, members in _unions(scenarios).items():
        layers = Layers(base / union, members[0].writable, members[0].options, members[0].data)
        prepare(layers, members)
        places[union] = layers
        seen.update(_play(opener, layers, members))
        with kernel(layers) as door:
            for scenario in members:
                seen[scenario.name].remounted = _shown(door, scenario)
        if reference is not None:
            with opener(reference.layers[union]) as door:
                for scenario in members:
                    seen[scenario.name].reread = _shown(door, scenario)
    return Observations(
        by_name=seen,
        layers=places,
        leftovers=[name for layers in places.values() for name in layers.leftovers()],
        complaints=[line for layers in places.values() for line in layers.complaints()],
    )


def _play(opener: Opener, layers: Layers, scenarios: Sequence[Scenario]) -> dict[str, Observation]:
    """Run scenarios in one union; a door that died is opened anew for the next of them."""
    seen: dict[str, Observation] = {}
    disk = Folder(layers.upper)
    with ExitStack() as stack:
        door = stack.enter_context(opener(layers))
        for scenario in scenarios:
            if not alive(door):
                stack.close()
                door = stack.enter_context(opener(layers))
            outcomes = Player(door, _top(scenario)).play(scenario)
            merged = _shown(door, scenario)
            upper = snapshot(disk, _top(scenario))
            if scenario.alone:
                upper |= layers.indexed()
            seen[scenario.name] = Observation(outcomes, merged, upper)
    return seen
