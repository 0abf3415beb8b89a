"""Renaming: every kind of source on every kind of target, with every flag."""

from tests.conformance.doors import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.conformance.play import Scenario, do
from tests.tree import Tree, directory, file, hard_link, opaque, redirect, symlink, whiteout

_Parts = tuple[Tree, Tree]  # what the lower and the upper hold

_SOURCES: dict[str, _Parts] = {
    "lower-file": ({"a/s": file(b"source")}, {}),
    "upper-file": ({}, {"a/s": file(b"source")}),
    "covering-file": ({"a/s": file(b"below")}, {"a/s": file(b"source")}),
    "lower-symlink": ({"a/s": symlink("far")}, {}),
    "upper-symlink": ({}, {"a/s": symlink("far")}),
    "lower-dir": ({"a/s/f": file(b"in"), "a/s/sub/g": file()}, {}),
    "upper-dir": ({}, {"a/s/f": file(b"in")}),
    "merged-dir": ({"a/s/f": file(b"in")}, {"a/s/g": file(b"on")}),
    "opaque-dir": ({"a/s/f": file(b"in")}, {"a/s": opaque(), "a/s/g": file(b"on")}),
    "redirected-dir": ({"a/o/f": file(b"in")}, {"a/s": redirect("o"), "a/o": whiteout()}),
}

_TARGETS: dict[str, _Parts] = {
    "nothing": ({}, {}),
    "whiteout": ({"T": file(b"gone")}, {"T": whiteout()}),
    "whited-out-dir": ({"T/old": file(b"gone")}, {"T": whiteout()}),
    "lower-file": ({"T": file(b"target")}, {}),
    "upper-file": ({}, {"T": file(b"target")}),
    "lower-symlink": ({"T": symlink("away")}, {}),
    "lower-empty-dir": ({"T": directory()}, {}),
    "upper-empty-dir": ({}, {"T": directory()}),
    "full-dir": ({"T/full": file()}, {}),
    "merged-dir": ({"T/full": file()}, {"T/more": file()}),
    "emptied-dir": ({"T/old": file()}, {"T/old": whiteout()}),
}

_FLAGS = {"": 0, "-noreplace": RENAME_NOREPLACE, "-exchange": RENAME_EXCHANGE}
_WHERE = {"beside": "a/t", "across": "b/t"}


def _matrix() -> tuple[Scenario, ...]:
    scenarios = []
    for source, (source_lower, source_upper) in _SOURCES.items():
        for target, (target_lower, target_upper) in _TARGETS.items():
            for flag, flags in _FLAGS.items():
                for where, path in _WHERE.items():
                    lower = {"a": directory(), "b": directory(), **source_lower}
                    lower |= {name.replace("T", path): node for name, node in target_lower.items()}
                    upper = dict(source_upper)
                    upper |= {name.replace("T", path): node for name, node in target_upper.items()}
                    scenarios.append(
                        Scenario(
                            f"rename-{source}-onto-{target}-{where}{flag}",
                            (
                                do("number_kept", "a/s", "source"),
                                do("rename", "a/s", path, flags),
                                do("lstat", "a/s"),
                                do("number_kept", path, "source"),
                                do("scandir", path),
                            ),
                            lower=(lower,),
                            upper=upper or None,
                        )
                    )
    return tuple(scenarios)


SCENARIOS: tuple[Scenario, ...] = (
    *_matrix(),
    Scenario(
        "rename-into-itself",
        (
            do("rename", "d", "d/sub/x"),
            do("rename", "d/sub", "d"),
            do("rename", "d", "d"),
            do("rename", "d/sub", "d", RENAME_EXCHANGE),
            do("rename", "d", "d/sub", RENAME_EXCHANGE),
            do("rename", "f", "f"),
            do("rename", "f", "f", RENAME_NOREPLACE),
            do("rename", "f", "f", RENAME_EXCHANGE),
        ),
        lower=({"d/sub/leaf": file(), "f": file()},),
    ),
    Scenario(
        "rename-bad-arguments",
        (
            do("rename", "absent", "x"),
            do("rename", "f", "absent/x"),
            do("rename", "f", "f/x"),
            do("rename", "f/x", "x"),
            do("rename", "f", "d/."),
            do("rename", "d/..", "x"),
            do("rename", ".", "x"),
            do("rename", "f", "x/"),
            do("rename", "f", "d/"),
            do("rename", "f", "g", RENAME_NOREPLACE | RENAME_EXCHANGE),
            do("rename", "f", "g", 1 << 10),
            do("rename", "f", "g", 4 | RENAME_EXCHANGE),
            do("rename", "d/", "e/"),
        ),
        lower=({"d": directory(), "f": file()},),
    ),
    Scenario(
        "rename-hard-links",
        (do("rename", "a", "b"), do("rename", "a", "c"), do("same", "b", "c"), do("lstat", "b")),
        lower=({"a": file(b"1"), "b": hard_link("a")},),
    ),
    Scenario(
        "rename-upper-hard-links",
        (do("rename", "a", "b"), do("scandir", "."), do("same", "a", "b")),
        upper={"a": file(b"1"), "b": hard_link("a")},
    ),
    Scenario(
        "rename-dir-there-and-back",
        (
            do("rename", "d", "e"),
            do("write", "e/new", b"1"),
            do("rename", "e", "d"),
            do("tree", "d"),
        ),
        lower=({"d/f": file(b"in"), "d/sub/g": file(b"on")},),
    ),
    Scenario(
        "rename-dir-twice-across",
        (
            do("rename", "a/d", "b/d"),
            do("rename", "b/d", "c"),
            do("rename", "c/sub", "a/sub"),
            do("tree", "."),
            do("unlink", "a/sub/g"),
            do("mkdir", "b/d"),
            do("scandir", "b/d"),
        ),
        lower=({"a/d/f": file(b"in"), "a/d/sub/g": file(b"on")}, {"b/d/h": file()}),
    ),
    Scenario(
        "rename-below-renamed",
        (
            do("rename", "d", "e"),
            do("rename", "e/sub", "e/bus"),
            do("rename", "e/bus", "top"),
            do("chmod", "top/g", 0o600),
            do("tree", "."),
        ),
        lower=({"d/f": file(b"in"), "d/sub/g": file(b"on")},),
    ),
    Scenario(
        "rename-parent-then-create-old-name",
        (
            do("rename", "d", "e"),
            do("mkdir", "d"),
            do("write", "d/f", b"new"),
            do("read", "e/f"),
            do("scandir", "d"),
        ),
        lower=({"d/f": file(b"in"), "d/old": file()},),
    ),
    Scenario(
        "rename-exchange-dirs-of-layers",
        (do("rename", "a", "b", RENAME_EXCHANGE), do("tree", ".")),
        lower=({"a/x": file(b"a")}, {"b/y": file(b"b"), "a/z": file()}),
    ),
    Scenario(
        "rename-three-layers",
        (do("rename", "d", "n/d"), do("tree", ".")),
        lower=({"d/1": file(), "n": directory()}, {"d/2": file(), "d/1": file()}, {"d/3": file()}),
        upper={"d/0": file()},
    ),
    Scenario(
        "rename-long-redirect",
        (do("rename", "/".join(["long" * 30] * 4), "here"), do("tree", "here")),
        lower=({"/".join(["long" * 30] * 4) + "/leaf": file()},),
    ),
    Scenario(
        "rename-at-the-roots",
        (
            do("rename", "a", "z"),
            do("rename", "f", "z/f"),
            do("rename", "b", "a"),
            do("tree", "."),
            do("rename", "..", "x"),
        ),
        lower=({"a/1": file(), "f": file()}, {"b/2": file(), "a/3": file()}),
        alone=True,
    ),
)
