"""Hard links: copied up once, linked in upper."""

import stat

from tests.conformance.play import Scenario, do
from tests.tree import device, directory, fifo, file, hard_link, symlink, whiteout

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "link-lower-file",
        (
            do("link", "a", "b"),
            do("same", "a", "b"),
            do("lstat", "a"),
            do("write", "b", b"new"),
            do("read", "a"),
        ),
        lower=({"a": file(b"old", 0o640, 1, 2, {"user.x": b"y"})},),
    ),
    Scenario(
        "link-across-directories",
        (
            do("link", "d/a", "e/b"),
            do("same", "d/a", "e/b"),
            do("unlink", "d/a"),
            do("lstat", "e/b"),
        ),
        lower=({"d/a": file(b"old"), "e": directory()},),
    ),
    Scenario(
        "link-over-whiteout",
        (do("link", "a", "w"), do("unlink", "w"), do("lstat", "w"), do("lstat", "a")),
        lower=({"a": file(b"1"), "w": file(b"2")},),
        upper={"w": whiteout()},
    ),
    Scenario(
        "link-kinds",
        (
            do("link", "s", "s2"),
            do("link", "p", "p2"),
            do("link", "n", "n2"),
            do("link", "d", "d2"),
            do("readlink", "s2"),
            do("link", "broken", "broken2"),
        ),
        lower=(
            {
                "s": symlink("x"),
                "p": fifo(),
                "n": device(stat.S_IFCHR, 1, 3),
                "d": directory(),
                "broken": symlink("nowhere"),
            },
        ),
    ),
    Scenario(
        "link-errors",
        (
            do("link", "absent", "b"),
            do("link", "a", "c"),
            do("link", "a", "absent/b"),
            do("link", "a", "a"),
            do("link", "a", "c/x"),
            do("link", "a/x", "b"),
            do("link", "a", "b/"),
        ),
        lower=({"a": file(), "c": file()},),
    ),
    Scenario(
        "link-of-linked-lower-files",
        (
            do("lstat", "a"),
            do("chmod", "a", 0o600),
            do("lstat", "a"),
            do("lstat", "b"),
            do("same", "a", "b"),
            do("link", "b", "c"),
            do("same", "b", "c"),
            do("same", "a", "c"),
        ),
        lower=({"a": file(b"1"), "b": hard_link("a")},),
    ),
    Scenario(
        "link-upper-twice",
        (do("link", "a", "b"), do("link", "b", "c"), do("unlink", "a"), do("lstat", "c")),
        upper={"a": file(b"1")},
    ),
    Scenario(
        "link-numbers-are-stable",
        (
            do("number_kept", "a", "k"),
            do("link", "a", "b"),
            do("number_kept", "a", "k"),
            do("number_kept", "b", "k"),
            do("numbers_agree", "."),
        ),
        lower=({"a": file(b"1")},),
    ),
)
