"""Opening: every flag on every kind of file, and files that outlive their names."""

import os

from tests.conformance.play import Scenario, do
from tests.tree import Tree, directory, fifo, file, opaque, symlink, whiteout

_LOWER: Tree = {
    "file": file(b"0123456789"),
    "dir/in": file(),
    "link": symlink("file"),
    "dirlink": symlink("dir"),
    "broken": symlink("made"),
    "gone": file(b"gone"),
}
_UPPER: Tree = {"gone": whiteout(), "upper": file(b"upper data")}

_FLAGS = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "readwrite": os.O_RDWR,
    "trunc": os.O_WRONLY | os.O_TRUNC,
    "read-trunc": os.O_RDONLY | os.O_TRUNC,
    "append": os.O_WRONLY | os.O_APPEND,
    "creat": os.O_WRONLY | os.O_CREAT,
    "read-creat": os.O_RDONLY | os.O_CREAT,
    "creat-trunc": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "excl": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
    "directory-write": os.O_RDWR | os.O_DIRECTORY,
    "nofollow": os.O_RDONLY | os.O_NOFOLLOW,
    "nofollow-write": os.O_WRONLY | os.O_NOFOLLOW,
    "creat-nofollow": os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW,
    "path": os.O_PATH,
    "path-nofollow": os.O_PATH | os.O_NOFOLLOW,
    "noatime": os.O_RDONLY | os.O_NOATIME,
    "sync": os.O_WRONLY | os.O_SYNC,
    "nonblock": os.O_RDONLY | os.O_NONBLOCK,
}

_PATHS = ("file", "upper", "dir", "link", "dirlink", "broken", "gone", "absent", "file/x", "file/")

_MATRIX = tuple(
    Scenario(
        f"open-{name}-{path.replace('/', '-below')}",
        (
            do("open", "h", path, flags),
            *((do("fstat", "h"),) if name not in ("path", "path-nofollow") else ()),
            do("lstat", path),
        ),
        lower=(_LOWER,),
        upper=_UPPER,
    )
    for name, flags in _FLAGS.items()
    for path in _PATHS
)

_OPEN = {
    "lower": ({"f": file(b"0123456789")}, None),
    "upper": ({}, {"f": file(b"0123456789")}),
}

_OUTLIVING = tuple(
    scenario
    for place, (lower, upper) in _OPEN.items()
    for scenario in (
        Scenario(
            f"open-unlinked-{place}",
            (
                do("open", "h", "f", os.O_RDWR),
                do("unlink", "f"),
                do("fread", "h", 4),
                do("fwrite", "h", b"new", 2),
                do("fread", "h", 20),
                do("fstat", "h"),
                do("ftruncate", "h", 3),
                do("fchmod", "h", 0o600),
                do("fchown", "h", 1, 2),
                do("fstat", "h"),
                do("write", "f", b"another"),
                do("fread", "h", 20),
                do("fclose", "h"),
                do("read", "f"),
            ),
            lower=(lower,),
            upper=upper,
        ),
        Scenario(
            f"open-unlinked-for-reading-{place}",
            (
                do("open", "h", "f", os.O_RDONLY),
                do("unlink", "f"),
                do("fread", "h", 20),
                do("fstat", "h"),
                do("mkdir", "f"),
                do("fread", "h", 20),
            ),
            lower=(lower,),
            upper=upper,
        ),
        Scenario(
            f"open-replaced-{place}",
            (
                do("open", "h", "f", os.O_RDWR),
                do("write", "other", b"other"),
                do("rename", "other", "f"),
                do("fwrite", "h", b"XX", 0),
                do("fread", "h", 20),
                do("read", "f"),
            ),
            lower=(lower,),
            upper=upper,
        ),
        Scenario(
            f"open-renamed-{place}",
            (
                do("open", "h", "f", os.O_RDWR),
                do("rename", "f", "g"),
                do("fwrite", "h", b"XX", 0),
                do("read", "g"),
                do("fstat", "h"),
            ),
            lower=(lower,),
            upper=upper,
        ),
        Scenario(
            f"open-parent-renamed-{place}",
            (
                do("mkdir", "d"),
                do("rename", "f", "d/f"),
                do("open", "h", "d/f", os.O_RDWR),
                do("rename", "d", "e"),
                do("fwrite", "h", b"XX", 0),
                do("read", "e/f"),
            ),
            lower=(lower,),
            upper=upper,
        ),
        Scenario(
            f"open-copied-up-meanwhile-{place}",
            (
                do("open", "r", "f", os.O_RDONLY),
                do("fread", "r", 4),
                do("open", "w", "f", os.O_WRONLY),
                do("fwrite", "w", b"NEW", 0),
                do("fread", "r", 20),
                do("fstat", "r"),
                do("chmod", "f", 0o600),
                do("fstat", "r"),
            ),
            lower=(lower,),
            upper=upper,
        ),
    )
)

SCENARIOS: tuple[Scenario, ...] = (
    *_MATRIX,
    *_OUTLIVING,
    Scenario(
        "open-tmpfile",
        (
            do("open", "h", "dir", os.O_TMPFILE | os.O_RDWR, 0o600),
            do("fwrite", "h", b"temporary"),
            do("fread", "h", 20),
            do("scandir", "dir"),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-append",
        (
            do("open", "h", "file", os.O_RDWR | os.O_APPEND),
            do("fwrite", "h", b"one"),
            do("truncate", "file", 2),
            do("fwrite", "h", b"two"),
            do("read", "file"),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-two-writers",
        (
            do("open", "a", "file", os.O_RDWR),
            do("open", "b", "file", os.O_RDWR),
            do("fwrite", "a", b"AA", 0),
            do("fwrite", "b", b"BB", 1),
            do("fread", "a", 20),
            do("fread", "b", 20),
            do("ftruncate", "a", 5),
            do("fstat", "b"),
            do("fsync", "a"),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-wrong-direction",
        (
            do("open", "r", "file", os.O_RDONLY),
            do("fwrite", "r", b"x"),
            do("ftruncate", "r", 1),
            do("open", "w", "file", os.O_WRONLY),
            do("fread", "w", 1),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-read-only-attributes",
        (
            do("open", "r", "file", os.O_RDONLY),
            do("fchmod", "r", 0o600),
            do("fstat", "r"),
            do("fchown", "r", 3, 4),
            do("fstat", "r"),
            do("lstat", "file"),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-directory-descriptors",
        (
            do("open", "d", "dir", os.O_RDONLY | os.O_DIRECTORY),
            do("fscandir", "d"),
            do("write", "dir/new", b""),
            do("unlink", "dir/in"),
            do("fsync", "d"),
            do("fchmod", "d", 0o700),
            do("lstat", "dir"),
        ),
        lower=(_LOWER,),
    ),
    Scenario(
        "open-removed-directory",
        (
            do("open", "d", "e", os.O_RDONLY | os.O_DIRECTORY),
            do("rmdir", "e"),
            do("fscandir", "d"),
            do("lstat", "e"),
        ),
        lower=({"e": directory()},),
    ),
    Scenario(
        "open-fifo",
        (
            do("open", "p", "pipe", os.O_RDWR | os.O_NONBLOCK),
            do("fwrite", "p", b"through"),
            do("fstat", "p"),
            do("touch", "other", os.O_WRONLY | os.O_NONBLOCK),
        ),
        lower=({"pipe": fifo(), "other": fifo()},),
    ),
    Scenario(
        "open-creates-in-opaque",
        (
            do("touch", "d/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644),
            do("touch", "d/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644),
        ),
        lower=({"d/f": file()},),
        upper={"d": opaque()},
    ),
)
