"""The mount program's command line: `python -m fuse_mount -o lowerdir=…[,upperdir=…] TARGET`.

The same that fuse-overlayfs, mount(8) and mount.fuse3 use; `unionfs.options` reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fuse_mount.session import complain, serve
from unionfs.options import OptionError, parse_command


def main(argv: Sequence[str] | None = None) -> int:
    """Mount what the arguments say, those of this process if None; see `serve`."""
    try:
        command = parse_command(sys.argv[1:] if argv is None else argv)
    except OptionError as error:
        complain(error)
        return 1
    return serve(command)


if __name__ == "__main__":
    sys.exit(main())
