"""Hard links of lower files with index=on: they stay one file, whichever name is used."""

import os
import stat
from dataclasses import replace

from tests.conformance.doors import RENAME_EXCHANGE
from tests.conformance.play import Scenario, Step, do
from tests.conformance.scenarios import linking
from tests.tree import Tree, device, directory, fifo, file, hard_link, opaque, symlink

_LINKED: Tree = {
    "a": file(b"1", 0o640, 1, 2, {"user.x": b"y"}),
    "b": hard_link("a"),
    "d/c": hard_link("a"),
    "other": file(b"o"),
}


def _look(*paths: str) -> tuple[Step, ...]:
    """All that tells of a file's names."""
    first = paths[0]
    return (
        *(do("lstat", path) for path in paths),
        *(do("read", path) for path in paths),
        *(do("same", first, path) for path in paths[1:]),
        *(do("number_kept", path, "linked") for path in paths),
        do("numbers_agree", "."),
    )


_STORIES: dict[str, tuple[Step, ...]] = {
    "looked-at": _look("a", "b", "d/c"),
    "written": (
        do("write", "b", b"new"),
        *_look("a", "b", "d/c"),
        do("write", "d/c", b"more", os.O_APPEND),
        *_look("a", "b", "d/c"),
    ),
    "attributes": (
        do("chmod", "a", 0o4711),
        do("chown", "b", 3, 4),
        do("utime", "d/c", (10**18, 10**18)),
        do("setxattr", "a", "user.z", b"1"),
        do("removexattr", "b", "user.x"),
        do("removexattr", "b", "user.none"),
        do("getxattr", "d/c", "user.z"),
        do("truncate", "b", 9),
        *_look("a", "b", "d/c"),
    ),
    "attribute-by-another-name": (
        do("setxattr", "a", "user.z", b"1"),
        do("setxattr", "b", "user.z", b"2"),
        do("removexattr", "d/c", "user.z"),
        *_look("a", "b", "d/c"),
    ),
    "truncated-by-open": (
        do("touch", "b", os.O_WRONLY | os.O_TRUNC),
        *_look("a", "b", "d/c"),
    ),
    "one-unlinked": (do("unlink", "b"), do("lstat", "b"), *_look("a", "d/c")),
    "all-unlinked": (
        do("unlink", "b"),
        do("unlink", "d/c"),
        *_look("a"),
        do("unlink", "a"),
        do("rmdir", "d"),
        do("scandir", "."),
    ),
    "all-but-a-new-name-unlinked": (
        do("link", "b", "e"),
        *_look("a", "b", "d/c", "e"),
        do("unlink", "a"),
        do("unlink", "b"),
        do("unlink", "d/c"),
        *_look("e"),
        do("write", "e", b"last"),
        do("link", "e", "a"),
        *_look("e", "a"),
        do("unlink", "e"),
        do("unlink", "a"),
    ),
    "link-where-one-was": (
        do("unlink", "b"),
        do("link", "a", "b"),
        *_look("a", "b", "d/c"),
    ),
    "file-where-one-was": (
        do("unlink", "b"),
        do("write", "b", b"another"),
        do("same", "a", "b"),
        do("lstat", "b"),
        *_look("a", "d/c"),
        do("unlink", "b"),
    ),
    "renamed": (
        do("rename", "a", "z"),
        *_look("z", "b", "d/c"),
        do("rename", "b", "d/y"),
        *_look("z", "d/y", "d/c"),
        do("rename", "d/c", "a"),
        *_look("z", "d/y", "a"),
        do("scandir", "."),
    ),
    "renamed-onto-another-name": (
        do("rename", "a", "b"),
        *_look("a", "b", "d/c"),
        do("write", "a", b"2"),
        do("rename", "b", "a"),
        *_look("a", "b", "d/c"),
    ),
    "renamed-over-another-file": (
        do("rename", "b", "other"),
        do("lstat", "b"),
        *_look("a", "other", "d/c"),
    ),
    "replaced-by-rename": (
        do("rename", "other", "b"),
        do("lstat", "other"),
        do("read", "b"),
        *_look("a", "d/c"),
        do("write", "new", b"n"),
        do("rename", "new", "a"),
        *_look("d/c"),
        do("write", "new", b"n"),
        do("rename", "new", "d/c"),
        do("scandir", "d"),
    ),
    "exchanged": (
        do("rename", "a", "other", RENAME_EXCHANGE),
        do("read", "a"),
        *_look("other", "b", "d/c"),
        do("rename", "b", "d/c", RENAME_EXCHANGE),
        *_look("other", "b", "d/c"),
        do("rename", "d", "b", RENAME_EXCHANGE),
        *_look("other", "d", "b/c"),
    ),
    "directory-renamed": (
        do("rename", "d", "e"),
        *_look("a", "b", "e/c"),
        do("write", "e/c", b"new"),
        *_look("a", "b", "e/c"),
    ),
    "held-open": (
        do("open", "w", "a", os.O_RDWR),
        do("unlink", "a"),
        do("fstat", "w"),
        do("fwrite", "w", b"2", 1),
        *_look("b", "d/c"),
        do("unlink", "b"),
        do("unlink", "d/c"),
        do("fstat", "w"),
        do("fread", "w", 9),
    ),
    "held-open-for-reading": (
        do("open", "r", "a", os.O_RDONLY),
        do("write", "b", b"new"),
        do("fread", "r", 9),
        do("fstat", "r"),
    ),
}

SCENARIOS: tuple[Scenario, ...] = (
    *(
        replace(scenario, name=f"index-{scenario.name}", options="index=on")
        for scenario in linking.SCENARIOS
    ),
    *(
        Scenario(f"index-{name}", steps, lower=(_LINKED,), options="index=on")
        for name, steps in _STORIES.items()
    ),
    *(
        Scenario(f"index-alone-{name}", steps, lower=(_LINKED,), options="index=on", alone=True)
        for name, steps in _STORIES.items()
        if name in ("written", "all-unlinked", "link-where-one-was", "renamed")
    ),
    Scenario(
        "index-other-kinds",
        (
            do("chown", "s", 1, 1, follow_symlinks=False),
            do("same", "s", "s2"),
            do("lstat", "s2"),
            do("chmod", "p2", 0o600),
            do("same", "p", "p2"),
            do("lstat", "p"),
            do("unlink", "n"),
            do("lstat", "n2"),
            do("rename", "n2", "n"),
            do("lstat", "n"),
        ),
        lower=(
            {
                "s": symlink("x"),
                "s2": hard_link("s"),
                "p": fifo(),
                "p2": hard_link("p"),
                "n": device(stat.S_IFCHR, 1, 3),
                "n2": hard_link("n"),
            },
        ),
        options="index=on",
    ),
    Scenario(
        "index-names-hidden-above",
        (*_look("b"), do("write", "b", b"new"), *_look("b"), do("unlink", "b"), do("read", "a")),
        lower=({"a": file(b"above"), "d": opaque()}, _LINKED),
        options="index=on",
    ),
    Scenario(
        "index-in-upper-directories",
        (
            do("mkdir", "new"),
            do("rename", "a", "new/a"),
            do("link", "b", "new/b"),
            *_look("new/a", "new/b", "b", "d/c"),
            do("numbers_agree", "new"),
            do("rename", "new", "newer"),
            *_look("newer/a", "newer/b", "b", "d/c"),
        ),
        lower=(_LINKED,),
        upper={"there": directory()},
        options="index=on",
    ),
    Scenario(
        "index-read-only",
        (*_look("a", "b", "d/c"), do("unlink", "a"), do("chmod", "b", 0o600)),
        lower=(_LINKED,),
        writable=False,
        alone=True,
        options="index=on",
    ),
)
