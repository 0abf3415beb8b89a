"""Sums of rounds, and how they are written."""

from benchmarks import words
from benchmarks.results import Row, Sample, summarise
from benchmarks.scale import QUICK
from benchmarks.session import Outcome
from benchmarks.workloads import WORKLOADS


def _rounds(peer: str, *outcomes: Outcome, layers: int = 5) -> list[Sample]:
    return [
        Sample("walk-warm", layers, peer, number, outcome)
        for number, outcome in enumerate(outcomes)
    ]


def _timed(*seconds: float) -> list[Outcome]:
    return [Outcome(one, memory=int(one * 1000), descriptors=int(one)) for one in seconds]


def test_a_row_has_the_median_of_its_rounds_and_their_range() -> None:
    (row,) = summarise(_rounds("plain", *_timed(3, 9, 1, 4, 2)))
    assert (row.median, row.low, row.high) == (3, 1, 9)
    assert (row.memory, row.descriptors) == (9000, 9)
    assert words.spread(row) == "±200%"


def test_peers_are_divided_by_the_kernel_and_by_fuse_overlayfs() -> None:
    rows = summarise(
        [
            *_rounds("unionmount", *_timed(3, 5)),
            *_rounds("fuse-overlayfs", *_timed(8, 8)),
            *_rounds("overlayfs", *_timed(1, 3)),
        ]
    )
    assert [(row.peer, row.ratios) for row in rows] == [
        ("overlayfs", {"overlayfs": 1, "fuse-overlayfs": 0.25}),
        ("unionmount", {"overlayfs": 2, "fuse-overlayfs": 0.5}),
        ("fuse-overlayfs", {"overlayfs": 4, "fuse-overlayfs": 1}),
    ]


def test_a_peer_is_compared_in_the_same_number_of_layers_alone() -> None:
    rows = summarise(
        [
            *_rounds("overlayfs", *_timed(1), layers=5),
            *_rounds("mergerfs", *_timed(8), layers=60),
        ]
    )
    assert [row.ratios for row in rows] == [{"overlayfs": 1}, {}]


def test_a_round_that_failed_leaves_no_time_for_the_peer_nor_a_ratio_to_it() -> None:
    failure = Outcome(error="EXDEV", message="no rename")
    rows = summarise([*_rounds("overlayfs", *_timed(2), failure), *_rounds("plain", *_timed(1))])
    plain, kernel = rows
    assert (kernel.median, kernel.low, kernel.ratios) == (None, None, {})
    assert kernel.seconds == (2,)
    assert words.failure(kernel) == "EXDEV: no rename"
    assert plain.ratios == {}


def test_times_have_three_digits_and_a_unit() -> None:
    seconds = (123, 1.234, 0.0456, 0.00789, 0.00000123)
    assert list(map(words.duration, seconds)) == [
        "123 s",
        "1.23 s",
        "45.6 ms",
        "7.89 ms",
        "1.23 µs",
    ]


def test_the_pace_is_a_time_for_each_or_bytes_a_second() -> None:
    assert words.pace(0.8, WORKLOADS["walk-warm"], QUICK) == "1.00 ms/file"
    assert words.pace(0.5, WORKLOADS["read-large"], QUICK) == "32 MiB/s"
    assert words.pace(0.5, WORKLOADS["mount"], QUICK) == ""


def test_a_single_round_has_no_spread() -> None:
    row: Row = summarise(_rounds("plain", *_timed(1)))[0]
    assert words.spread(row) == ""
