"""Names: long, strange, not UTF-8, and paths that try to leave the union."""

import os

from tests.conformance.play import Scenario, do
from tests.tree import file, symlink

_LATIN = os.fsdecode(b"caf\xe9")
_ODD = (
    "with space",
    "new\nline",
    "tab\t",
    "quote\"'",
    "back\\slash",
    "colon:comma,",
    "*?[",
    "-rf",
    "~",
    "\u65e5\u672c",
    _LATIN,
    "...",
    "..name",
    ".hidden",
    "%s",
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "names-odd-in-lower",
        (do("scandir", "d"), *(do("write", f"d/{name}", b"new") for name in _ODD)),
        lower=({f"d/{name}": file(b"odd") for name in _ODD},),
    ),
    Scenario(
        "names-odd-made",
        (
            *(do("mkdir", name) for name in _ODD),
            *(do("symlink", name, f"{name}/link") for name in _ODD),
            *(do("rmdir", name) for name in _ODD[:3]),
        ),
    ),
    Scenario(
        "names-odd-renamed",
        tuple(do("rename", f"d/{name}", f"e/{name}") for name in _ODD),
        lower=({"e/x": file(), **{f"d/{name}/in": file() for name in _ODD}},),
    ),
    Scenario(
        "names-longest",
        (
            do("write", "n" * 255, b"1"),
            do("read", "n" * 255),
            do("mkdir", "m" * 255),
            do("unlink", "l" * 255),
            do("rename", "k" * 255, "j" * 255),
            do("chmod", "i" * 255, 0o600),
            do("scandir", "."),
        ),
        lower=({name * 255: file() for name in "lki"},),
    ),
    Scenario(
        "names-too-long",
        (
            do("write", "n" * 256, b"1"),
            do("mkdir", "n" * 256),
            do("lstat", "n" * 256),
            do("unlink", "n" * 256),
            do("rename", "f", "n" * 256),
            do("rename", "n" * 256, "f"),
            do("link", "f", "n" * 256),
            do("symlink", "f", "n" * 256),
            do("symlink", "t" * 4095, "long-target"),
            do("symlink", "t" * 4096, "too-long-target"),
            do("rmdir", "n" * 300),
            do("lstat", "d/" * 3000 + "x"),
            do("scandir", "n" * 256),
        ),
        lower=({"f": file(), "d": symlink(".")},),
    ),
    Scenario(
        "names-like-marks",
        (
            do("scandir", "."),
            do("write", "wh.name", b""),
            do("mkdir", "work"),
            do("mkdir", "#1"),
            do("scandir", "."),
        ),
        lower=({"#0": file(), "index": file()},),
    ),
    Scenario(
        "names-escape-by-dots",
        (
            do("scandir", ".."),
            do("lstat", "../../../.."),
            do("read", "../../../../a"),
            do("read", "up/a"),
            do("write", "../../../b", b"inside"),
            do("mkdir", "up/made"),
            do("scandir", "d/../../.."),
        ),
        lower=({"a": file(b"inside"), "d/x": file(), "up": symlink("../../../../..")},),
        alone=True,
        confined=True,
    ),
    Scenario(
        "names-escape-by-symlinks",
        (
            do("read", "abs"),
            do("read", "d/abs"),
            do("scandir", "d/root"),
            do("read", "d/root/d/../a"),
            do("write", "d/fresh", b"inside"),
            do("write", "d/root/new", b"inside"),
            do("lstat", "proc"),
            do("stat", "proc"),
            do("read", "host"),
            do("unlink", "d/root/a"),
            do("rename", "d/root/d/x", "d/root/y"),
            do("tree", "."),
        ),
        lower=(
            {
                "a": file(b"inside"),
                "abs": symlink("/a"),
                "d/abs": symlink("/a"),
                "d/root": symlink("/"),
                "d/fresh": symlink("/fresh"),
                "d/x": file(),
                "proc": symlink("/proc/self/root"),
                "host": symlink("/etc/hostname"),
            },
        ),
        alone=True,
        confined=True,
    ),
)
