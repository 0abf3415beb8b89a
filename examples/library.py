"""A union without a mount: read, write and explain it in this process. Needs no root.

python examples/library.py
"""

import tempfile
from pathlib import Path

from unionfs import LayerStack, UnionFS, explain
from unionfs.layers import changes


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for layer in ("app", "base", "upper", "work"):
            (folder / layer).mkdir()
        (folder / "base/greeting").write_text("hello from base\n")
        (folder / "base/obsolete").write_text("old\n")
        (folder / "app/program").write_text("print('hi')\n")

        lower = [folder / "app", folder / "base"]  # top first
        with LayerStack(lower, folder / "upper", folder / "work") as stack:
            union = UnionFS(stack)
            print("union:", sorted(union.listdir("/")))

            with union.open("greeting", "a") as file:  # copied up, then written
                file.write("and from the union\n")
            union.unlink("obsolete")  # a whiteout in upper
            union.makedirs("var/log")

            print("union:", sorted(union.listdir("/")))
            print(union.read_text("greeting"), end="")
            for view in explain(stack, "greeting").layers:
                print(f"  {Path(view.layer.path).name}: {view.verdict}")
            for change in changes(stack):
                print(change.kind, change.path, *change.aspects)

        print("base still says:", (folder / "base/greeting").read_text(), end="")


if __name__ == "__main__":
    main()
