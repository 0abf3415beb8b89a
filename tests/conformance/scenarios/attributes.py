"""Attributes: modes, owners, times, extended attributes, on every kind of file."""

import os
import stat

from tests.conformance.play import Scenario, Step, do
from tests.tree import MARKS, Tree, acl, device, directory, fifo, file, socket_node, symlink

_KINDS: Tree = {
    "file": file(b"data"),
    "setid": file(b"data", 0o6755, 1, 2),
    "dir/in": file(),
    "sgdir": directory(0o2775, 3, 4),
    "link": symlink("file"),
    "dirlink": symlink("dir"),
    "broken": symlink("nowhere"),
    "fifo": fifo(),
    "null": device(stat.S_IFCHR, 1, 3),
    "socket": socket_node(),
}

_PAST = (10**18 + 123_456_789, 10**18 + 987_654_321)

_CHANGES: dict[str, tuple[Step, ...]] = {
    "chmod": (do("chmod", "P", 0o7421),),
    "chmod-0": (do("chmod", "P", 0),),
    "chown": (do("chown", "P", 11, 22),),
    "chown-user": (do("chown", "P", 11, -1),),
    "chown-group": (do("chown", "P", -1, 22),),
    "lchown": (do("chown", "P", 11, 22, follow_symlinks=False),),
    "utime": (do("utime", "P", _PAST), do("times", "P")),
    "utime-now": (do("utime", "P"), do("times", "P")),
    "lutime": (do("utime", "P", _PAST, follow_symlinks=False), do("times", "P")),
    "setxattr": (do("setxattr", "P", "user.x", b"y"),),
    "setxattr-trusted": (do("setxattr", "P", "trusted.x", b"y", follow_symlinks=False),),
    "listxattr": (do("listxattr", "P", follow_symlinks=False),),
    "getxattr-absent": (do("getxattr", "P", "user.absent", follow_symlinks=False),),
    "truncate": (do("truncate", "P", 1),),
}


def _at(step: Step, path: str) -> Step:
    arguments = tuple(path if argument == "P" else argument for argument in step.arguments)
    return do(step.operation, *arguments, **step.keywords)


_MATRIX = tuple(
    Scenario(
        f"attributes-{change}-{path}",
        (*(_at(step, path) for step in steps), do("lstat", path), do("stat", path)),
        lower=(_KINDS,),
    )
    for change, steps in _CHANGES.items()
    for path in _KINDS
    if path != "dir/in"
)

_DEFAULT_ACL = acl(
    ("user_obj", 0, 7), ("user", 1234, 5), ("group_obj", 0, 5), ("mask", 0, 5), ("other", 0, 0)
)

SCENARIOS: tuple[Scenario, ...] = (
    *_MATRIX,
    Scenario(
        "attributes-of-absent",
        (
            do("chmod", "absent", 0o600),
            do("chown", "absent", 1, 1),
            do("utime", "absent", _PAST),
            do("getxattr", "absent", "user.x"),
            do("setxattr", "absent", "user.x", b""),
            do("listxattr", "absent"),
            do("removexattr", "absent", "user.x"),
            do("chmod", "file/x", 0o600),
            do("chmod", "broken", 0o600),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "xattr-flags",
        (
            do("setxattr", "file", "user.a", b"1", os.XATTR_REPLACE),
            do("setxattr", "file", "user.a", b"1", os.XATTR_CREATE),
            do("setxattr", "file", "user.a", b"2", os.XATTR_CREATE),
            do("setxattr", "file", "user.a", b"3", os.XATTR_REPLACE),
            do("getxattr", "file", "user.a"),
            do("removexattr", "file", "user.a"),
            do("removexattr", "file", "user.a"),
            do("setxattr", "file", "user.empty", b""),
            do("getxattr", "file", "user.empty"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "xattr-strange-names",
        (
            do("setxattr", "file", "nonsense", b"1"),
            do("setxattr", "file", "unknown.x", b"1"),
            do("setxattr", "file", "user.", b"1"),
            do("setxattr", "file", "user." + "n" * 250, b"1"),
            do("setxattr", "file", "user." + "n" * 251, b"1"),
            do("setxattr", "file", "user.big", b"v" * 70000),
            do("setxattr", "file", "user.n\u00e4me", b"1"),
            do("getxattr", "file", "nonsense"),
            do("removexattr", "file", "unknown.x"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "xattr-marks-by-hand",
        (
            do("setxattr", "dir", MARKS + "opaque", b"y"),
            do("getxattr", "dir", MARKS + "opaque"),
            do("listxattr", "dir"),
            do("scandir", "dir"),
            do("setxattr", "dir", MARKS + "redirect", b"/elsewhere"),
            do("setxattr", "dir", MARKS + "overlay.opaque", b"y"),
            do("removexattr", "dir", MARKS + "redirect"),
            do("setxattr", "file", MARKS + "metacopy", b""),
            do("getxattr", "file", MARKS + "origin"),
            do("removexattr", "file", MARKS + "origin"),
            do("setxattr", "dir", "user.overlay.opaque", b"y"),
            do("getxattr", "dir", "user.overlay.opaque"),
            do("read", "file"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "xattr-capabilities",
        (
            do(
                "setxattr",
                "file",
                "security.capability",
                bytes.fromhex("0100000200040000" + "00" * 12),
            ),
            do("getxattr", "file", "security.capability"),
            do("setxattr", "file", "security.capability", b"nonsense"),
            do("removexattr", "file", "security.capability"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "acl-set-and-inherit",
        (
            do("setxattr", "dir", "system.posix_acl_default", _DEFAULT_ACL),
            do("write", "dir/new", b""),
            do("mkdir", "dir/sub"),
            do("lstat", "dir/new"),
            do("getxattr", "dir/new", "system.posix_acl_access"),
            do("getxattr", "dir/sub", "system.posix_acl_default"),
            do("setxattr", "file", "system.posix_acl_access", _DEFAULT_ACL),
            do("lstat", "file"),
            do("chmod", "file", 0o604),
            do("getxattr", "file", "system.posix_acl_access"),
            do("removexattr", "file", "system.posix_acl_access"),
            do("lstat", "file"),
            do("setxattr", "file", "system.posix_acl_default", _DEFAULT_ACL),
            do("setxattr", "file", "system.posix_acl_access", b"bad"),
            do("listxattr", "dir"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "acl-equal-to-mode",
        (
            do(
                "setxattr",
                "file",
                "system.posix_acl_access",
                acl(("user_obj", 0, 7), ("group_obj", 0, 5), ("other", 0, 1)),
            ),
            do("lstat", "file"),
            do("listxattr", "file"),
        ),
        lower=(_KINDS,),
    ),
    Scenario(
        "attributes-of-roots",
        (
            do("chmod", ".", 0o711),
            do("chown", ".", 1, 2),
            do("utime", ".", _PAST),
            do("setxattr", ".", "user.x", b"y"),
            do("times", "."),
            do("listxattr", "."),
        ),
        lower=({"a": file()},),
        alone=True,
    ),
)
