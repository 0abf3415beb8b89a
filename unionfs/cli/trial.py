"""A trial mount, run by `unionmount doctor` as a program of its own: `trial KIND FOLDER`.

It runs in a mount namespace that ends with it, where the caller may make one. FOLDER holds the
empty directories `lower`, `upper`, `work` and `target`. Success is exit code 0, failure one line
on standard error.

KIND is overlayfs or fuse, by which a union is mounted, written and unmounted; or passthrough, for
which the kernel's first FUSE request is read, since only there it says what it offers.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Final, Literal

from unionfs.cli.output import complain, describe
from unionfs.mounting import mount, unmount
from unionfs.options import MountOptions
from unionfs.stack import LayerStack

# linux/fuse.h: struct fuse_in_header; struct fuse_init_in up to flags2
_INIT: Final = struct.Struct("=40xIIIII")
_PASSTHROUGH: Final = 1 << (37 - 32)
_REQUEST_MAX: Final = 8192


def try_mount(backend: Literal["overlayfs", "fuse"], folder: Path) -> None:
    """Mount a union, write through it, unmount it. Raises OSError."""
    with (
        LayerStack([folder / "lower"], folder / "upper", folder / "work") as stack,
        mount(stack, folder / "target", backend) as mounted,
    ):
        Path(mounted.target, "file").touch()


def try_passthrough(folder: Path) -> None:
    """Raises OSError where nothing can be mounted, or the kernel does not offer passthrough."""
    from fuse_mount import device

    fd = device.mount(str(folder / "target"), MountOptions())
    try:
        request = os.read(fd, _REQUEST_MAX)
    finally:
        os.close(fd)
        unmount(folder / "target", lazy=True)
    offers = len(request) >= _INIT.size and _INIT.unpack_from(request)[4] & _PASSTHROUGH
    if not offers:
        raise OSError(0, "the kernel does not offer it")


def main() -> int:
    """Make the trial that the arguments name; returns the exit code."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    try:
        if kind == "passthrough":
            try_passthrough(folder)
        else:
            try_mount("fuse" if kind == "fuse" else "overlayfs", folder)
    except OSError as error:
        complain(describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
