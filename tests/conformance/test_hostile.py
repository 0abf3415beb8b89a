"""Layers made to do harm: nothing outside of them is reached, nothing of other layers hidden.

docs/security.md says what is promised; the tests here are its proof. Through every door, the
kernel's too where it promises the same.
"""

import os
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.doors import DOORS, Door, Layers, confined, library
from tests.privilege import NO_REDIRECTS, machine_only
from tests.tree import MARKS, Tree, build, directory, error_name, file, snapshot, symlink, whiteout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and sets marks")

every_door = pytest.mark.parametrize("name", DOORS)
SECRET = b"of the host"


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    """And beside them a folder of the host, which no union may show."""
    layers = Layers(tmp_path / "union")
    layers.make()
    build(str(tmp_path / "host"), {"secret": file(SECRET), "folder/secret": file(SECRET)})
    return layers


def _host(layers: Layers) -> Path:
    return layers.base.parent / "host"


def _read(door: Door, path: str) -> bytes | str:
    try:
        with open(door.os_open(path, os.O_RDONLY), "rb") as stream:
            return stream.read()
    except OSError as error:
        return error_name(error)


@every_door
def test_symlinks_end_in_the_union(layers: Layers, name: str) -> None:
    """Where the union is a process' root, as it always is for the library."""
    host = _host(layers)
    tree: Tree = {
        "absolute": symlink(f"{host}/secret"),
        "climbing": symlink("../" * 40 + f"{host}/secret"),
        "folder": symlink(f"{host}/folder"),
        "kernel": symlink("/proc/self/root/etc/passwd"),
        "loop": symlink("loop"),
        f"{host}/secret".lstrip("/"): file(b"of the union"),
    }
    build(layers.lower[0], tree)
    with DOORS[name](layers) as door, confined(door):
        assert _read(door, "absolute") == b"of the union"
        assert _read(door, "climbing") == b"of the union"
        assert _read(door, "folder/secret") == "ENOENT"
        assert _read(door, "kernel") == "ENOENT"
        assert _read(door, "loop") == "ELOOP"
        with pytest.raises(FileNotFoundError):
            os.close(door.os_open("folder/new", os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(host / "folder")) == ["secret"]


REDIRECTS = ("/../host/folder", "..", ".", "/", "//host", "/way", "way", "/way/deep", "x" * 3000)


@every_door
@pytest.mark.parametrize("upper", [False, True])
def test_a_redirect_stays_in_the_layers(layers: Layers, name: str, upper: bool) -> None:
    """By a symlink neither: `way` leads to the host's folder."""
    way = {"way": symlink(str(_host(layers) / "folder")), "innocent": file(b"fine")}
    build(layers.lower[2], way)
    traps = {
        f"trap{number}": directory(xattrs={MARKS + "redirect": os.fsencode(target)})
        for number, target in enumerate(REDIRECTS)
    }
    build(layers.upper if upper else layers.lower[0], traps)
    with DOORS[name](layers) as door:
        seen = snapshot(door)
        shown = {path.partition("/")[2] for path in seen if path.startswith("trap")}
        assert shown <= {"", "innocent", "way"}, "at most the root, by its own name"
        assert SECRET not in [getattr(what, "content", None) for what in seen.values()]
        assert _read(door, "innocent") == b"fine"
        for trap in traps:
            with suppress(OSError):
                os.close(door.os_open(f"{trap}/new", os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(_host(layers) / "folder")) == ["secret"]


@machine_only(NO_REDIRECTS)
@every_door
def test_redirects_that_lead_to_each_other_end(layers: Layers, name: str) -> None:
    """Each leads on in the layers below its own."""
    for number, (here, there) in enumerate([("a", "/b"), ("b", "/a"), ("a", "/b")]):
        mark = {MARKS + "redirect": os.fsencode(there)}
        build(
            layers.lower[number],
            {here: directory(xattrs=mark), f"{here}/{number}": file(), f"{here}/a": directory()},
        )
    with DOORS[name](layers) as door:
        assert {entry.name for entry in door.scandir("a")} == {"0", "1", "2", "a"}


SMUGGLED = [
    (prefix + mark, value)
    for prefix in (MARKS, "user.overlay.", "user.fuseoverlayfs.", f"{MARKS}overlay.")
    for mark, value in (("opaque", b"y"), ("redirect", b"/other"), ("whiteout", b"y"))
]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, "") for name in DOORS), *((name, "userxattr") for name in DOORS if name != "kernel")],
)
def test_a_mark_that_a_program_sets_is_none(layers: Layers, name: str, options: str) -> None:
    """It reads back as it was set, or is refused, and hides nothing, in the next mount neither."""
    layers = Layers(layers.base, more=options)
    build(layers.lower[0], {"d/file": file(b"kept"), "empty": file(), "other/x": file()})
    with DOORS[name](layers) as door:
        for mark, value in SMUGGLED:
            for path in ("d", "empty"):
                try:
                    door.setxattr(path, mark, value)
                except OSError:
                    continue
                assert door.getxattr(path, mark) == value, mark
    with DOORS[name](layers) as door:
        assert {entry.name for entry in door.scandir("d")} == {"file"}
        assert _read(door, "d/file") == b"kept"
        assert _read(door, "empty") == b""


@pytest.mark.parametrize("name", [name for name in DOORS if name != "kernel"])
def test_a_name_that_a_program_makes_is_no_whiteout(layers: Layers, name: str) -> None:
    build(layers.lower[0], {"d/file": file(b"kept")})
    with DOORS[name](layers) as door:
        door.mkdir("new")
        for path in ("d/.wh.file", "d/.wh..wh..opq", ".wh.d"):
            for make in (
                lambda path: os.close(door.os_open(path, os.O_CREAT | os.O_WRONLY)),
                door.mkdir,
                door.mkfifo,
                lambda path: door.symlink("x", path),
                lambda path: door.link("d/file", path),
                lambda path: door.rename("new", path),
            ):
                with pytest.raises(OSError, match=r"Invalid argument|are whiteouts"):
                    make(path)
        with pytest.raises(PermissionError):
            door.mknod("d/device", stat.S_IFCHR | 0o600, 0)
    with library(layers) as door:
        assert _read(door, "d/file") == b"kept"


@every_door
def test_a_layer_hides_no_more_than_it_says(layers: Layers, name: str) -> None:
    """Whiteouts of other kinds, of names that cannot be, and in the lowest layer."""
    longest = "n" * 255
    hostile: Tree = {
        "d": directory(xattrs={MARKS + "whiteout": b"y"}),
        "d/x": file(b"x", xattrs={MARKS + "whiteout": b"y"}),
        longest: whiteout(),
    }
    build(layers.lower[0], hostile)
    build(layers.lower[1], {"d/file": file(b"2"), longest: file()})
    build(layers.lower[2], {"d/x": whiteout(), "last": file(b"3")})
    with DOORS[name](layers) as door:
        assert {entry.name for entry in door.scandir(".")} >= {"d", "last"}
        assert _read(door, "d/file") == b"2"
        assert _read(door, "d/x") == b"x"
        assert _read(door, longest) == "ENOENT"


_MARKS = st.sampled_from(
    ["opaque", "redirect", "origin", "impure", "metacopy", "nlink", "whiteout", "uuid", "upper"]
)
_NOISE = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"y", b"x", b"/", b"/d", b"d/../..", b"\0", b"U+1", b"L-9", b"\0\xfb\xff"]),
    st.integers(5, 255).map(lambda size: bytes([0, 0xFB, size, 0]) + b"\1" * (size - 4)),
)


@settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    noise=st.dictionaries(st.tuples(st.sampled_from(["d", "file", "d/e"]), _MARKS), _NOISE),
    upper=st.booleans(),
)
def test_noise_in_marks(
    tmp_path_factory: pytest.TempPathFactory, noise: dict[tuple[str, str], bytes], upper: bool
) -> None:
    """What carries it may be refused, by an errno; the files beside it are as they were."""
    layers = Layers(tmp_path_factory.mktemp("noise"))
    layers.make()
    below: Tree = {"d/e/inner": file(b"in"), "file": file(b"low"), "beside/x": file(b"fine")}
    build(layers.lower[1], below)
    root = layers.upper if upper else layers.lower[0]
    build(root, {"d/e/mine": file(b"mine"), "file": file(b"top")})
    for (path, mark), value in noise.items():
        os.setxattr(f"{root}/{path}", MARKS + mark, value)
    with library(layers) as door:
        snapshot(door)
        for change in (
            lambda: door.chmod("d/e", 0o700),
            lambda: door.rename("d", "moved"),
            lambda: door.unlink("file"),
            lambda: door.link("moved/e/mine", "linked"),
        ):
            with suppress(OSError):
                change()
        assert _read(door, "beside/x") == b"fine"


def test_noise_in_marks_by_fuse(layers: Layers) -> None:
    """The program goes on, and finds nothing in that to log."""
    build(layers.lower[1], {"beside/x": file(b"fine")})
    for number, mark in enumerate(["opaque", "redirect", "origin", "metacopy", "nlink", "uuid"]):
        for value in (b"", b"\0\xfb\xff\0" * 9, b"/../..", b"x" * 2000):
            tree = {f"{number}-{len(value)}": directory(xattrs={MARKS + mark: value})}
            build(
                layers.lower[0],
                tree | {f"f{number}-{len(value)}": file(b"x", xattrs={MARKS + mark: value})},
            )
    with DOORS["fuse"](layers) as door:
        for entry in door.scandir("."):
            for call in (door.lstat, door.listxattr, door.scandir, door.unlink, door.rmdir):
                with suppress(OSError):
                    call(f"./{entry.name}") if entry.name != "beside" else None
        assert _read(door, "beside/x") == b"fine"
    assert layers.complaints() == []


@pytest.mark.parametrize("name", ["kernel", "fuse", "fuse-pure"])
def test_a_user_gains_no_right(layers: Layers, name: str) -> None:
    """What a layer lets no other user do, a mount of root's lets them do neither."""
    for path in (layers.base.parent, *layers.base.parent.parents):
        if path.stat().st_mode & 0o1 == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o1)
    tree: Tree = {
        "private": file(SECRET, 0o600),
        "closed": directory(0o700),
        "closed/inner": file(SECRET),
        "readable": file(b"fine", 0o644),
    }
    build(layers.lower[0], tree)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def refused(*command: str) -> bool:
        done = subprocess.run([*user, *command], cwd="/", capture_output=True, check=False)
        assert SECRET not in done.stdout
        return done.returncode != 0

    with DOORS[name](layers):
        for command in (
            ["cat", "private"],
            ["cat", "closed/inner"],
            ["ls", "closed"],
            ["touch", "new"],
            ["rm", "-f", "readable"],
            ["mv", "readable", "moved"],
            ["chmod", "666", "private"],
            ["chown", "65534", "private"],
            ["setfattr", "-n", "user.x", "-v", "1", "readable"],
            ["mknod", "null", "c", "1", "3"],
            ["truncate", "-s", "0", "readable"],
            ["ln", "private", "linked"],
        ):
            arguments = [
                f"{layers.target}/{word}"
                if word in (*tree, "new", "moved", "null", "linked")
                else word
                for word in command
            ]
            assert refused(*arguments), command
        assert not refused("cat", f"{layers.target}/readable")
