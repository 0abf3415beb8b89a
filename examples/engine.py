"""A small container engine: import an image, change it in a container, run what was committed.

python examples/engine.py ARCHIVE [COMMAND...]

ARCHIVE is an image by `docker save`, `podman save` or `unionmount image export`. Needs root, and
crun or runc; `unshare --user --map-root-user --mount` will do.
"""

import sys
import tempfile
from pathlib import Path

from unionfs.containers import Containers
from unionfs.containers.bundle import RunOptions
from unionfs.containers.runtime import Runtime
from unionfs.images import library
from unionfs.images.exchange import import_images
from unionfs.layers import changes
from unionfs.store import Store


def main(archive: str, *command: str) -> int:
    with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        containers = Containers(store)
        (name,) = import_images(store, archive)[0].names
        print("imported", name.familiar)

        containers.create(str(name), "first")
        with containers.mount("first") as mounted:
            Path(mounted.target, "greeting").write_text("hello from a container\n")
        with store.snapshots.directories("first").open() as stack:
            for change in changes(stack):
                print(change.kind, change.path)
        containers.commit("first", "greeter:1", comment="says hello")

        image = library.find(store, "greeter:1").image()
        print("committed", len(image.manifest.layers), "layers")
        for share in store.usage().images:
            print(f"{share.name}: {share.own} bytes of its own, {share.shared} shared")

        containers.create("greeter:1", "second")
        options = RunOptions(command=command or ("cat", "/greeting"))
        sys.stdout.flush()
        status = Runtime.find(store).run("second", options)
        print("it ended with", status)

        for container in containers.list():
            containers.remove(container.name)
        return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
