"""What a build holds, with a C compiler and without one."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "unionfs", "fuse_mount")


def build(folder: Path, **variables: str) -> tuple[Path, str]:
    """Build a copy of the sources: where the packages are, and what was printed."""
    for name in SOURCES:
        source, copy = REPOSITORY / name, folder / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(source, copy, ignore=ignore) if source.is_dir() else shutil.copy(
            source, copy
        )
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "built"],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / "built", done.stderr


def run(built: Path, script: str) -> str:
    """What a script prints that imports the packages as built, and no installed ones of ours."""
    path = os.pathsep.join([str(built), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-P", "-S", "-c", script],  # without the hooks of an editable installation
        env=os.environ | {"PYTHONPATH": path, "UNIONMOUNT_PURE": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


WHICH = "from unionfs import system; print(system.__file__, system.NATIVE)"


def test_with_a_compiler(tmp_path: Path) -> None:
    built, printed = build(tmp_path)
    assert "NOT built" not in printed
    assert run(built, WHICH) == f"{built}/unionfs/system.py True\n"


def test_without_a_compiler(tmp_path: Path) -> None:
    built, printed = build(tmp_path, CC="/nowhere/cc")
    assert "unionmount: the C extension was NOT built: " in printed
    assert "apt install gcc python3-dev" in printed
    assert run(built, WHICH) == f"{built}/unionfs/system.py False\n"
    (tmp_path / "layer/folder").mkdir(parents=True)
    script = f"from unionfs.cli.app import run; run(['ls', '--lower', '{tmp_path}/layer'])"
    assert run(built, script) == "folder\n"


def test_every_module_is_packaged(tmp_path: Path) -> None:
    built, _ = build(tmp_path)
    for package in ("unionfs", "fuse_mount"):
        wanted = {path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*.py*")}
        wanted = {path for path in wanted if path.suffix in (".py", ".pyi", ".typed")}
        assert {path for path in wanted if not (built / path).exists()} == set()


@pytest.mark.parametrize("name", ["unionfs", "fuse_mount"])
def test_what_is_imported_is_a_dependency(name: str) -> None:
    """Of the packages that are not Python's own."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    allowed = {text.partition(">")[0].replace("-", "_") for text in project["dependencies"]}
    imported = set()
    for path in (REPOSITORY / name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    ours = {"unionfs", "fuse_mount", "benchmarks"}
    assert imported - set(sys.stdlib_module_names) - ours <= allowed
