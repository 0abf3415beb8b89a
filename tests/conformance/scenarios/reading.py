"""Reading: which layer answers, and what merging shows."""

import os
import stat

from tests.conformance.play import Scenario, Step, do
from tests.tree import (
    MARKS,
    Tree,
    acl,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    redirect,
    socket_node,
    sparse,
    symlink,
    whiteout,
)

_ACL = acl(
    ("user_obj", 0, 6), ("user", 1234, 4), ("group_obj", 0, 4), ("mask", 0, 4), ("other", 0, 0)
)

# What a layer may hold at a name, for the matrix of three layers.
_HOLDS: dict[str, Tree] = {
    "nothing": {},
    "file": {"x": file(b"file of %d")},
    "dir": {"x": directory(), "x/of-%d": file(b"%d"), "x/every": file(b"%d")},
    "opaque": {"x": opaque(), "x/of-%d": file(b"%d"), "x/every": file(b"%d")},
    "whiteout": {"x": whiteout()},
    "symlink": {"x": symlink("of-%d")},
}


def _of(layer: int, tree: Tree) -> Tree:
    """The tree with its layer's number written into names and data."""
    number = str(layer)
    return {
        path.replace("%d", number): file(number.encode()) if node.data else node
        for path, node in tree.items()
    }


def _look(path: str) -> tuple[Step, ...]:
    return (
        do("lstat", path),
        do("scandir", path),
        do("read", path),
        do("readlink", path),
        do("read", f"{path}/every"),
        do("scandir", "."),
    )


_MERGING = tuple(
    Scenario(
        f"read-{top}-over-{middle}-over-{bottom}",
        _look("x"),
        lower=(_of(2, _HOLDS[middle]), _of(3, _HOLDS[bottom])),
        upper=_of(1, _HOLDS[top]),
    )
    for top in _HOLDS
    for middle in _HOLDS
    for bottom in ("file", "dir", "symlink")
)

_KINDS: Tree = {
    "file": file(b"data", 0o4711, 12, 34, {"user.colour": b"red", "trusted.mine": b"1"}),
    "hole": sparse(1 << 20, (1 << 19, b"island")),
    "dir/sub/deep": file(b"deep"),
    "sticky": directory(0o1777),
    "setgid": directory(0o2755, 5, 6),
    "link": symlink("file"),
    "broken": symlink("nowhere"),
    "fifo": fifo(),
    "null": device(stat.S_IFCHR, 1, 3),
    "disk": device(stat.S_IFBLK, 7, 99),
    "socket": socket_node(),
    "acl": file(b"", 0o640, xattrs={"system.posix_acl_access": _ACL}),
    "cap": file(
        b"", 0o755, xattrs={"security.capability": bytes.fromhex("0100000200040000" + "00" * 12)}
    ),
    "one": file(b"linked"),
    "two": hard_link("one"),
}

SCENARIOS: tuple[Scenario, ...] = (
    *_MERGING,
    Scenario("read-kinds-from-lower", (do("scandir", "."),), lower=(_KINDS,)),
    Scenario("read-kinds-from-upper", (do("scandir", "."),), upper=_KINDS),
    Scenario("read-kinds-from-third-lower", (do("scandir", "."),), lower=({}, {}, _KINDS)),
    Scenario(
        "read-numbers-agree",
        (
            do("numbers_agree", "."),
            do("numbers_agree", "d"),
            do("same", "one", "two"),
            do("same", "d/a", "d/b"),
        ),
        lower=({**_KINDS, "d/a": file(), "d/b": file()},),
        upper={"d/c": file(), "e": file()},
    ),
    Scenario(
        "read-marks-are-hidden",
        (
            do("listxattr", "d"),
            do("getxattr", "d", MARKS + "opaque"),
            do("getxattr", "d", MARKS + "impure"),
            do("listxattr", "r"),
        ),
        lower=({"d/below": file(), "old/below": file()},),
        upper={"d": opaque(), "r": redirect("old"), "old": whiteout()},
    ),
    Scenario(
        "read-escaped-marks",
        (do("listxattr", "d"), do("getxattr", "d", MARKS + "opaque"), do("scandir", "d")),
        lower=({"d": directory(xattrs={MARKS + "overlay.opaque": b"y"})}, {"d/below": file()}),
        upper={},
    ),
    Scenario(
        "read-redirect-relative",
        (do("scandir", "new"), do("scandir", "old"), do("read", "new/f")),
        lower=({"old/f": file(b"moved")},),
        upper={"new": redirect("old"), "old": whiteout()},
    ),
    Scenario(
        "read-redirect-absolute",
        (do("scandir", "deep/new"), do("read", "deep/new/f"), do("scandir", "from")),
        lower=({"from/old/f": file(b"moved")},),
        upper={
            "deep/new": redirect("/read-redirect-absolute/from/old"),
            "from/old": whiteout(),
        },
    ),
    Scenario(
        "read-redirect-to-nothing",
        (do("scandir", "new"),),
        lower=({"new/f": file(), "other": file()},),
        upper={"new": redirect("absent"), "new/g": file()},
    ),
    Scenario(
        "read-redirect-chain",
        (do("scandir", "c"), do("read", "c/f")),
        lower=(
            {"b": redirect("a"), "a": whiteout(), "b/g": file(b"middle")},
            {"a/f": file(b"bottom")},
        ),
        upper={"c": redirect("b"), "b": whiteout()},
    ),
    Scenario(
        "read-redirect-in-middle-and-sibling-below",
        (do("scandir", "new"),),
        lower=({"new": redirect("old")}, {"old/f": file(), "new/g": file()}),
        upper={"new/h": file()},
    ),
    Scenario(
        "read-whiteout-below-a-directory",
        (do("scandir", "d"),),
        lower=({"d": whiteout()}, {"d/hidden": file()}),
        upper={"d/shown": file()},
    ),
    Scenario(
        "read-whiteout-in-lowest",
        (do("scandir", "."), do("lstat", "x")),
        lower=({"x": whiteout(), "y": file()},),
        upper={},
    ),
    Scenario(
        "read-middle-opaque",
        (do("scandir", "d"), do("scandir", "d/e")),
        lower=({"d": opaque(), "d/e/two": file()}, {"d/e/three": file(), "d/three": file()}),
        upper={"d/e/one": file()},
    ),
    Scenario(
        "read-through-symlinks",
        (
            do("read", "to-file"),
            do("read", "to-dir/f"),
            do("scandir", "to-dir"),
            do("stat", "to-dir"),
            do("lstat", "to-dir"),
            do("stat", "loop"),
            do("lstat", "loop"),
            do("read", "broken"),
            do("scandir", "to-file"),
            do("stat", "to-file/x"),
        ),
        lower=(
            {
                "d/f": file(b"found"),
                "to-file": symlink("d/f"),
                "to-dir": symlink("d"),
                "loop": symlink("loop"),
                "broken": symlink("nowhere"),
            },
        ),
        upper={"d/f": file(b"upper")},
    ),
    Scenario(
        "read-wrong-kinds",
        (
            do("read", "d"),
            do("read", "f/x"),
            do("scandir", "f"),
            do("scandir", "absent"),
            do("readlink", "f"),
            do("readlink", "d"),
            do("lstat", "f/"),
            do("lstat", "d/."),
            do("lstat", "d/.."),
            do("lstat", "absent/.."),
            do("lstat", ""),
        ),
        lower=({"d/x": file(), "f": file()},),
    ),
    Scenario(
        "read-access",
        (
            do("access", "f", os.R_OK),
            do("access", "f", os.X_OK),
            do("access", "x", os.X_OK),
            do("access", "absent", os.F_OK),
            do("access", "d", os.W_OK | os.X_OK),
        ),
        lower=({"f": file(), "x": file(mode=0o755), "d": directory()},),
    ),
    Scenario("read-statvfs", (do("statvfs", "."), do("statvfs", "f")), lower=({"f": file()},)),
    Scenario(
        "read-deep",
        (do("read", "/".join(["level"] * 40) + "/leaf"),),
        lower=({"/".join(["level"] * 40) + "/leaf": file(b"deep")},),
        upper={"/".join(["level"] * 20) + "/other": file()},
    ),
    Scenario(
        "read-hard-links-across-layers",
        (do("same", "a", "b"), do("lstat", "a"), do("lstat", "b")),
        lower=({"a": file(b"one"), "b": hard_link("a"), "c": hard_link("a")},),
        upper={"c": file(b"other")},
    ),
    Scenario(
        "read-many-names",
        (do("scandir", "d"), do("numbers_agree", "d")),
        lower=(
            {f"d/lower-{number:03}": file() for number in range(150)},
            {f"d/{'lower' if number % 2 else 'base'}-{number:03}": file() for number in range(150)},
        ),
        upper={f"d/lower-{number:03}": whiteout() for number in range(0, 150, 3)},
    ),
    Scenario(
        "read-roots",
        (do("scandir", "."), do("numbers_agree", "."), do("lstat", "."), do("listxattr", ".")),
        lower=({"a": file(b"1")}, {"a": file(b"2"), "b/c": file()}),
        upper={"b": opaque(), ".": directory(0o750, xattrs={"user.of": b"root"})},
        alone=True,
    ),
    Scenario(
        "read-only-union",
        (
            do("scandir", "."),
            do("write", "a", b"x"),
            do("write", "new", b"x"),
            do("mkdir", "d"),
            do("unlink", "a"),
            do("unlink", "absent"),
            do("rmdir", "b"),
            do("rename", "a", "z"),
            do("chmod", "a", 0o600),
            do("setxattr", "a", "user.x", b"y"),
            do("truncate", "a", 0),
            do("link", "a", "z"),
            do("symlink", "a", "z"),
            do("mkdir", "b"),
            do("access", "a", os.W_OK),
            do("touch", "a", os.O_RDWR),
            do("touch", "a", os.O_CREAT | os.O_EXCL),
            do("touch", "a", os.O_RDONLY | os.O_CREAT),
            do("read", "a"),
        ),
        lower=({"a": file(b"1")}, {"a": file(b"2"), "b/c": file()}),
        alone=True,
        writable=False,
    ),
)
