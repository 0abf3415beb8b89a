"""The marks that overlayfs leaves on disk, each read here alone.

Rules: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories" and
"Renaming directories". All encodings are read, whichever prefix a stack writes.
"""

import errno
import os
import stat

PREFIXES = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")
AUFS_PREFIX = ".wh."
AUFS_OPAQUE = ".wh..wh..opq"


def read(path: str, mark: str) -> bytes | None:
    """The value of an overlay mark of path, not following a symlink; None where unset."""
    for prefix in PREFIXES:
        try:
            return os.getxattr(path, prefix + mark, follow_symlinks=False)
        except OSError as error:
            # EPERM: user.* on a special file; EACCES: an unreadable file of another user.
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                raise
    return None


def is_whiteout(path: str, status: os.stat_result) -> bool:
    """Whether path hides its name: device 0:0, or an empty file marked `whiteout`."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return (
        stat.S_ISREG(status.st_mode) and status.st_size == 0 and read(path, "whiteout") is not None
    )


def is_opaque(path: str) -> bool:
    """Whether the directory hides the layers below it."""
    return read(path, "opaque") == b"y" or os.path.lexists(f"{path}/{AUFS_OPAQUE}")


def redirect(path: str) -> str | None:
    """Where the layers below hold this directory: absolute from the root, or one name."""
    value = read(path, "redirect")
    return None if value is None else os.fsdecode(value)
