"""Replay a build as image builders do: each step on the layers of those before, in one of its own.

    python examples/replay_build.py FOLDER STEP…

A STEP is a shell command. FOLDER gets a directory for each step's layer, and a step whose layer is
already there is not run again. Without root: unshare --user --map-root-user --mount python …
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from unionfs import LayerStack, mount
from unionfs.layers import changes


def main() -> int:
    folder, *steps = sys.argv[1:]
    base = Path(folder, "empty")
    base.mkdir(parents=True, exist_ok=True)
    layers = [base]  # top first, as everywhere
    history = hashlib.sha256()
    for step in steps:
        history.update(step.encode() + b"\0")
        layer = Path(folder, history.hexdigest()[:12])
        print(f"{step}\n  layer {layer.name}{' (cached)' if layer.exists() else ''}")
        if not layer.exists() and not run(step, layers, layer):
            print("  failed: its layer is thrown away", file=sys.stderr)
            return 1
        with LayerStack([layer, *layers]) as stack:
            for change in changes(stack):
                print(f"  {change.kind} {change.path}")
        layers.insert(0, layer)
    return 0


def run(step: str, below: list[Path], layer: Path) -> bool:
    """Run a step on the layers below; the layer is there, in one rename, only if it succeeded."""
    part = layer.with_suffix(".part")
    upper, work, target = part / "upper", part / "work", part / "target"
    for directory in (upper, work, target):
        directory.mkdir(parents=True)
    try:
        with LayerStack(below, upper, work) as stack, mount(stack, target) as mounted:
            done = subprocess.run(["sh", "-ec", step], cwd=mounted.target, check=False)
        if done.returncode == 0:
            upper.rename(layer)
        return done.returncode == 0
    finally:
        subprocess.run(["rm", "-r", part], check=True)


if __name__ == "__main__":
    sys.exit(main())
