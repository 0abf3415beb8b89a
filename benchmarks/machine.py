"""What a benchmark ran on, as far as it decides the numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime


def describe(folder: str, *, drop: bool) -> dict[str, str]:
    """By name: what machine, kernel and filesystem; drop: whether caches could be dropped."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cold = "after mounting: sync, then 3 to /proc/sys/vm/drop_caches, for every peer"
    fresh = "no more than a fresh mount, for every peer: only root may drop caches"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": f"{platform.system()} {platform.release()}",
        "processors": f"{os.cpu_count()}, {_processor()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "filesystem": _filesystem(folder),
        "python": platform.python_version(),
        "cold": cold if drop else fresh,
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def _filesystem(folder: str) -> str:
    command = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", folder]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
