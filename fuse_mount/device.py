"""/dev/fuse, mounted by ourselves: libfuse would answer INIT before anyone could ask for more.

Rules: Documentation/filesystems/fuse.rst; mount(2), fusermount3(1).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from unionfs import mount_api
from unionfs.mounting import FUSE_TYPE
from unionfs.options import MountOptions
from unionfs.overlayfs import SOURCE, MountError, attributes

_DEVICE: Final = "/dev/fuse"
_READ_AHEAD: Final = 1024
"""KiB: the data of one request."""
_SECURITY: Final = ("context", "fscontext", "defcontext", "rootcontext")

_REMEDIES: Final = {
    errno.ENOENT: "load the kernel's module (modprobe fuse), or give the container the device",
    errno.ENXIO: "load the kernel's module: modprobe fuse",
    errno.ENODEV: "load the kernel's module: modprobe fuse",
    errno.EACCES: "let users read and write it, as udev does: chmod 666 /dev/fuse",
    errno.EPERM: "let this container use the device",
}


def mount(target: str, options: MountOptions) -> int:
    """Mount a FUSE filesystem at the directory target; its /dev/fuse descriptor.

    Nothing at target answers until INIT was answered on it. Without the privilege to mount,
    fusermount3 does it.

    Raises MountError, with nothing mounted.
    """
    device = connect()
    asked = attributes(options)
    source = options.fsname or SOURCE
    # The kernel's security modules know quotes, and nothing else holds a comma.
    words = (
        name if value is None else f'{name}="{value}"' if name in _SECURITY else f"{name}={value}"
        for name, value in parameters(device, target, options).items()
    )
    try:
        mount_api.mount(source, target, FUSE_TYPE, asked, os.fsencode(",".join(words)))
    except PermissionError:
        os.close(device)
        return _mount_by_fusermount(target, source, asked, options)
    except OSError as error:
        os.close(device)
        message = f"FUSE: cannot mount: {error.strerror}"
        raise MountError(error.errno, message, target) from error
    return device


def connect() -> int:
    """/dev/fuse, opened. Raises MountError."""
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.EIO
        words = [os.strerror(number), *filter(None, [_REMEDIES.get(number)])]
        raise MountError(number, "; ".join(words), _DEVICE) from error


def read_ahead(number: int) -> None:
    """Have the kernel ask for more than its 128 KiB at once of what is read on, if we may say so.

    number: the st_dev of a mount whose INIT was answered: that answer could only say less.
    """
    place = f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb"
    with suppress(OSError), open(place, "w", encoding="ascii") as setting:
        setting.write(str(_READ_AHEAD))


def parameters(device: int, target: str, options: MountOptions) -> dict[str, str | None]:
    """What fs/fuse/inode.c and the security modules are told; None: a word without a value."""
    return {
        "fd": str(device),
        "rootmode": f"{stat.S_IFMT(os.stat(target).st_mode):o}",
        "user_id": str(os.geteuid()),
        "group_id": str(os.getegid()),
        **dict.fromkeys(_shared_parameters(options)),
        **{name: value for name in _SECURITY if (value := getattr(options, name))},
    }


def _shared_parameters(options: MountOptions) -> list[str]:
    """What mount(2) and fusermount3 are told alike.

    Of allow_root the kernel knows nothing: it lets everyone in, and libfuse refuses the others.
    """
    return ["default_permissions", *["allow_other"] * (options.allow_other or options.allow_root)]


def _mount_by_fusermount(
    target: str, source: str, asked: set[str], options: MountOptions
) -> int:
    """As an ordinary user: the program mounts, and sends the descriptor through a socket."""
    import socket
    import subprocess

    words = [*_shared_parameters(options), *sorted(asked)]
    words += [f"{name}={getattr(options, name)}" for name in _SECURITY if getattr(options, name)]
    words += [f"fsname={source}", f"subtype={SOURCE}"]
    text = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            child = subprocess.run(
                ["fusermount3", "-o", text, "--", target],
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            message = "users mount by the program fusermount3; install the package fuse3"
            raise MountError(errno.EPERM, message, target) from None
        if child.returncode:
            lines = os.fsdecode(child.stderr).strip().splitlines() or ["fusermount3 failed"]
            raise MountError(errno.EPERM, lines[-1], target)
        _, (device,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(device, False)
    return device
