"""Change a folder's copy alone, ship the changes as an OCI layer, and apply them elsewhere.

    python examples/ship_layer.py FOLDER COMMAND…

The command works on a union over FOLDER. What it changed is written as a layer archive, unpacked
again as a layer, and listed from there: what another machine with the same FOLDER would show.
Without root, run it in namespaces of its own: unshare --user --map-root-user --mount python …
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from unionfs import LayerStack, markers, mount
from unionfs.layers import apply_layer, changes, write_layer


def main() -> int:
    folder, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        upper, work, target = (Path(name, part) for part in ("upper", "work", "target"))
        for directory in (upper, work, target):
            directory.mkdir()
        archive, again = Path(name, "layer.tar.gz"), Path(name, "again")
        with LayerStack([folder], upper, work) as stack:
            with mount(stack, target) as mounted:
                subprocess.run(command, cwd=mounted.target, check=True)
            with archive.open("wb") as out:
                written = write_layer(stack, out)
        print(f"{written.digest}, {written.size} bytes")
        prefix = markers.TRUSTED if markers.trusted_permitted() else markers.USER
        with archive.open("rb") as blob:
            apply_layer(blob, again, prefix=prefix, below=[folder], digest=written.digest)
        with LayerStack([again, folder]) as stack:
            for change in changes(stack):
                print(change.kind, change.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
