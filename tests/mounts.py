"""Mounts that nothing else on the machine copies into a namespace of its own.

For as long as such a copy lives, the kernel mounts no upper with an index again.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS


@contextmanager
def private() -> Iterator[None]:
    """Give this thread, and what it starts, mounts of its own for the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open(".", os.O_PATH)
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    try:
        yield
    finally:
        if libc.setns(outside, _NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "setns")
        os.fchdir(here)
        os.close(outside)
        os.close(here)
