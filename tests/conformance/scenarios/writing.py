"""Writing: copy-up keeps everything, and the data that changes is the data that was meant."""

import os

from tests.conformance.play import Scenario, do
from tests.tree import CAPABILITY, Tree, acl, directory, file, sparse, symlink

_ACL = acl(
    ("user_obj", 0, 6), ("user", 1234, 6), ("group_obj", 0, 4), ("mask", 0, 6), ("other", 0, 4)
)
_RICH = file(
    b"rich",
    0o640,
    12,
    34,
    {"user.colour": b"red", "trusted.mine": b"\0\1", "system.posix_acl_access": _ACL},
)

_TRIGGERS = {
    "write": do("write", "d/e/f", b"new"),
    "append": do("write", "d/e/f", b"new", os.O_APPEND),
    "in-place": do("write", "d/e/f", b"N", 0),
    "open-for-writing": do("touch", "d/e/f", os.O_WRONLY),
    "open-readwrite": do("touch", "d/e/f", os.O_RDWR),
    "truncate-shorter": do("truncate", "d/e/f", 2),
    "truncate-longer": do("truncate", "d/e/f", 100),
    "truncate-same": do("truncate", "d/e/f", 4),
    "truncate-zero": do("truncate", "d/e/f", 0),
    "truncate-negative": do("truncate", "d/e/f", -1),
    "chmod": do("chmod", "d/e/f", 0o600),
    "chmod-same": do("chmod", "d/e/f", 0o660),
    "chown": do("chown", "d/e/f", 5, 6),
    "chown-nothing": do("chown", "d/e/f", -1, -1),
    "utime": do("utime", "d/e/f", (10**18 + 1, 10**18 + 999_999_999)),
    "utime-now": do("utime", "d/e/f"),
    "setxattr": do("setxattr", "d/e/f", "user.new", b"1"),
    "removexattr": do("removexattr", "d/e/f", "user.colour"),
    "removexattr-absent": do("removexattr", "d/e/f", "user.absent"),
    "rename": do("rename", "d/e/f", "d/e/g"),
    "link": do("link", "d/e/f", "d/e/g"),
    "unlink": do("unlink", "d/e/f"),
    "read": do("read", "d/e/f"),
}

_PARENTS: Tree = {"d": directory(0o711, 3, 4, {"user.of": b"d"}), "d/e": directory(0o2770, 5, 6)}

_COPY_UP = tuple(
    Scenario(
        f"copy-up-by-{name}",
        (
            do("number_kept", "d/e/f", "f"),
            do("number_kept", "d", "d"),
            step,
            do("lstat", "d/e/f"),
            do("number_kept", "d/e/f", "f"),
            do("number_kept", "d", "d"),
            do("numbers_agree", "d/e"),
            do("lstat", "d/e"),
            do("lstat", "d"),
        ),
        lower=({**_PARENTS, "d/e/f": _RICH},),
    )
    for name, step in _TRIGGERS.items()
)

_BIG = bytes(range(256)) * 8192

SCENARIOS: tuple[Scenario, ...] = (
    *_COPY_UP,
    Scenario(
        "write-copies-up-big-file",
        (do("write", "big", b"changed", 0), do("lstat", "big")),
        lower=({"big": file(_BIG)},),
    ),
    Scenario(
        "write-keeps-holes",
        (do("chmod", "hole", 0o600), do("write", "end", b"x", os.O_APPEND), do("chmod", "all", 0)),
        lower=(
            {
                "hole": sparse(8 << 20, (4 << 20, b"island")),
                "end": sparse(2 << 20, (0, b"start")),
                "all": sparse(1 << 20),
            },
        ),
    ),
    Scenario(
        "write-beyond-the-end",
        (
            do("open", "h", "f", os.O_RDWR),
            do("fwrite", "h", b"far", 1 << 20),
            do("fstat", "h"),
            do("fread", "h", 20),
        ),
        lower=({"f": file(b"near")},),
    ),
    Scenario(
        "write-fallocate",
        (do("open", "h", "f", os.O_RDWR), do("fallocate", "h", 0, 10000), do("fstat", "h")),
        lower=({"f": file(b"near")},),
    ),
    Scenario(
        "write-copy-range",
        (
            do("open", "r", "f", os.O_RDONLY),
            do("open", "w", "g", os.O_RDWR | os.O_CREAT),
            do("copy_range", "r", "w", 6),
            do("fread", "w", 20),
        ),
        lower=({"f": file(b"copied data")},),
    ),
    Scenario(
        "write-seek",
        (
            do("open", "w", "new", os.O_RDWR | os.O_CREAT),
            do("fwrite", "w", b"data"),
            do("seek", "w", 0, os.SEEK_DATA),
            do("seek", "w", 0, os.SEEK_HOLE),
            do("seek", "w", 4, os.SEEK_DATA),
            do("ftruncate", "w", 1 << 20),
            do("fwrite", "w", b"more", 1 << 19),
            do("seek", "w", 1 << 18, os.SEEK_DATA),
            do("map_shared", "w", b"mapped", 1 << 17),
            do("open", "r", "new", os.O_RDONLY),
            do("seek", "r", 1 << 16, os.SEEK_DATA),
            do("seek", "r", (1 << 19) + 1, os.SEEK_HOLE),
        ),
        lower=({},),
    ),
    Scenario(
        "write-through-symlink",
        (
            do("write", "link", b"by link"),
            do("write", "into/new", b"by dir link"),
            do("write", "broken", b"made"),
            do("truncate", "link", 3),
            do("chmod", "link", 0o600),
            do("chown", "link", 1, 2),
            do("utime", "link", (10**18, 10**18)),
            do("setxattr", "link", "user.x", b"y"),
            do("lstat", "link"),
        ),
        lower=(
            {
                "f": file(b"data"),
                "link": symlink("f"),
                "d": directory(),
                "into": symlink("d"),
                "broken": symlink("fresh"),
            },
        ),
    ),
    Scenario(
        "write-errors",
        (
            do("write", "d", b""),
            do("write", "f/x", b""),
            do("write", "absent/x", b""),
            do("write", "absent", b"", 0),
            do("truncate", "d", 0),
            do("truncate", "absent", 0),
            do("truncate", "f", -5),
            do("truncate", "f", 1 << 62),
            do("write", "loop", b""),
        ),
        lower=({"d": directory(), "f": file(b"x"), "loop": symlink("loop")},),
    ),
    Scenario(
        "write-set-id-file-as-root",
        (do("write", "f", b"new", 0), do("lstat", "f"), do("truncate", "f", 1), do("lstat", "f")),
        lower=({"f": file(b"old", 0o6755, 5, 6)},),
    ),
    Scenario(
        "write-set-id-file-with-capability",
        (do("write", "f", b"new", 0), do("lstat", "f"), do("listxattr", "f")),
        lower=({"f": file(b"old", 0o6755, xattrs={"security.capability": CAPABILITY})},),
    ),
    Scenario(
        "write-drops-capabilities",
        (
            do("getxattr", "f", "security.capability"),
            do("write", "f", b"new", 0),
            do("getxattr", "f", "security.capability"),
            do("listxattr", "g"),
            do("truncate", "g", 1),
            do("getxattr", "g", "security.capability"),
            do("chown", "h", 1, 1),
            do("getxattr", "h", "security.capability"),
            do("chmod", "i", 0o700),
            do("getxattr", "i", "security.capability"),
        ),
        lower=(
            {
                name: file(
                    b"old",
                    0o755,
                    xattrs={"security.capability": CAPABILITY},
                )
                for name in "fghi"
            },
        ),
    ),
)
