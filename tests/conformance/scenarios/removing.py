"""Removing: what a whiteout must cover, and what counts as empty."""

from tests.conformance.play import Scenario, do
from tests.tree import Tree, directory, file, hard_link, opaque, redirect, symlink, whiteout

# What x is: layers below, and the upper.
_TARGETS: dict[str, tuple[tuple[Tree, ...], Tree | None]] = {
    "nothing": (({"d": directory()},), None),
    "lower-file": (({"d/x": file()},), None),
    "upper-file": (({},), {"d/x": file()}),
    "upper-file-in-merged": (({"d": directory()},), {"d/x": file()}),
    "covering-file": (({"d/x": file()},), {"d/x": file()}),
    "lower-symlink": (({"d/x": symlink("y")},), None),
    "lower-symlink-to-dir": (({"d/x": symlink("y"), "d/y": directory()},), None),
    "file-over-dir": (({"d/x/in": file()},), {"d/x": file()}),
    "file-in-opaque": (({"d/x": file()},), {"d": opaque(), "d/x": file()}),
    "lower-empty-dir": (({"d/x": directory()},), None),
    "upper-empty-dir": (({},), {"d/x": directory()}),
    "merged-empty-dir": (({"d/x": directory()},), {"d/x": directory()}),
    "merged-full-dir": (({"d/x/a": file()},), {"d/x/b": file()}),
    "lower-full-dir": (({"d/x/a": file()},), None),
    "upper-full-dir": (({},), {"d/x/a": file()}),
    "emptied-dir": (({"d/x/a": file()},), {"d/x/a": whiteout()}),
    "half-emptied-dir": (({"d/x/a": file(), "d/x/b": file()},), {"d/x/a": whiteout()}),
    "emptied-in-lower": (({"d/x/a": whiteout()}, {"d/x/a": file()}), None),
    "opaque-empty-dir": (({"d/x/a": file()},), {"d/x": opaque()}),
    "opaque-dir-of-whiteouts": (({"d/x/a": file()},), {"d/x": opaque(), "d/x/a": whiteout()}),
    "redirected-dir": (({"d/o": directory()},), {"d/x": redirect("o"), "d/o": whiteout()}),
    "full-redirected-dir": (({"d/o/a": file()},), {"d/x": redirect("o"), "d/o": whiteout()}),
    "whiteout": (({"d/x": file()},), {"d/x": whiteout()}),
    "lower-whiteout": (({"d/x": whiteout()}, {"d/x": file()}), None),
    "two-lower-files": (({"d/x": file(b"1")}, {"d/x": file(b"2")}), None),
    "hard-link": (({"d/x": file(b"1"), "d/z": hard_link("d/x")},), None),
}

_MATRIX = tuple(
    Scenario(
        f"{operation}-{name}",
        (do(operation, "d/x"), do("lstat", "d/x"), do("scandir", "d"), do("lstat", "d")),
        lower=lower,
        upper=upper,
    )
    for operation in ("unlink", "rmdir")
    for name, (lower, upper) in _TARGETS.items()
)

SCENARIOS: tuple[Scenario, ...] = (
    *_MATRIX,
    Scenario(
        "remove-a-tree",
        (
            do("unlink", "t/a"),
            do("unlink", "t/sub/b"),
            do("rmdir", "t/sub"),
            do("rmdir", "t"),
            do("scandir", "."),
            do("lstat", "."),
        ),
        lower=({"t/a": file(), "t/sub/b": file()},),
    ),
    Scenario(
        "remove-strange-paths",
        (
            do("rmdir", "."),
            do("rmdir", "d/."),
            do("rmdir", "d/.."),
            do("unlink", "."),
            do("unlink", "f/"),
            do("rmdir", "f/"),
            do("unlink", "d/"),
            do("unlink", "f/x"),
            do("rmdir", "absent/x"),
            do("rmdir", "link"),
            do("rmdir", "link/"),
            do("rmdir", "d/"),
        ),
        lower=({"d": directory(), "f": file(), "link": symlink("d")},),
    ),
    Scenario(
        "remove-at-the-roots",
        (do("unlink", "a"), do("rmdir", "b"), do("unlink", "b/c"), do("rmdir", "b")),
        lower=({"a": file()}, {"b/c": file()}),
        alone=True,
    ),
)
