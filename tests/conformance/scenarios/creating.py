"""Creating: over nothing, over whiteouts, in pure, merged and opaque directories."""

import os
import stat

from tests.conformance.play import Scenario, Step, do
from tests.tree import Tree, acl, directory, file, opaque, symlink, whiteout

_CREATES: dict[str, Step] = {
    "file": do("write", "d/new", b"made"),
    "dir": do("mkdir", "d/new", 0o750),
    "symlink": do("symlink", "target", "d/new"),
    "fifo": do("mkfifo", "d/new"),
    "device": do("mknod", "d/new", stat.S_IFCHR | 0o640, os.makedev(1, 3)),
    "socket": do("mknod", "d/new", stat.S_IFSOCK | 0o640),
    "mknod-file": do("mknod", "d/new", stat.S_IFREG | 0o640),
    "link": do("link", "source", "d/new"),
}

_BELOW: Tree = {"source": file(b"source"), "d/below": file(b"below")}
_FULL: Tree = {**_BELOW, "d/new/inner": file(b"inner"), "d/new/sub/leaf": file()}

# Where the name is made: layers below, and the upper.
_PLACES: dict[str, tuple[tuple[Tree, ...], Tree | None]] = {
    "lower-dir": ((_BELOW,), None),
    "merged-dir": ((_BELOW,), {"d": directory()}),
    "upper-dir": (({"source": file()},), {"d": directory()}),
    "opaque-dir": ((_FULL,), {"d": opaque()}),
    "whiteout": ((_FULL,), {"d/new": whiteout()}),
    "whiteout-of-file": (({**_BELOW, "d/new": file(b"gone")},), {"d/new": whiteout()}),
    "lower-whiteout": (({"d/new": whiteout(), "source": file()}, _FULL), None),
    "lower-file": (({**_BELOW, "d/new": file(b"there")},), None),
    "lower-dir-there": ((_FULL,), None),
    "lower-symlink": (({**_BELOW, "d/new": symlink("below")},), None),
    "no-parent": (({"source": file()},), None),
    "file-parent": (({"source": file(), "d": file()},), None),
    "whited-out-parent": ((_BELOW,), {"d": whiteout()}),
    "setgid-dir": (({"source": file(), "d": directory(0o2775, 7, 77)},), None),
    "default-acl": (
        (
            {
                "source": file(),
                "d": directory(
                    xattrs={
                        "system.posix_acl_default": acl(
                            ("user_obj", 0, 7),
                            ("user", 1234, 7),
                            ("group_obj", 0, 5),
                            ("mask", 0, 7),
                            ("other", 0, 0),
                        )
                    }
                ),
            },
        ),
        None,
    ),
}

_MATRIX = tuple(
    Scenario(
        f"create-{what}-at-{place}",
        (step, do("lstat", "d/new"), do("scandir", "d"), do("lstat", "d"), do("same", "d", "d")),
        lower=lower,
        upper=upper,
    )
    for what, step in _CREATES.items()
    for place, (lower, upper) in _PLACES.items()
)

_UMASKS = tuple(
    Scenario(
        f"create-{what}-umask-{umask:03o}-{place}",
        (step, do("lstat", "d/new")),
        lower=_PLACES[place][0],
        upper=_PLACES[place][1],
        umask=umask,
    )
    for what, step in _CREATES.items()
    for umask in (0o000, 0o077)
    for place in ("whiteout", "default-acl", "setgid-dir")
)

SCENARIOS: tuple[Scenario, ...] = (
    *_MATRIX,
    *_UMASKS,
    Scenario(
        "create-whiteout-device",
        (do("mknod", "d/new", stat.S_IFCHR | 0o600, 0), do("scandir", "d")),
        lower=(_BELOW,),
    ),
    Scenario(
        "create-dir-with-set-id-bits",
        (do("mkdir", "a", 0o7777), do("mkdir", "d/b", 0o1777), do("lstat", "a")),
        lower=({"d": directory(0o2755, 1, 2)},),
        umask=0,
    ),
    Scenario(
        "create-file-with-set-id-bits",
        (do("touch", "a", os.O_CREAT | os.O_WRONLY, 0o6755), do("lstat", "a")),
        lower=({},),
        umask=0,
    ),
    Scenario(
        "create-tree-over-whiteout",
        (
            do("mkdir", "d"),
            do("mkdir", "d/sub"),
            do("write", "d/sub/f", b"1"),
            do("scandir", "d"),
            do("scandir", "d/sub"),
        ),
        lower=({"d/sub/old": file(), "d/old": file()},),
        upper={"d": whiteout()},
    ),
    Scenario(
        "create-remove-create",
        (
            do("write", "x", b"1"),
            do("unlink", "x"),
            do("mkdir", "x"),
            do("scandir", "x"),
            do("rmdir", "x"),
            do("symlink", "y", "x"),
            do("unlink", "x"),
            do("scandir", "."),
        ),
        lower=({"x/old": file()},),
        upper={"x": whiteout()},
    ),
    Scenario(
        "create-at-the-roots",
        (do("mkdir", "a"), do("write", "b", b"1"), do("write", "c", b"2"), do("unlink", "d")),
        lower=({"c": file(b"0"), "d": file()}, {"a/old": file()}),
        upper={"a": whiteout()},
        alone=True,
    ),
    Scenario(
        "create-strange-paths",
        (
            do("mkdir", "."),
            do("mkdir", "d/.."),
            do("mkdir", "d/"),
            do("mkdir", "new/"),
            do("write", "file/", b""),
            do("write", "d/", b""),
            do("symlink", "", "empty"),
            do("symlink", "x", "slash/"),
            do("link", "d", "e"),
        ),
        lower=({"d": directory()},),
    ),
)
