"""An ordinary user: permissions, sticky directories, set-id bits."""

import os

from tests.conformance.play import Scenario, do
from tests.tree import CAPABILITY, Tree, acl, directory, file

_USER = 1000
_ACL = acl(
    ("user_obj", 0, 7),
    ("user", 1, 7),
    ("group_obj", 0, 5),
    ("mask", 0, 7),
    ("other", 0, 0),
)
_LAYER: Tree = {
    "own": file(b"mine", 0o644, _USER, _USER),
    "setid": file(b"mine", 0o6777, _USER, _USER),
    "setgid-only": file(b"mine", 0o2767, _USER, _USER),
    "root": file(b"root's"),
    "secret": file(b"secret", 0o600),
    "home": directory(0o755, _USER, _USER),
    "home/root": file(b"root's"),
    "closed/in": file(),
    "closed": directory(0o700),
    "tmp": directory(0o1777),
    "tmp/root": file(),
    "tmp/own": file(b"", 0o644, _USER, _USER),
    "shared": directory(0o2777, 0, 50),
    "granted": file(
        b"",
        0o660,
        xattrs={
            "system.posix_acl_access": acl(
                ("user_obj", 0, 6),
                ("user", _USER, 6),
                ("group_obj", 0, 0),
                ("mask", 0, 6),
                ("other", 0, 0),
            )
        },
    ),
}

_STORIES = {
    "read": (do("read", "root", user=_USER), do("read", "secret", user=_USER)),
    "write-own": (do("write", "own", b"new", user=_USER), do("lstat", "own")),
    "write-others": (do("write", "root", b"new", user=_USER), do("lstat", "root")),
    "create-own": (
        do("write", "home/new", b"new", user=_USER),
        do("mkdir", "home/dir", user=_USER),
        do("symlink", "x", "home/link", user=_USER),
        do("lstat", "home/new"),
    ),
    "create-others": (do("write", "new", b"", user=_USER), do("mkdir", "dir", user=_USER)),
    "closed-directory": (
        do("scandir", "closed", user=_USER),
        do("lstat", "closed/in", user=_USER),
        do("unlink", "closed/in", user=_USER),
    ),
    "remove": (
        do("unlink", "home/root", user=_USER),
        do("unlink", "root", user=_USER),
        do("rmdir", "home", user=_USER),
    ),
    "sticky": (
        do("unlink", "tmp/root", user=_USER),
        do("rename", "tmp/root", "tmp/x", user=_USER),
        do("rename", "tmp/own", "tmp/y", user=_USER),
        do("unlink", "tmp/y", user=_USER),
    ),
    "write-clears-set-id": (
        do("write", "setid", b"new", 0, user=_USER),
        do("lstat", "setid"),
        do("write", "setgid-only", b"new", 0, user=_USER),
        do("lstat", "setgid-only"),
    ),
    "set-id-of-a-file-held-open": (
        do("open", "w", "own", os.O_RDWR, user=_USER),
        do("fwrite", "w", b"one", 0, user=_USER),
        do("chmod", "own", 0o6755),
        do("fwrite", "w", b"two", 0),
        do("fstat", "w"),
        do("fwrite", "w", b"three", 0, user=_USER),
        do("fstat", "w"),
        do("chmod", "own", 0o6755),
        do("fallocate", "w", 0, 10, user=_USER),
        do("fstat", "w"),
        do("chmod", "own", 0o2745),
        do("fwrite", "w", b"four", 0, user=_USER),
        do("lstat", "own"),
        do("chmod", "own", 0o6755),
        do("unlink", "own"),
        do("fwrite", "w", b"five", 0, user=_USER),
        do("fstat", "w"),
    ),
    "set-id-of-a-file-copied-to": (
        do("open", "r", "root", os.O_RDONLY, user=_USER),
        do("open", "w", "own", os.O_RDWR, user=_USER),
        do("fwrite", "w", b"one", 0, user=_USER),
        do("chmod", "own", 0o6755),
        do("copy_range", "r", "w", 4, user=_USER),
        do("fstat", "w"),
    ),
    "capabilities-of-a-file-held-open": (
        do("open", "w", "own", os.O_RDWR, user=_USER),
        do("fwrite", "w", b"one", 0, user=_USER),
        do("setxattr", "own", "security.capability", CAPABILITY),
        do("fwrite", "w", b"two", 0, user=_USER),
        do("listxattr", "own"),
        do("setxattr", "own", "security.capability", CAPABILITY),
        do("fwrite", "w", b"two", 0),
        do("listxattr", "own"),
    ),
    "chown-to-nobody-else": (
        do("chown", "own", -1, -1, user=_USER),
        do("chown", "setid", -1, -1),
        do("lstat", "setid"),
        do("chown", "setgid-only", -1, -1, user=_USER),
        do("lstat", "setgid-only"),
        do("chown", "root", -1, -1, user=_USER),
        do("chown", "home", -1, -1),
    ),
    "truncate-clears-set-id": (
        do("truncate", "setid", 1, user=_USER),
        do("lstat", "setid"),
        do("touch", "setgid-only", os.O_WRONLY | os.O_TRUNC, user=_USER),
        do("lstat", "setgid-only"),
    ),
    "open-truncating-clears-set-id": (
        do("touch", "setid", os.O_WRONLY | os.O_TRUNC, user=_USER),
        do("lstat", "setid"),
        do("touch", "setgid-only", os.O_RDWR | os.O_TRUNC, user=_USER),
        do("lstat", "setgid-only"),
    ),
    "chmod": (
        do("chmod", "own", 0o600, user=_USER),
        do("chmod", "root", 0o666, user=_USER),
        do("chmod", "setid", 0o6755, user=_USER),
        do("lstat", "setid"),
    ),
    "chown": (
        do("chown", "own", 0, 0, user=_USER),
        do("chown", "own", -1, _USER, user=_USER),
        do("chown", "setid", -1, _USER, user=_USER),
        do("lstat", "setid"),
        do("chown", "own", -1, 77, user=_USER),
    ),
    "utime": (
        do("utime", "own", (10**18, 10**18), user=_USER),
        do("utime", "root", (10**18, 10**18), user=_USER),
        do("utime", "root", user=_USER),
    ),
    "xattrs": (
        do("setxattr", "own", "user.x", b"y", user=_USER),
        do("setxattr", "root", "user.x", b"y", user=_USER),
        do("setxattr", "own", "trusted.x", b"y", user=_USER),
        do("listxattr", "own", user=_USER),
    ),
    "setgid-directory": (
        do("write", "shared/f", b"", user=_USER),
        do("mkdir", "shared/d", user=_USER),
        do("touch", "shared/g", os.O_CREAT | os.O_WRONLY, 0o2775, user=_USER),
        do("lstat", "shared/f"),
        do("lstat", "shared/d"),
    ),
    "acl": (
        do("write", "granted", b"by acl", user=_USER),
        do("write", "granted", b"x", user=1001),
        do("access", "granted", os.W_OK),
    ),
    "acl-clears-set-gid": (
        do("chown", "setid", -1, 77),
        do("chmod", "setid", 0o6745),
        do("setxattr", "setid", "system.posix_acl_access", _ACL, user=_USER),
        do("lstat", "setid"),
        do("setxattr", "setgid-only", "system.posix_acl_access", _ACL, user=_USER),
        do("lstat", "setgid-only"),
    ),
    "devices": (
        do("mknod", "home/dev", 0o020600, os.makedev(1, 3), user=_USER),
        do("mkfifo", "home/pipe", user=_USER),
        do("link", "root", "home/hard", user=_USER),
        do("rename", "home", "home2", user=_USER),
    ),
}

SCENARIOS: tuple[Scenario, ...] = tuple(
    Scenario(f"user-{name}-{place}", steps, lower=lower, upper=upper)
    for name, steps in _STORIES.items()
    for place, lower, upper in (("lower", (_LAYER,), None), ("upper", ({},), _LAYER))
)
