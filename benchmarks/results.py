"""What was measured, summed up: medians, spread, and ratios to the two that others are judged by.

The median and the whole range stand for the rounds; with a handful of them, no finer statistic
means anything. A ratio is that of two medians, above 1 where the peer is slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

from benchmarks.peers import FUSE_OVERLAYFS, KERNEL, PEERS
from benchmarks.scale import Scale
from benchmarks.session import Outcome
from benchmarks.workloads import WORKLOADS

BASELINES: Final = (KERNEL, FUSE_OVERLAYFS)
"""The peers that the others are divided by."""


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. round counts from 0."""

    workload: str
    layers: int
    peer: str
    round: int
    outcome: Outcome


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A peer's rounds of one workload.

    seconds: of each round that succeeded. memory in bytes, descriptors: the most in any round.
    failure: what came of the round that failed, if one did; then there is no median and no ratio.
    ratios: by baseline.
    """

    workload: str
    layers: int
    peer: str
    seconds: tuple[float, ...]
    memory: int
    descriptors: int
    failure: Outcome | None
    ratios: Mapping[str, float]

    @property
    def median(self) -> float | None:
        """In seconds."""
        return None if self.failure else statistics.median(self.seconds)

    @property
    def low(self) -> float | None:
        """The fastest round, in seconds."""
        return None if self.failure else min(self.seconds)

    @property
    def high(self) -> float | None:
        """The slowest round, in seconds."""
        return None if self.failure else max(self.seconds)


def summarise(samples: Iterable[Sample]) -> list[Row]:
    """One row for each workload, number of layers and peer, in the order of the lists of them."""
    grouped: dict[tuple[str, int, str], list[Outcome]] = {}
    for sample in samples:
        key = (sample.workload, sample.layers, sample.peer)
        grouped.setdefault(key, []).append(sample.outcome)
    workloads, peers = list(WORKLOADS), list(PEERS)
    keys = sorted(grouped, key=lambda key: (workloads.index(key[0]), key[1], peers.index(key[2])))
    alone = {key: _row(*key, grouped[key]) for key in keys}
    return [replace(row, ratios=_ratios(row, alone)) for row in alone.values()]


def _row(workload: str, layers: int, peer: str, outcomes: list[Outcome]) -> Row:
    return Row(
        workload,
        layers,
        peer,
        seconds=tuple(one.seconds for one in outcomes if one.seconds is not None),
        memory=max(one.memory for one in outcomes),
        descriptors=max(one.descriptors for one in outcomes),
        failure=next((one for one in outcomes if one.seconds is None), None),
        ratios={},
    )


def _ratios(row: Row, rows: Mapping[tuple[str, int, str], Row]) -> dict[str, float]:
    found = {}
    for baseline in BASELINES:
        other = rows.get((row.workload, row.layers, baseline))
        if other is not None and row.median is not None and other.median is not None:
            found[baseline] = row.median / other.median
    return found


@final
@dataclass(frozen=True, slots=True)
class Report:
    """All that a reader is told, whatever the form.

    machine: what it ran on. peers: name and version of those that ran. missing: what did not run,
    and why.
    """

    machine: Mapping[str, str]
    scale: Scale
    rounds: int
    peers: Mapping[str, str]
    missing: Mapping[str, str]
    rows: Sequence[Row]

    def document(self) -> dict[str, Any]:
        """The report as JSON has it: times in seconds, sizes in bytes."""
        values = asdict(self)
        for row, value in zip(self.rows, values["rows"], strict=True):
            value |= {"median": row.median, "low": row.low, "high": row.high}
            if row.failure is not None:
                value["failure"] = {"error": row.failure.error, "message": row.failure.message}
        return values
