"""File flags (chattr(1)): what may not be changed, in every layer, and who keeps it."""

import os
from collections.abc import Iterator
from dataclasses import replace

from tests.conformance.doors import RENAME_EXCHANGE
from tests.conformance.play import Scenario, Step, do
from tests.tree import APPEND, IMMUTABLE, MARKS, NOATIME, NODUMP, SYNC, Tree, directory, file

_PAST = (10**18 + 123_456_789, 10**18 + 987_654_321)

_PLAIN: Tree = {
    "file": file(b"data", xattrs={"user.x": b"y"}),
    "other": file(b"other"),
    "dir": directory(),
    "dir/in": file(b"in"),
    "dir/sub/deep": file(b"deep"),
    "else": directory(),
}


def _flagged(path: str, flags: int) -> Tree:
    return {**_PLAIN, path: replace(_PLAIN[path], flags=flags)}


_ON_FILE: tuple[Step, ...] = (
    do("chmod", "file", 0o600),
    do("chown", "file", 11, 22),
    do("chown", "file", -1, -1),
    do("utime", "file", _PAST),
    do("truncate", "file", 1),
    do("setxattr", "file", "user.x", b"z"),
    do("setxattr", "file", "bad", b"z"),
    do("removexattr", "file", "user.x"),
    do("removexattr", "file", "user.no"),
    do("write", "file", b"w", os.O_CREAT),
    do("touch", "file", os.O_WRONLY | os.O_TRUNC),
    do("touch", "file", os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
    do("touch", "file", os.O_RDONLY | os.O_TRUNC),
    do("link", "file", "new"),
    do("unlink", "file"),
    do("rename", "file", "new"),
    do("rename", "file", "dir/new"),
    do("rename", "other", "file"),
    do("rename", "other", "file", RENAME_EXCHANGE),
    do("rename", "file", "other", RENAME_EXCHANGE),
    do("read", "file"),
    do("lstat", "file"),
    do("write", "file", b"w", os.O_APPEND),
    do("read", "file"),
)

_ON_DIRECTORY: tuple[Step, ...] = (
    do("chmod", "dir", 0o700),
    do("chown", "dir", 11, 22),
    do("chown", "dir", -1, -1),
    do("utime", "dir", _PAST),
    do("setxattr", "dir", "user.x", b"y"),
    do("unlink", "dir/in"),
    do("rmdir", "dir/sub"),
    do("rmdir", "dir"),
    do("rename", "dir", "new"),
    do("rename", "dir", "else/new"),
    do("rename", "else", "dir"),
    do("rename", "else", "dir", RENAME_EXCHANGE),
    do("rename", "dir/in", "dir/new"),
    do("rename", "dir/in", "new"),
    do("rename", "file", "dir/in"),
    do("lstat", "dir"),
    # which an append-only directory lets through
    do("touch", "dir/made", os.O_CREAT | os.O_WRONLY),
    do("mkdir", "dir/a"),
    do("mkfifo", "dir/b"),
    do("symlink", "in", "dir/c"),
    do("link", "file", "dir/d"),
    do("mkdir", "dir/in"),
    do("rename", "other", "dir/new"),
    do("unlink", "dir/made"),
    # what lies in it is free
    do("write", "dir/in", b"w"),
    do("write", "dir/sub/deep", b"w"),
    do("unlink", "dir/sub/deep"),
    do("tree", "dir"),
)


def _refused(name: str, flags: int, path: str, steps: tuple[Step, ...]) -> Iterator[Scenario]:
    """Changes of a lower file, of one of upper by its mark, and after the flag is set or gone."""
    lower = _flagged(path, flags)
    marked = {MARKS + "protattr": b"a" if flags == APPEND else b"i"}
    upper = {**_PLAIN, path: replace(_PLAIN[path], xattrs={**_PLAIN[path].xattrs, **marked})}
    yield Scenario(f"flags-{name}-{path}", steps, lower=(lower,))
    yield Scenario(f"flags-{name}-{path}-upper", steps, lower=({},), upper=upper)
    told = do("getflags", path)
    set_first = (do("setflags", path, flags), told, *steps, told)
    yield Scenario(f"flags-{name}-{path}-set", set_first, lower=(_PLAIN,))
    freed = (told, do("setflags", path, 0), told, *steps[:3], *steps[-4:])
    yield Scenario(f"flags-{name}-{path}-freed", freed, lower=(lower,))


_KEPT = SYNC | NOATIME | NODUMP

SCENARIOS: tuple[Scenario, ...] = (
    *_refused("immutable", IMMUTABLE, "file", _ON_FILE),
    *_refused("immutable", IMMUTABLE, "dir", _ON_DIRECTORY),
    *_refused("append-only", APPEND, "file", _ON_FILE),
    *_refused("append-only", APPEND, "dir", _ON_DIRECTORY),
    Scenario(
        "flags-utime-now-immutable",
        (do("utime", "file"), do("times", "file")),
        lower=(_flagged("file", IMMUTABLE),),
    ),
    Scenario(
        "flags-utime-now-append-only",
        (do("utime", "file"), do("times", "file")),
        lower=(_flagged("file", APPEND),),
    ),
    Scenario(
        "flags-copied-up",
        (
            do("getflags", "file"),
            do("chmod", "file", 0o600),
            do("getflags", "file"),
            do("chmod", "dir", 0o700),
            do("getflags", "dir"),
            do("truncate", "other", 0),
            do("getflags", "other"),
        ),
        lower=(
            {
                **_PLAIN,
                "file": replace(_PLAIN["file"], flags=_KEPT),
                "dir": replace(_PLAIN["dir"], flags=_KEPT),
                "other": replace(_PLAIN["other"], flags=NOATIME),
            },
        ),
    ),
    Scenario(
        "flags-set",
        (
            do("setflags", "file", NOATIME),
            do("getflags", "file"),
            do("setflags", "file", IMMUTABLE | APPEND | NODUMP),
            do("getflags", "file"),
            do("chmod", "file", 0o600),
            do("setflags", "file", IMMUTABLE),
            do("getflags", "file"),
            do("setflags", "file", 0),
            do("getflags", "file"),
            do("chmod", "file", 0o600),
            do("getflags", "absent"),
            do("setflags", "dir", APPEND),
            do("getflags", "dir"),
            do("mkdir", "dir/new"),
            do("rmdir", "dir/new"),
            do("touch", "new", os.O_CREAT | os.O_WRONLY),
            do("setflags", "new", IMMUTABLE),
            do("unlink", "new"),
        ),
        lower=(_PLAIN,),
    ),
    Scenario(
        "flags-set-between",
        (
            do("setxattr", "dir", "user.x", b"y"),
            do("setflags", "dir", APPEND),
            do("setxattr", "dir", "user.x", b"z"),
            do("removexattr", "dir", "user.x"),
            do("rename", "dir/sub", "dir/new"),
            do("setflags", "dir", 0),
            do("removexattr", "dir", "user.x"),
            do("rename", "dir/sub", "dir/new"),
        ),
        lower=(_PLAIN,),
    ),
    Scenario(
        "flags-as-user",
        (
            do("setflags", "own", IMMUTABLE, user=1234),
            do("setflags", "own", NODUMP, user=1234),
            do("getflags", "own", user=1234),
            do("setflags", "file", NODUMP, user=1234),
        ),
        lower=({"own": file(b"", uid=1234, gid=1234), "file": file()},),
    ),
    Scenario(
        "flags-checked-first",
        (
            do("unlink", "dir"),
            do("rmdir", "file"),
            do("rename", "else", "file"),
            do("rename", "other", "dir"),
            do("removexattr", "file", "system.posix_acl_default"),
            do("truncate", "file", 1, user=1234),
            do("write", "file", b"w", user=1234),
            do("touch", "dir/new", os.O_CREAT | os.O_WRONLY, user=1234),
            do("unlink", "dir/in", user=1234),
        ),
        lower=({**_flagged("file", IMMUTABLE), "dir": _flagged("dir", IMMUTABLE)["dir"]},),
    ),
    Scenario(
        "flags-of-upper-itself",
        (
            do("getflags", "file"),
            do("write", "file", b"w"),
            do("chmod", "file", 0o600),
            do("unlink", "file"),
            do("rename", "file", "new"),
            do("rename", "other", "file"),
            do("setflags", "file", 0),
            do("write", "file", b"w"),
        ),
        lower=(_PLAIN,),
        upper=_flagged("file", IMMUTABLE),
    ),
    Scenario(
        "flags-held-open",
        (
            do("open", "w", "file", os.O_RDWR),
            do("setflags", "file", APPEND),
            do("ftruncate", "w", 1),
            do("fchmod", "w", 0o600),
            do("setflags", "file", 0),
            do("ftruncate", "w", 1),
            do("fstat", "w"),
        ),
        lower=(_PLAIN,),
    ),
)
