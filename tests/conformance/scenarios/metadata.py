"""Copies of metadata alone, with metacopy=on: made, given their data, moved, linked and read."""

import os
from dataclasses import replace

from tests.conformance.doors import RENAME_EXCHANGE
from tests.conformance.play import Scenario, Step, do
from tests.conformance.scenarios import attributes, indexing, linking, opening, renaming, writing
from tests.tree import (
    MARKS,
    Node,
    Tree,
    directory,
    file,
    hard_link,
    opaque,
    redirect,
    sparse,
    whiteout,
)

_LOWER: Tree = {
    "a": file(b"data of a", 0o644, 1, 2, {"user.x": b"y"}),
    "b": file(b"data of b"),
    "empty": file(),
    "large": sparse(1 << 20, (0, b"start"), (700_000, b"end")),
    "linked": file(b"data of linked"),
    "linked2": hard_link("linked"),
    "d/c": file(b"data of c"),
}


def _copy(size: int, xattrs: dict[str, bytes] | None = None, mode: int = 0o600) -> Node:
    """A copy of metadata alone."""
    marks = {MARKS + "metacopy": b"", **(xattrs or {})}
    return replace(sparse(size), mode=0o100000 | mode, xattrs=marks)


def _look(*paths: str) -> tuple[Step, ...]:
    return tuple(do(what, path) for path in paths for what in ("lstat", "read", "listxattr"))


_STORIES: dict[str, tuple[Step, ...]] = {
    "attributes": (
        do("chmod", "a", 0o4755),
        do("chown", "b", 5, 6),
        do("utime", "large", (10**18, 10**18)),
        do("setxattr", "d/c", "user.new", b"1"),
        do("removexattr", "a", "user.x"),
        do("chmod", "empty", 0o600),
        *_look("a", "b", "large", "d/c", "empty"),
        do("numbers_agree", "."),
    ),
    "opened": (do("chmod", "a", 0o600), do("touch", "a", os.O_RDWR), *_look("a")),
    "then-written": (
        do("chmod", "a", 0o600),
        do("write", "a", b"D", 0),
        *_look("a"),
        do("chmod", "b", 0o600),
        do("write", "b", b"more", os.O_APPEND),
        *_look("b"),
        do("chmod", "large", 0o600),
        do("write", "large", b"new", os.O_TRUNC),
        *_look("large"),
        do("chmod", "d/c", 0o600),
        do("truncate", "d/c", 4),
        *_look("d/c"),
    ),
    "renamed": (
        do("rename", "a", "a2"),
        do("rename", "b", "d/b2"),
        do("rename", "d", "e"),
        do("rename", "e/c", "c"),
        *_look("a2", "e/b2", "c"),
        do("rename", "a2", "a3"),
        do("rename", "a3", "e/a4"),
        do("rename", "e/a4", "e/a5"),
        *_look("e/a5"),
        do("write", "e/a5", b"D", 0),
        do("rename", "e/a5", "a"),
        *_look("a"),
        do("scandir", "."),
    ),
    "exchanged": (
        do("rename", "a", "b", RENAME_EXCHANGE),
        do("rename", "a", "d/c", RENAME_EXCHANGE),
        *_look("a", "b", "d/c"),
        do("write", "a", b"X", 0),
        *_look("a", "b", "d/c"),
    ),
    "replaced": (
        do("rename", "a", "b"),
        *_look("b"),
        do("unlink", "b"),
        do("write", "b", b"new"),
        *_look("b"),
    ),
    "linked": (
        do("link", "a", "a2"),
        do("link", "a2", "d/a3"),
        *_look("a", "a2", "d/a3"),
        do("unlink", "a"),
        do("rename", "a2", "z"),
        *_look("z", "d/a3"),
        do("write", "z", b"D", 0),
        *_look("z", "d/a3"),
    ),
    "lower-links": (
        do("chmod", "linked", 0o600),
        do("rename", "linked", "renamed"),
        *_look("renamed", "linked2"),
        do("link", "renamed", "d/another"),
        do("write", "d/another", b"D", 0),
        *_look("renamed", "linked2", "d/another"),
    ),
    "held-open": (
        do("open", "r", "a", os.O_RDONLY),
        do("chmod", "a", 0o600),
        do("fstat", "r"),
        do("fread", "r", 20),
        do("open", "w", "a", os.O_RDWR),
        do("fwrite", "w", b"X", 0),
        do("fread", "r", 20),
        do("fread", "w", 20),
    ),
    "held-open-and-unlinked": (
        do("chmod", "a", 0o600),
        do("utime", "a", (10**18, 10**18)),
        do("open", "r", "a", os.O_RDONLY),
        do("unlink", "a"),
        do("fread", "r", 20),
    ),
    "unlinked": (
        do("chmod", "a", 0o600),
        do("unlink", "a"),
        do("lstat", "a"),
        do("unlink", "d/c"),
        do("rmdir", "d"),
    ),
}

_MARKED_STORIES: tuple[tuple[str, tuple[Tree, ...], tuple[Step, ...]], ...] = (
    (
        "below",
        ({"f": _copy(4)}, {"f": file(b"data")}),
        (*_look("f"), do("chmod", "f", 0o640), *_look("f"), do("write", "f", b"D", 0), *_look("f")),
    ),
    (
        "below-twice",
        ({"f": _copy(4)}, {"f": _copy(4, mode=0o640)}, {"f": file(b"data")}),
        (*_look("f"), do("rename", "f", "g"), *_look("g"), do("write", "g", b"D", 0), *_look("g")),
    ),
    (
        "redirected-below",
        (
            {"f": _copy(4, {MARKS + "redirect": b"g"}), "g": whiteout()},
            {"g": file(b"data"), "f": file(b"not this")},
        ),
        (*_look("f"), do("write", "f", b"D", 0), *_look("f")),
    ),
    (
        "without-data",
        ({"f": _copy(4), "hidden": _copy(4)}, {"hidden": whiteout()}, {"hidden": file(b"data")}),
        (do("lstat", "f"), do("read", "f"), do("lstat", "hidden")),
    ),
    (
        "over-a-directory",
        ({"f": _copy(4)}, {"f": directory()}),
        (do("lstat", "f"), do("read", "f")),
    ),
    (
        "damaged",
        (
            {
                "short": replace(_copy(4), xattrs={MARKS + "metacopy": b"\0\2"}),
                "long": replace(_copy(4), xattrs={MARKS + "metacopy": b"\0\5\0\0"}),
                "newer": replace(_copy(4), xattrs={MARKS + "metacopy": b"\1\4\0\0"}),
                "header": replace(_copy(4), xattrs={MARKS + "metacopy": b"\0\4\0\0"}),
                "digest": replace(_copy(4), xattrs={MARKS + "metacopy": b"\0\x24\0\1" + bytes(32)}),
            },
            {name: file(b"data") for name in ("short", "long", "newer", "header", "digest")},
        ),
        (*_look("short", "long", "newer", "header", "digest"), do("chmod", "digest", 0o640)),
    ),
    (
        "in-a-renamed-directory",
        (
            {"new": redirect("old"), "new/f": _copy(4)},
            {"old/f": file(b"data")},
        ),
        (*_look("new/f"), do("rename", "new/f", "f"), *_look("f")),
    ),
    (
        "in-an-opaque-directory",
        ({"d": opaque(), "d/f": _copy(4)}, {"d/f": file(b"data")}),
        (do("lstat", "d/f"), do("read", "d/f")),
    ),
)

_TO_DATA = {MARKS + "redirect": b"/store/f"}
_DATA_ALONE: tuple[tuple[Tree, ...], ...] = (
    ({"f": _copy(4, _TO_DATA)}, {}, {"f": file(b"none"), "hidden/g": file(b"no")}),
    ({}, {"f": _copy(4, _TO_DATA), "d": directory()}, {"d/x": file(b"no")}),
    ({"f": _copy(4)}, {"f": _copy(4, _TO_DATA)}, {}),
    ({"f": _copy(4, {MARKS + "redirect": b"g"})}, {"g": _copy(4, _TO_DATA)}, {}),
    ({"f": _copy(4)}, {}, {"f": file(b"data")}),
)
_DATA_STEPS = (
    *_look("f"),
    do("scandir", "."),
    do("chmod", "f", 0o640),
    *_look("f"),
    do("rename", "f", "h"),
    *_look("h"),
    do("write", "h", b"D", 0),
    *_look("h"),
)

_OFF: tuple[Step, ...] = (do("lstat", "f"), do("read", "f"), do("chmod", "f", 0o644))

SCENARIOS: tuple[Scenario, ...] = (
    *(
        replace(scenario, name=f"metacopy-{scenario.name}", options="metacopy=on")
        for module in (attributes, linking, opening, renaming, writing)
        for scenario in module.SCENARIOS
        if module in (linking, writing)
        or ("lower" in scenario.name and "-dir" not in scenario.name)
    ),
    *(
        replace(
            scenario, name=f"metacopy-{scenario.name}", options=f"{scenario.options},metacopy=on"
        )
        for scenario in indexing.SCENARIOS
    ),
    *(
        Scenario(f"metacopy-{name}{more}", steps, lower=(_LOWER,), options=f"metacopy=on{more}")
        for name, steps in _STORIES.items()
        for more in ("", ",index=on")
    ),
    *(
        Scenario(f"metacopy-{name}", steps, lower=lower, options="metacopy=on")
        for name, lower, steps in _MARKED_STORIES
    ),
    *(
        Scenario(
            f"metacopy-data-{number}{kind}{options}",
            _DATA_STEPS,
            lower=(*lower[:2], {**lower[2], **more}),
            options=options,
            data=True,
            alone=True,
        )
        for number, lower in enumerate(_DATA_ALONE)
        for options in ("", "metacopy=on")
        for kind, more in (
            ("-there-", {"store/f": file(b"data")}),
            ("-missing-", {"store": directory()}),
            ("-directory-", {"store/f": directory()}),
        )
        if kind == "-there-" or number == 0
    ),
    Scenario("metacopy-off", _OFF, lower=({"f": _copy(4)}, {"f": file(b"data")})),
    Scenario("metacopy-off-without-data", _OFF, lower=({"f": _copy(4)},)),
)
