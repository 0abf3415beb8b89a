"""Redirects where options restrict them: whether they are followed, and whether they are made."""

from dataclasses import replace

from tests.conformance.doors import RENAME_EXCHANGE
from tests.conformance.play import Scenario, do
from tests.conformance.scenarios import reading, renaming
from tests.tree import directory, file, opaque, symlink

_MODES = ("off", "follow", "nofollow")

_RENAMES = Scenario(
    "rename-all-kinds",
    (
        do("rename", "lower", "x"),
        do("rename", "merged", "x"),
        do("rename", "upper", "pure"),
        do("rename", "opaque", "hiding"),
        do("rename", "file", "moved"),
        do("rename", "link", "lower/link"),
        do("rename", "lower", "hiding", RENAME_EXCHANGE),
        do("rename", "pure", "empty"),
        do("rename", "empty", "lower/inside"),
        do("tree", "."),
    ),
    lower=(
        {
            "lower/a": file(b"1"),
            "merged/b": file(b"2"),
            "file": file(b"3"),
            "link": symlink("file"),
            "empty": directory(),
            "opaque/x": file(b"5"),
        },
    ),
    upper={
        "merged/c": file(b"6"),
        "upper/d": file(b"7"),
        "opaque": opaque(),
    },
)

SCENARIOS: tuple[Scenario, ...] = tuple(
    replace(scenario, name=f"{mode}-{scenario.name}", options=f"redirect_dir={mode}")
    for mode in _MODES
    for scenario in (
        _RENAMES,
        *(each for each in renaming.SCENARIOS if each.name.startswith("rename-dir-")),
        *(each for each in renaming.SCENARIOS if each.name.startswith("rename-merged-dir-onto-no")),
        *(
            each
            for each in reading.SCENARIOS
            if "-redirect-" in each.name and "absolute" not in each.name
            # of this one, the kernel says EPERM at first and ENOENT afterwards
            if mode != "nofollow" or "in-middle" not in each.name
        ),
    )
)
