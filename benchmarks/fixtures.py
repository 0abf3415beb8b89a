"""What is benchmarked on: trees of files, each in one directory and spread over layers.

FIXTURES is the one list of them. A fixture is made once in a run, as a plain directory (`merged`),
and copied from there into any number of layers: half of the files lie in the lowest one, as in an
image on a base image; a directory's files mostly stay together; and one file in twenty hides an
older version below it. There are no whiteouts, because not every peer knows overlayfs' ones, and
all of them must see the same tree. Everything is the same in every run, but for the standard
library of Python, which is this machine's.

Cost: a full-size tree takes some seconds, and its size on disk once more for each number of layers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.scale import MIB, Scale

# Of one tree: files in a directory, directories in a package.
_DIRECTORY: Final = 20
_PACKAGE: Final = 20
_LARGEST: Final = MIB

GIT: Final = ("git", "-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "core.fsmonitor=false")
"""git as it behaves whoever runs it; with the environment GIT_ENVIRONMENT."""

GIT_ENVIRONMENT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_AUTHOR_DATE": "2001-09-09T01:46:40Z",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
    "GIT_COMMITTER_DATE": "2001-09-09T01:46:40Z",
}


def tree_paths(scale: Scale) -> list[str]:
    """The files of the tree; a quarter of its directories lie in usr/share, the rest in usr/lib."""
    paths = []
    for number in range(scale.files):
        directory = number // _DIRECTORY
        top = "lib" if directory % 4 else "share"
        paths.append(f"usr/{top}/p{directory // _PACKAGE}/d{directory}/f{number}")
    return paths


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _fill(folder: Path, paths: list[str], total: int) -> None:
    """Make the files, of sizes as a system has them: many small, few large, total bytes in all."""
    choose = Random(0)
    noise = choose.randbytes(2 * _LARGEST)
    shares = [choose.lognormvariate(0, 1.5) for _ in paths]
    unit = total / sum(shares)
    for path, share in zip(paths, shares, strict=True):
        size = min(int(share * unit), _LARGEST)
        start = choose.randrange(_LARGEST)
        _write(folder / path, noise[start : start + size])


def _one_file(folder: Path, size: int) -> None:
    noise = Random(0).randbytes(MIB)
    with open(folder / "file", "wb") as stream:
        for _ in range(size // MIB):
            stream.write(noise)


def _empty(folder: Path, scale: Scale) -> None:
    (folder / "etc").mkdir()


def _tree(folder: Path, scale: Scale) -> None:
    paths = tree_paths(scale)
    _fill(folder, paths, scale.data)


def _directory(folder: Path, scale: Scale) -> None:
    """One directory; its files lie in all of the layers, as each is spread for itself."""
    for number in range(scale.entries):
        _write(folder / "directory" / f"entry-{number}", b"")


def _large(folder: Path, scale: Scale) -> None:
    _one_file(folder, scale.large)


def _sequential(folder: Path, scale: Scale) -> None:
    _one_file(folder, scale.sequential)


def _archive(folder: Path, scale: Scale) -> None:
    content = folder / "content"
    names = [f"d{number // 100}/f{number}" for number in range(scale.archived)]
    _fill(content, names, scale.archived * 4096)
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(content, "content")
    shutil.rmtree(content)


def _python(folder: Path, scale: Scale) -> None:
    """The standard library with its bytecode."""
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        folder / "lib",
        ignore_dangling_symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*"),
    )


def _repository(folder: Path, scale: Scale) -> None:
    """A commit on the branch main, and one on the branch other that changes a tenth of it."""

    def git(*words: str) -> None:
        environment = os.environ | GIT_ENVIRONMENT
        command = [*GIT, "-C", str(folder), *words]
        subprocess.run(command, check=True, env=environment, capture_output=True)

    names = [f"src/d{number // 50}/f{number}" for number in range(scale.repository)]
    git("init", "--quiet", "--initial-branch=main")
    _fill(folder, names, scale.repository * 2048)
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    git("checkout", "--quiet", "-b", "other")
    for name in names[::10]:
        _write(folder / name, name.encode())
    git("commit", "--quiet", "--all", "--message=other")
    git("checkout", "--quiet", "main")


def _project(folder: Path, scale: Scale) -> None:
    """C files that include each other's headers, and system headers worth compiling."""
    names = [f"unit{number}" for number in range(scale.sources)]
    for number, name in enumerate(names):
        others = names[: number + 1][-5:]
        includes = "".join(f'#include "{other}.h"\n' for other in others)
        body = "".join(
            f'int {name}_{k}(int x) {{ char b[64]; snprintf(b, sizeof b, "%d", x * {k}); '
            "return (int)strlen(b); }\n"
            for k in range(40)
        )
        head = "#include <stdio.h>\n#include <string.h>\n#include <stdlib.h>\n"
        _write(folder / f"{name}.c", f"{head}{includes}{body}".encode())
        declared = "".join(f"int {name}_{k}(int x);\n" for k in range(40))
        _write(folder / f"{name}.h", f"#pragma once\n{declared}".encode())
    _write(folder / "main.c", b'#include "unit0.h"\nint main(void) { return unit0_1(1) != 1; }\n')
    objects = " ".join(f"{name}.o" for name in ("main", *names))
    rule = f"program: {objects}\n\t$(CC) -o $@ $^\n%.o: %.c $(wildcard *.h)\n\t$(CC) -c -o $@ $<\n"
    _write(folder / "Makefile", rule.encode())


FIXTURES: Final[dict[str, Callable[[Path, Scale], None]]] = {
    "empty": _empty,
    "tree": _tree,
    "directory": _directory,
    "large": _large,
    "sequential": _sequential,
    "archive": _archive,
    "python": _python,
    "repository": _repository,
    "project": _project,
}
"""What makes each fixture in an empty directory."""


def make(name: str, scale: Scale, merged: Path) -> None:
    """Make a fixture in the new directory merged."""
    merged.mkdir(parents=True)
    FIXTURES[name](merged, scale)


def spread(merged: Path, layers: list[Path]) -> None:
    """Copy a fixture into new directories, top layer first, whose union it is."""
    choose = Random(len(layers))
    *others, lowest = layers

    def any_layer() -> Path:
        return choose.choice(others) if others and choose.random() < 0.5 else lowest

    for layer in layers:
        layer.mkdir(parents=True)
    for top, folders, files in os.walk(merged):
        folders.sort()
        inside = os.path.relpath(top, merged)
        home = any_layer()
        (home / inside).mkdir(parents=True, exist_ok=True)
        together = len(files) < 10 * _DIRECTORY
        for name in sorted(files):
            layer = home if together and choose.random() < 0.8 else any_layer()
            (layer / inside).mkdir(parents=True, exist_ok=True)
            shutil.copy2(f"{top}/{name}", layer / inside / name, follow_symlinks=False)
            if layer is not lowest and choose.random() < 0.05:
                _write(lowest / inside / name, b"older\n")
