"""One program, two callers: a person's subcommands, and the command line of a mount program."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Call, complaint, output
from unionfs.cli.__main__ import COMMANDS, is_mount_command


@pytest.mark.parametrize(
    "line",
    [
        "-o lowerdir=a:b,upperdir=u,workdir=w target",
        "-olowerdir=a target",
        "-f -o lowerdir=a target",
        "--debug -o lowerdir=a target",
        "--log=file -o lowerdir=a target",
        "unionmount target -o lowerdir=a,dev,suid",
        "none /target -o rw,lowerdir=a,dev,suid",
    ],
)
def test_a_mount_programs_command_lines(line: str) -> None:
    assert is_mount_command(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "-h",
        "--version",
        "-V",
        "--lower a target",
        "mount -o lowerdir=a target",
        "mount --lower a target -o volatile",
        "list --all",
        "mistyped target",
    ],
)
def test_a_persons_command_lines(line: str) -> None:
    assert not is_mount_command(line.split())


def test_the_mount_program_starts_without_what_only_people_need() -> None:
    """Nothing of click or rich is imported on the way to `fuse_mount`."""
    script = """if True:
        import sys
        from unionfs.cli.__main__ import main
        sys.argv = ["unionmount", "-o", "lowerdir=/does/not/exist", "/"]
        assert main() == 1
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"click", "rich"}))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert "/does/not/exist" in done.stderr


def test_help_names_every_command(call: Call) -> None:
    shown = output(call("--help"))
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "..." not in shown.partition("\nMount")[2].replace("TARGET...", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(call: Call, command: str) -> None:
    assert f"Usage: unionmount {command} " in output(call(command, "--help"))


def test_help_waits_for_no_library_that_it_does_not_need() -> None:
    script = """if True:
        import sys
        from unionfs.cli.app import run
        run(["--help"])
        print({"rich", "trio", "pyfuse3"} & set(sys.modules), file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "set()\n"


def test_version(call: Call) -> None:
    assert output(call("--version")) == output(call("-V"))
    assert output(call("-V")).startswith("unionmount 0.")


def test_mistakes_are_one_line(call: Call) -> None:
    assert "No such command 'mont'" in complaint(call("mont"))
    assert "unionmount mount --help" in complaint(call("mount"))
    assert "No such option" in complaint(call("mount", "--nope", "target"))
    assert call("mount").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(call: Call, shell: str) -> None:
    assert "_UNIONMOUNT_COMPLETE" in output(call("completion", shell))


def test_bash_is_offered_the_commands(call: Call, folder: Path) -> None:
    asked = {
        "_UNIONMOUNT_COMPLETE": "bash_complete",
        "COMP_WORDS": "unionmount m",
        "COMP_CWORD": "1",
    }
    before = ["env", *(f"{name}={value}" for name, value in asked.items())]
    assert output(call(before=before)) == "plain,mount\n"
