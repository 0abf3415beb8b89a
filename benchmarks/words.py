"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.scale import MIB, Scale
from benchmarks.workloads import Workload


def duration(seconds: float) -> str:
    """Three digits and a unit: 1.23 s, 45.6 ms, 7.89 µs."""
    unit, value = "s", seconds
    for smaller in ("ms", "µs"):
        if value < 1:
            unit, value = smaller, value * 1000
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def pace(seconds: float, workload: Workload, scale: Scale) -> str:
    """The time of one file or call, or the bytes a second; nothing where there is one alone."""
    amount = workload.amount(scale)
    if workload.unit == "byte":
        speed = amount / seconds / MIB
        return f"{speed:.0f} MiB/s" if speed < 10_000 else f"{speed / 1024:.0f} GiB/s"
    return f"{duration(seconds / amount)}/{workload.unit}" if amount > 1 else ""


def spread(row: Row) -> str:
    """How far the rounds lie from the median, at most, as a part of it."""
    if row.low is None or row.high is None or row.median is None or row.low == row.high:
        return ""
    return f"±{max(row.high - row.median, row.median - row.low) / row.median:.0%}"


def ratio(value: float | None) -> str:
    """How many times as long."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.01 else "<0.01"


def memory(size: int) -> str:
    """In MiB, without saying so; nothing where there is no process."""
    return f"{size / MIB:.1f}" if size else ""


def failure(row: Row) -> str:
    """Why there is no time: the errno first."""
    if row.failure is None:
        return ""
    message = row.failure.message or ""
    return f"{row.failure.error}: {message}" if row.failure.error else message
