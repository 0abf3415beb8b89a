"""Run a command on a folder without changing it, and see what it would have changed.

    python examples/sandbox.py FOLDER COMMAND…

The command sees FOLDER, and may do with it what it likes: a union over it is its current folder.
Without root, run it in namespaces of its own: unshare --user --map-root-user --mount python …
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from unionfs import LayerStack, mount
from unionfs.layers import changes


def main() -> int:
    folder, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        upper, work, target = (Path(name, part) for part in ("upper", "work", "target"))
        for directory in (upper, work, target):
            directory.mkdir()
        with LayerStack([folder], upper, work) as stack:
            with mount(stack, target) as mounted:
                print(f"{folder}, by {mounted.backend} on {mounted.target}", flush=True)
                code = subprocess.run(command, cwd=mounted.target, check=False).returncode
            for change in changes(stack):
                print(change.kind, change.path)
    return code


if __name__ == "__main__":
    sys.exit(main())
