"""Where `unionmount` starts: a command for people, or a mount program in fuse-overlayfs' place.

podman and mount(8) call it with a mount's command line (`-o lowerdir=…,upperdir=… TARGET`), which
is handed to `fuse_mount` before anything of the command for people is imported: a container waits
for that start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

COMMANDS: Final = {
    "mount": "mounts",
    "umount": "mounts",
    "list": "mounts",
    "ls": "reading",
    "cat": "reading",
    "explain": "reading",
    "diff": "reading",
    "fsck": "fsck",
    "image": "images",
    "pull": "images",
    "push": "images",
    "layer": "layer",
    "build": "build",
    "run": "containers",
    "logs": "containers",
    "stop": "containers",
    "create": "containers",
    "containers": "containers",
    "commit": "containers",
    "remove": "containers",
    "store": "store",
    "snapshot": "store",
    "doctor": "doctor",
    "bench": "bench",
    "completion": "completion",
}
"""The subcommands, in the order of `--help`, and the module below `unionfs.cli` that has each."""

_ANSWERED_HERE: Final = ("-h", "--help", "-V", "--version")
_MOUNT_PROGRAMS_OWN: Final = ("--debug", "--log")


def is_mount_command(arguments: Sequence[str]) -> bool:
    """Whether the arguments are those of a mount program, as fuse-overlayfs takes them.

    A subcommand comes first where there is one, so a source in fstab must not be called like one.
    """
    first = arguments[0] if arguments else ""
    if first in COMMANDS or any(word in _ANSWERED_HERE for word in arguments):
        return False
    if first.startswith("--"):
        return first.partition("=")[0] in _MOUNT_PROGRAMS_OWN
    return first.startswith("-") or any(word.startswith("-o") for word in arguments)


def main() -> int:
    """Run the command that sys.argv holds; returns the exit code."""
    arguments = sys.argv[1:]
    if is_mount_command(arguments):
        try:
            from fuse_mount.__main__ import main as mount_by_fuse
        except ImportError as error:
            print(f"unionmount: FUSE: {error}; install unionmount anew", file=sys.stderr)
            return 1
        return mount_by_fuse(arguments)

    from unionfs.cli.app import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
