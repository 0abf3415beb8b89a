"""The mount program's life: what its caller sees, how it ends, what it leaves behind (nothing)."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

import pytest

from tests.privilege import NO_DEVICES, machine_only
from unionfs import mount_api

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and makes users")

_PROGRAM: Final = [sys.executable, "-m", "fuse_mount"]
_USER: Final = 65534
_PATIENCE: Final = 30  # seconds after which a process or the kernel counts as hung

# /dev/fuse for everyone, and a Python that an ordinary user can run though it lies in a closed
# home folder: all seen in a private mount namespace alone.
_FOR_USERS: Final = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
cp -a /dev/fuse /run/fuse
chmod 666 /run/fuse
mount --bind /run/fuse /dev/fuse
for folder in "$1" "$2" "$3"; do
    closed=/$(echo "$folder" | cut -d/ -f2)
    if [ "$(stat -c %a "$closed" | tail -c 2)" = 0 ]; then
        mkdir -p "/run/kept$folder"
        mount --bind "$folder" "/run/kept$folder"
    fi
done
for closed in $(ls /run/kept 2>/dev/null); do mount -t tmpfs -o mode=755 tmpfs "/$closed"; done
for folder in "$1" "$2" "$3"; do
    [ -d "$folder" ] || { mkdir -p "$folder"; mount --bind "/run/kept$folder" "$folder"; }
done
shift 3
exec "$@"
"""


@final
class Union:
    """A lower, upper and work directory, and a target, below one folder; and the program on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("lower", "upper", "work", "target"):
            (folder / name).mkdir()
        (folder / "lower/file").write_text("lower\n")

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def options(self) -> str:
        """Of a writable union; the paths are relative to the folder."""
        return "lowerdir=lower,upperdir=upper,workdir=work"

    def command(self, *arguments: str, options: str | None = None) -> list[str]:
        """The command line, for this folder as the current one."""
        text = self.options if options is None else options
        return [*_PROGRAM, "--log", "log", *arguments, "-o", text, "target"]

    def mount(self, *arguments: str, options: str | None = None) -> int:
        """Mount in the background; the pidfd of the process that answers."""
        done = self.run(self.command(*arguments, options=options))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (pid,) = self.processes()
        return os.pidfd_open(pid)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and to the end of its output."""
        return subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )

    def processes(self) -> list[int]:
        """The programs that have a file of this union open."""
        found = set()
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):  # it has been closed meanwhile
                if os.readlink(link) == str(self.log):
                    found.add(int(link.parts[2]))
        return [*found - {os.getpid()}]

    def mounted(self) -> list[str]:
        """The lines of the table of mounts about the target."""
        return [line for line in _table() if f" {self.target} " in line]

    def complaints(self) -> list[str]:
        """What the log has above information."""
        return [line for line in self.log.read_text().splitlines() if " INFO " not in line]


def _table() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


@pytest.fixture
def union() -> Iterator[Union]:
    """In a folder that ordinary users may enter too, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="session-"))
    folder.chmod(0o755)
    yield Union(folder)
    for line in _table():
        if str(folder) in line:
            mount_api.umount(line.split()[4], lazy=True)
    shutil.rmtree(folder)


def _await_end(pidfd: int) -> None:
    """Until the process has ended."""
    assert select.select([pidfd], [], [], _PATIENCE)[0], "the process does not end"
    os.close(pidfd)


def _await_mounted(union: Union, mounted: bool) -> None:
    """Until the target is, or is no longer, mounted: the kernel tells of every change."""
    deadline = time.monotonic() + _PATIENCE
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        changes = select.poll()
        changes.register(table, select.POLLPRI)
        while bool(union.mounted()) != mounted:
            assert time.monotonic() < deadline, f"not {mounted=}"
            changes.poll(_PATIENCE * 1000)


@contextmanager
def _foreground(
    union: Union, *arguments: str, options: str | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """The program with -f, once it is mounted."""
    command = union.command("-f", *arguments, options=options)
    with subprocess.Popen(command, cwd=union.folder, stderr=subprocess.PIPE, text=True) as child:
        try:
            _await_mounted(union, True)
            yield child
        finally:
            child.kill()


def test_in_the_background_it_answers_when_its_caller_goes_on(union: Union) -> None:
    """The caller's pipes have ended by then, or `run` would wait for ever."""
    pidfd = union.mount()
    assert (union.target / "file").read_text() == "lower\n"
    (union.target / "file").write_text("upper\n")
    assert (union.folder / "upper/file").read_text() == "upper\n"
    mount_api.umount(str(union.target), lazy=False)
    _await_end(pidfd)
    assert union.complaints() == []


def test_the_process_holds_nothing_of_its_callers(union: Union) -> None:
    """Neither the folder, nor the streams, nor a descriptor handed down, nor a limit on its own."""
    ours, theirs = os.pipe()
    command = ["prlimit", "--nofile=256:1024", "--", *union.command()]
    with subprocess.Popen(command, cwd=union.folder, pass_fds=[theirs]) as child:
        assert child.wait(_PATIENCE) == 0
    os.close(theirs)
    assert select.select([ours], [], [], _PATIENCE)[0]
    assert os.read(ours, 1) == b""
    os.close(ours)
    (pid,) = union.processes()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    streams = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]
    assert streams == ["/dev/null", "/dev/null", str(union.log)]
    assert os.getsid(pid) == pid != os.getsid(0)
    assert re.search("Max open files +1024 +1024 ", Path(f"/proc/{pid}/limits").read_text())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_unmounts(union: Union, name: str) -> None:
    with _foreground(union) as child:
        child.send_signal(signal.Signals[name])
        assert child.wait(_PATIENCE) == 0
        assert union.mounted() == []
    assert union.complaints() == []


def test_a_signal_while_it_is_in_use(union: Union) -> None:
    """It goes out of sight, and what was written is on disk."""
    pidfd = union.mount()
    fd = os.open(union.target / "file", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"written\n")
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    _await_end(pidfd)
    assert union.mounted() == []
    assert (union.folder / "upper/file").read_text() == "written\n"
    assert union.complaints() == []
    _check_dead(fd)


def test_a_signal_leaves_alone_what_was_mounted_since(union: Union) -> None:
    """The union was detached while in use, and another one took its place."""
    first = union.mount(options="lowerdir=lower")
    fd = os.open(union.target / "file", os.O_RDONLY)
    mount_api.umount(str(union.target), lazy=True)
    union.log.rename(union.folder / "first")
    second = union.mount(options="lowerdir=lower:upper")
    signal.pidfd_send_signal(first, signal.SIGTERM)
    _await_end(first)
    assert len(union.mounted()) == 1
    mount_api.umount(str(union.target), lazy=False)
    _await_end(second)
    _check_dead(fd)


def _check_dead(fd: int) -> None:
    """A file that a process has open is of no use once nobody answers."""
    with pytest.raises(OSError, match="not connected"):
        os.listxattr(fd)
    with suppress(OSError):  # only some files' closing is told
        os.close(fd)


def test_unmounted_from_outside(union: Union) -> None:
    with _foreground(union) as child:
        mount_api.umount(str(union.target), lazy=False)
        assert child.wait(_PATIENCE) == 0
    assert union.complaints() == []


def test_a_use_that_goes_on_keeps_the_process(union: Union) -> None:
    """Detached by `umount -l`, it answers until the last file is closed."""
    pidfd = union.mount()
    with open(union.target / "file") as file:
        mount_api.umount(str(union.target), lazy=True)
        assert file.read() == "lower\n"
    _await_end(pidfd)
    assert union.complaints() == []


def test_an_idle_program_sleeps(union: Union) -> None:
    """It looks out for requests only while they follow each other."""
    pidfd = union.mount()
    (pid,) = union.processes()
    deadline = time.monotonic() + _PATIENCE
    while ": mounted" not in union.log.read_text():  # until then it imports beside answering
        assert time.monotonic() < deadline
    for number in range(1000):
        assert not (union.target / f"absent-{number}").exists()
    while not _sleeps(pid):
        assert time.monotonic() < deadline, "the process goes on looking out"
    mount_api.umount(str(union.target), lazy=False)
    _await_end(pidfd)


def _sleeps(pid: int) -> bool:
    """Whether no thread of a process wants a processor."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            states.append(path.read_text().rpartition(")")[2].split()[0])
    return set(states) == {"S"}


def test_auto_unmount(union: Union) -> None:
    """After the process was killed its mount is gone, and nothing else."""
    with _foreground(union, options=f"{union.options},auto_unmount") as child:
        assert (union.target / "file").exists()
        child.kill()
        _await_mounted(union, False)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("lowerdir=absent", r"/absent: .*No such file or directory; check the path"),
        ("lowerdir=lower,verity=on", "FUSE has no option verity; leave it out"),
        ("lowerdir=lower,bogus", "unknown option 'bogus'"),
        ("lowerdir=lower,allow_root,allow_other", "options allow_other and allow_root exclude"),
        ("lowerdir=lower,context=x", "/target: .*Invalid argument"),
        ("lowerdir=lower,upperdir=upper", "upper and work go together; name both"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["-f"]], ids=["background", "foreground"])
def test_what_cannot_be_mounted(
    union: Union, arguments: list[str], options: str, line: str
) -> None:
    """One line says why; nothing is mounted and nothing stays."""
    done = union.run(union.command(*arguments, options=options))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"unionmount: .*{line}.*\n", done.stderr)
    assert union.mounted() == []
    assert union.processes() == []


def test_a_target_that_is_absent(union: Union) -> None:
    union.target.rmdir()
    done = union.run(union.command())
    assert done.returncode == 1
    assert done.stderr == f"unionmount: {union.target}: target does not exist; make the directory\n"


def test_an_upper_in_use(union: Union) -> None:
    """The caller is told, not the log of a process in the background."""
    union.mount()
    (union.folder / "other").mkdir()
    done = union.run([*_PROGRAM, "-o", union.options, "other"])
    assert done.returncode == 1
    assert done.stderr == (
        f"unionmount: {union.folder}/work: work is used by another union; unmount that first\n"
    )
    assert not os.path.ismount(union.folder / "other")


def test_with_too_few_descriptors(union: Union) -> None:
    """Wherever it fails for want of one, a line says so, and nothing stays; then it mounts."""
    for most in range(12, 64):
        limited = ["prlimit", f"--nofile={most}:{most}", "--", *union.command()]
        done = union.run(limited)
        if done.returncode == 0:
            break
        assert re.fullmatch("unionmount: .*\n", done.stderr)
        assert union.mounted() == []
        for pid in union.processes():
            _await_end(os.pidfd_open(pid))
    assert union.mounted()


@machine_only(NO_DEVICES)
def test_without_dev_fuse(union: Union) -> None:
    hide = 'mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && exec "$@"'
    room = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    done = union.run([*room, *_PROGRAM, "-o", union.options, "target"])
    assert done.returncode == 1
    assert re.fullmatch("unionmount: /dev/fuse: No such file .*modprobe fuse.*\n", done.stderr)


def test_podmans_command_line(union: Union) -> None:
    """An empty option, `volatile`, symlinked layers, and no upper with two layers."""
    (union.folder / "l").symlink_to("lower")
    union.mount(options="lowerdir=l,upperdir=upper,workdir=work,,volatile")
    assert (union.target / "file").read_text() == "lower\n"
    mount_api.umount(str(union.target), lazy=False)
    union.log.unlink()
    again = union.run([*_PROGRAM, "-o", union.options, "target"])
    assert "overlay with incompat feature 'volatile' cannot be mounted" in again.stderr

    union.mount(options="lowerdir=l:upper")
    assert (union.target / "file").read_text() == "lower\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (union.target / "new").touch()


def test_what_the_table_of_mounts_shows(union: Union) -> None:
    """root's unions are for everyone, as the kernel's are, unless told otherwise."""
    union.run([*_PROGRAM, "-o", f"{union.options},nosuid,noexec", "a source", "target"])
    (line,) = union.mounted()
    attributes, _, what = line.split(f" {union.target} ")[1].partition(" - ")
    assert {"rw", "nosuid", "noexec"} <= set(attributes.split()[0].split(","))
    kind, source, parameters = what.split(" ")
    assert (kind, source) == ("fuse.unionmount", r"a\040source")
    assert {"default_permissions", "allow_other"} <= set(parameters.split(","))


def test_debug_shows_each_request(union: Union) -> None:
    """On standard error, and in the foreground."""
    with _foreground(union, "-d", options=f"{union.options},fast_ino=1") as child:
        assert (union.target / "file").exists()
        mount_api.umount(str(union.target), lazy=False)
        assert child.stderr
        assert "opcode: LOOKUP" in child.stderr.read()
    assert "option fast_ino has no effect: inode numbers are stable" in union.log.read_text()


def _as_user(union: Union, script: str, *become: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as an ordinary user, with this Python and /dev/fuse within reach.

    $mount is the program with the layers; the directories are the user's.
    """
    for path in union.folder.iterdir():
        os.chown(path, _USER, _USER)
    settings = f'set -e; mount="{" ".join(_PROGRAM)} -o {union.options}"\n'
    folders = [sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])]
    return union.run(
        [
            *("unshare", "--mount", "sh", "-c", _FOR_USERS, "sh", *folders),
            *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
            *(*become, "sh", "-c", settings + script),
        ]
    )


@machine_only(NO_DEVICES)
def test_an_ordinary_user(union: Union) -> None:
    """Through fusermount3, which forces nosuid and nodev on them."""
    done = _as_user(
        union,
        r"""
        $mount -o fsname='a\,b' target
        grep " $PWD/target " /proc/self/mountinfo
        cat target/file
        echo new > target/new
        fusermount3 -u target
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    mounted, content = done.stdout.splitlines()
    assert f" - fuse.unionmount a,b rw,user_id={_USER},group_id={_USER},default_permi" in mounted
    assert "nosuid,nodev" in mounted
    assert "allow_other" not in mounted
    assert content == "lower"
    assert (union.folder / "upper/new").stat().st_uid == _USER


@machine_only(NO_DEVICES)
def test_an_ordinary_user_ends_it_by_a_signal(union: Union) -> None:
    done = _as_user(
        union,
        """
        $mount -f --log /dev/null target &
        while ! grep -q " $PWD/target " /proc/self/mountinfo; do :; done
        cat target/file
        kill $!
        wait $!
        ! grep " $PWD/target " /proc/self/mountinfo
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "lower\n", "")


@machine_only(NO_DEVICES)
def test_an_ordinary_user_takes_down_a_mount_whose_program_was_killed(union: Union) -> None:
    done = _as_user(
        union,
        f"""
        $mount -f --log /dev/null target &
        while ! grep -q " $PWD/target " /proc/self/mountinfo; do :; done
        cat target/file
        kill -KILL $!
        wait $! 2>/dev/null || true
        {sys.executable} -m unionfs.cli umount target
        ! grep " $PWD/target " /proc/self/mountinfo
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "lower\n", "")


@machine_only(NO_DEVICES)
def test_what_an_ordinary_user_may_not(union: Union) -> None:
    """allow_other without user_allow_other; a target that is not theirs. fusermount3's words."""
    done = _as_user(union, "$mount -o allow_other target")
    assert done.returncode == 1
    assert re.fullmatch("unionmount: .*/target: .*user_allow_other.*\n", done.stderr)
    done = _as_user(union, "chmod 555 target; $mount target")
    assert done.returncode == 1
    assert re.fullmatch("unionmount: .*/target: .*no write access to mountpoint.*\n", done.stderr)


@machine_only(NO_DEVICES)
def test_root_of_a_user_namespace(union: Union) -> None:
    """mount(2) does it, without fusermount3."""
    done = _as_user(
        union,
        """
        PATH=/nowhere $mount target
        grep " $PWD/target " /proc/self/mountinfo
        echo new > target/new
        umount target
        """,
        *("unshare", "--user", "--map-root-user", "--mount"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "allow_other" in done.stdout
    assert (union.folder / "upper/new").read_text() == "new\n"
