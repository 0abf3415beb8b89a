"""Each example runs as its first lines say, and says what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.conftest import busybox_files
from tests.images.conftest import MakeImage, make_image
from tests.store.conftest import make_layer
from unionfs.images.exchange import export_images
from unionfs.store import Store

__all__ = ["make_image", "make_layer"]

EXAMPLES = Path(__file__).parents[1] / "examples"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
# Both ways in which the examples say that they can be run.
AS_ROOT = ("unshare", "--mount")
AS_USER = ("unshare", "--user", "--map-root-user", "--mount")


def run(*command: str | Path, check: bool = True) -> str:
    """What an example prints; PATH leads to this environment's commands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == check, done.stderr
    return done.stdout


def python(name: str, *arguments: str | Path) -> tuple[str | Path, ...]:
    return (sys.executable, EXAMPLES / name, *arguments)


@needs_root
@pytest.mark.parametrize("how", [(), AS_USER[:-1]], ids=["root", "user"])
def test_the_demo_shows_both_backends_agree(how: tuple[str, ...]) -> None:
    shown = run(*how, EXAMPLES / "demo.sh")
    for heading in ("Three layers", "Mounted by overlayfs", "Mounted by fuse", "The same"):
        assert f"== {heading} ==" in shown
    assert shown.count("M  /etc/motd  (content, time)\nA  /etc/new\nD  /usr/bin/tool\n") == 2
    assert shown.endswith("Both backends showed the same union and left the same layer.\n")
    assert " /tmp/tmp." not in Path("/proc/self/mountinfo").read_text()


def test_the_library_without_a_mount() -> None:
    shown = run(*python("library.py"))
    assert "union: ['greeting', 'obsolete', 'program']" in shown
    assert "union: ['greeting', 'program', 'var']" in shown
    assert "  upper: answers\n  app: absent\n  base: covered\n" in shown
    assert "deleted /obsolete" in shown
    assert shown.endswith("base still says: hello from base\n")


@needs_root
@pytest.mark.parametrize("how", [AS_ROOT, AS_USER], ids=["root", "user"])
def test_the_sandbox_changes_nothing(tmp_path: Path, how: tuple[str, ...]) -> None:
    (tmp_path / "kept").write_text("precious")
    shown = run(*how, *python("sandbox.py", tmp_path, "sh", "-c", "rm kept; echo > new"))
    assert shown.endswith("\ndeleted /kept\nadded /new\n")
    assert (tmp_path / "kept").read_text() == "precious"
    assert os.listdir(tmp_path) == ["kept"]


@needs_root
@pytest.mark.parametrize("how", [AS_ROOT, AS_USER], ids=["root", "user"])
def test_a_layer_is_shipped(tmp_path: Path, how: tuple[str, ...]) -> None:
    (tmp_path / "kept").write_text("precious")
    shown = run(*how, *python("ship_layer.py", tmp_path, "sh", "-c", "rm kept; echo > new"))
    assert shown.startswith("sha256:")
    assert shown.endswith("\ndeleted /kept\nadded /new\n")
    assert os.listdir(tmp_path) == ["kept"]


@needs_root
@pytest.mark.parametrize("how", [AS_ROOT, AS_USER], ids=["root", "user"])
def test_a_build_is_replayed_from_where_it_changed(tmp_path: Path, how: tuple[str, ...]) -> None:
    steps = ["mkdir etc; echo one > etc/conf", "rm etc/conf; echo two > etc/other"]
    shown = run(*how, *python("replay_build.py", tmp_path, *steps))
    assert "  added /etc\n  added /etc/conf\n" in shown
    assert "  deleted /etc/conf\n  added /etc/other\n" in shown
    assert "(cached)" not in shown

    shown = run(*how, *python("replay_build.py", tmp_path, steps[0], "false"), check=False)
    assert shown.count("(cached)") == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


@needs_root
@pytest.mark.parametrize("how", [(), AS_USER], ids=["root", "user"])
def test_the_engine_runs_what_it_committed(
    tmp_path: Path, make_image: MakeImage, how: tuple[str, ...]
) -> None:
    with Store(tmp_path / "store") as store:
        make_image(store, "box", busybox_files())
        export_images(store, ["box"], str(tmp_path / "box.tar"))
    shown = run(*how, *python("engine.py", tmp_path / "box.tar"))
    assert "imported box:latest\nadded /greeting\ncommitted 2 layers\n" in shown
    assert "docker.io/library/greeter:1: " in shown
    assert shown.endswith("hello from a container\nit ended with 0\n")
