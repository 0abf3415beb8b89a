"""ls, cat, explain and diff, of layers without a mount and of mounted unions."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, LAYERS, WRITABLE, Call, complaint, output
from tests.privilege import NO_REDIRECTS, machine_only

Union = Callable[..., list[str]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@pytest.fixture(params=["layers", pytest.param("mount", marks=needs_root)])
def union(request: pytest.FixtureRequest, call: Call) -> Union:
    """By paths in the union: the arguments that name them, and the layers where that is needed."""
    if request.param == "layers":
        return lambda *paths: [*LAYERS, "--upper", "upper", *paths]
    output(call("mount", *WRITABLE, "--backend", "overlayfs", "target"))
    return lambda *paths: [f"target/{path}" for path in paths]


def test_a_directory_is_listed(call: Call, union: Union) -> None:
    assert output(call("ls", *union("etc"))) == "app.conf\nmotd\n"
    assert output(call("ls", *union("."))) == "etc\n"


def test_the_long_list_has_the_layer(call: Call, union: Union, folder: Path) -> None:
    (folder / "base/etc/link").symlink_to("motd")
    os.chmod(folder / "base/etc/motd", 0o640)
    conf, link, motd = output(call("ls", "-l", *union("etc"))).splitlines()
    assert f"{folder}/app " in conf
    assert link.endswith("link -> motd")
    assert motd.startswith("-rw-r-----  0:0 ")
    assert f"{folder}/base " in motd
    assert motd.endswith("  motd")


def test_the_list_for_programs(call: Call, union: Union, folder: Path) -> None:
    entries = json.loads(output(call("ls", "--json", *union("etc"))))
    assert [(entry["name"], entry["type"], entry["layer"]) for entry in entries] == [
        ("app.conf", "file", str(folder / "app")),
        ("motd", "file", str(folder / "base")),
    ]
    assert entries[1]["size"] == len("welcome\n")


def test_files_are_printed_as_they_are(call: Call, union: Union, folder: Path) -> None:
    (folder / "app/binary").write_bytes(b"\xff\0\r\n")
    assert output(call("cat", *union("etc/motd", "etc/app.conf"))) == "welcome\ndebug\n"
    done = subprocess.run(
        [*COMMAND, "cat", *union("binary")], cwd=folder, capture_output=True, check=True
    )
    assert done.stdout == b"\xff\0\r\n"


def test_a_missing_file_does_not_keep_the_next_from_being_printed(call: Call, union: Union) -> None:
    result = call("cat", *union("etc/none", "etc", "etc/motd"))
    assert result.returncode == 1
    assert result.stdout == "welcome\n"
    none, directory = result.stderr.splitlines()
    assert "etc/none: No such file or directory; see: unionmount explain" in none
    assert "etc: Is a directory" in directory


def test_it_is_explained_where_a_file_comes_from(call: Call, union: Union) -> None:
    assert output(call("explain", *union("etc/app.conf", "etc/none"))) == (
        "/etc/app.conf: file\n"
        "  upper/etc/app.conf  not there\n"
        "  app/etc/app.conf    answers\n"
        "  base/etc/app.conf   covered by app/etc/app.conf\n"
        "/etc/none: not in the union\n"
        "  upper/etc/none  not there\n"
        "  app/etc/none    not there\n"
        "  base/etc/none   not there\n"
    )


def test_the_explanation_for_programs(call: Call, union: Union, folder: Path) -> None:
    (explanation,) = json.loads(output(call("explain", "--json", *union("etc/app.conf"))))
    assert (explanation["path"], explanation["type"]) == ("/etc/app.conf", "file")
    assert explanation["layers"][2] == {
        "layer": str(folder / "base"),
        "path": "etc/app.conf",
        "verdict": "covered",
        "by": str(folder / "app/etc/app.conf"),
        "redirect": None,
    }


@machine_only(NO_REDIRECTS)
@needs_root
@pytest.mark.parametrize("backend", ["overlayfs", "fuse"])
def test_what_was_changed_through_a_mount(call: Call, folder: Path, backend: str) -> None:
    output(call("mount", *WRITABLE, "--backend", backend, "target"))
    (folder / "target/etc/motd").unlink()
    (folder / "target/etc/app.conf").chmod(0o600)
    (folder / "target/etc").rename(folder / "target/conf")
    (folder / "target/new").touch()
    expected = "A  /conf\nA  /conf/app.conf\nD  /etc\nA  /new\n"
    assert output(call("diff", "target")) == expected
    assert output(call("diff", "target/conf")) == "A  /conf\nA  /conf/app.conf\n"
    assert "app/etc/app.conf" in output(call("explain", "target/conf/app.conf"))

    output(call("umount", "target"))
    assert output(call("diff", *LAYERS, "--upper", "upper")) == expected


def test_what_a_layer_changes(call: Call, folder: Path) -> None:
    os.utime(folder / "app/etc/app.conf", (1, 1))
    assert output(call("diff", *LAYERS)) == "M  /etc/app.conf  (content, time)\n"
    assert json.loads(output(call("diff", "--json", *LAYERS))) == [
        {"path": "/etc/app.conf", "kind": "modified", "aspects": ["content", "time"]}
    ]


@pytest.mark.parametrize("command", ["ls", "cat", "explain", "diff"])
def test_a_path_in_no_union(call: Call, command: str, folder: Path) -> None:
    message = complaint(call(command, "base"))
    remedy = "mount one, or name a container, or layers by --lower"
    assert message == f"base: no union is mounted there; {remedy}"


def test_names_that_are_no_text(call: Call, folder: Path) -> None:
    for name in (b"line\nbreak", b"byte\xff", b"escape\x1b[31m"):
        (folder / os.fsdecode(b"app/" + name)).touch()
    done = subprocess.run(
        [*COMMAND, "ls", "--lower", "app"], cwd=folder, capture_output=True, check=True
    )
    assert done.stdout == b"byte\xff\nescape\\x1b[31m\netc\nline\\nbreak\n"
    names = [entry["name"] for entry in json.loads(output(call("ls", "--json", "--lower", "app")))]
    assert os.fsdecode(b"byte\xff") in names


def test_plain_unless_a_terminal_wants_colour(call: Call, folder: Path) -> None:
    command = [*COMMAND, "explain", *LAYERS, "etc"]
    for plain, variables in ((False, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"})):
        leader, follower = os.openpty()
        env = {"PATH": os.environ["PATH"], "TERM": "xterm", **variables}
        subprocess.run(command, cwd=folder, stdout=follower, env=env, check=True)
        os.close(follower)
        shown = os.read(leader, 1 << 16)
        os.close(leader)
        assert b"answers" in shown
        assert (b"\x1b[3" not in shown) == plain, variables
    assert "\x1b" not in output(call("explain", *LAYERS, "etc"))


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_reader_that_has_enough(folder: Path, size: int) -> None:
    """As `unionmount cat … | head`: no traceback, no complaint."""
    (folder / "app/file").write_bytes(bytes(size))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "cat", "--lower", "app", "file"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
