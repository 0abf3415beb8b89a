"""Builds of an ordinary user: the same, in a user namespace of his own."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, UNPRIVILEGED
from tests.containers.test_runtime import UNIFIED
from unionfs.images.exchange import export_images
from unionfs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the test makes namespaces")

DOCKERFILE = """
FROM box
COPY --chmod=750 program /bin/program
RUN --mount=target=/context --mount=type=cache,target=/cache --mount=type=tmpfs,target=/memory \\
    cat /context/program > /cache/kept && echo > /memory/new
RUN <<EOF
#!/bin/sh
test ! -e /context && test ! -e /memory
EOF
RUN echo "made by $(id -u)" > /made && rm /app
CMD cat /made
"""


def test_an_ordinary_user_builds_and_runs(store: Store, tmp_path: Path) -> None:
    export_images(store, ["box"], str(tmp_path / "box.tar"))
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "program").write_text("#!/bin/sh\n")

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*UNIFIED, *UNPRIVILEGED, *COMMAND, *arguments],
            env=os.environ | {"UNIONMOUNT_STORE": str(tmp_path / "own")},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("image", "import", str(tmp_path / "box.tar"))
    assert call("build", "--runtime=crun", "-t", "mine", str(context)).startswith("sha256:")
    assert call("run", "--rm", "--runtime=crun", "mine") == "made by 0\n"
    assert call("store", "verify") == "all is as it should be\n"
