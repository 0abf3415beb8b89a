"""The system calls on real files: the C extension and the Python half keep one contract.

What has two implementations is told once and run on both; `walk_beneath` joins them as the third
way to open. The older kernels that need it are played by a seccomp filter, which refuses the
calls that they lack.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from itertools import product
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.privilege import IN_USER_NAMESPACE, NO_OTHER_IDS, NO_TRUSTED, machine_only
from unionfs import _pure, system

try:
    _native: ModuleType | None = import_module("unionfs._native")
except ImportError:
    _native = None

T = TypeVar("T")
Opener = Callable[..., int]

_BUILT = pytest.mark.skipif(_native is None, reason="the extension was not built")
both = pytest.mark.parametrize(
    "calls", [pytest.param(_pure, id="pure"), pytest.param(_native, id="native", marks=_BUILT)]
)


def _walk(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    return _pure.walk_beneath(dir_fd, path, flags, mode)


_openers: dict[str, Opener] = {"pure": _pure.open_beneath, "walk": _walk}
if _native:
    _openers["native"] = _native.open_beneath
every_opener = pytest.mark.parametrize("opener", _openers.values(), ids=_openers)


@contextmanager
def opened(path: Path | str, flags: int = os.O_PATH) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def in_thread(function: Callable[[], T]) -> T:
    """In a thread of its own, whose IDs go with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def refusal(function: Callable[..., object], *arguments: Any) -> OSError:
    with pytest.raises(OSError) as caught:
        function(*arguments)
    assert caught.value.errno
    assert caught.value.strerror == os.strerror(caught.value.errno)
    return caught.value


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """An O_PATH descriptor of tmp_path, which holds one file of each kind."""
    os.umask(os.umask(0o022))
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/inner").write_bytes(b"inner")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-dir").symlink_to("dir")
    (tmp_path / "to-nothing").symlink_to("nothing")
    (tmp_path / "to-itself").symlink_to("to-itself")
    (tmp_path / "to-root").symlink_to("/")
    (tmp_path / "dir/to-parent").symlink_to("..")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "char", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    if not IN_USER_NAMESPACE:
        os.mknod(tmp_path / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    with opened(tmp_path) as fd:
        with closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(f"/proc/self/fd/{fd}/socket")
        yield fd


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mounts a small filesystem of its own kind, once; unmounted after the module's tests.

    "ext4" is one that keeps no types in its directories, and "xfs" one that shares data.
    """
    mounted: dict[str, Path] = {}
    with ExitStack() as cleanup:

        def run(*command: str | Path) -> None:
            subprocess.run(command, check=True, capture_output=True)

        def mount(kind: str) -> Path:
            if kind in mounted:
                return mounted[kind]
            ground = tmp_path_factory.mktemp(kind)
            target, image = ground / "mounted", ground / "image"
            target.mkdir()
            if kind == "tmpfs":
                run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", target)
            else:
                with image.open("wb") as file:
                    file.truncate((320 if kind == "xfs" else 32) << 20)
                options = ["-q", "-O", "^filetype"] if kind == "ext4" else ["-q", "-m", "reflink=1"]
                run(f"mkfs.{kind}", *options, image)
                try:
                    run("mount", "-o", "loop", image, target)
                except subprocess.CalledProcessError as error:
                    pytest.skip(f"this kernel mounts no {kind} image: {error.stderr!r}")
            cleanup.callback(run, "umount", "-l", target)
            mounted[kind] = target
            return target

        yield mount


# -- which implementation ---------------------------------------------------------------------


@pytest.mark.parametrize("pure", [pytest.param("1"), pytest.param("", marks=_BUILT)])
def test_the_environment_keeps_the_extension_out(pure: str) -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from unionfs import system as s; print(s.NATIVE, s.open_beneath.__module__,"
            " s.get_xattr.__module__, s.list_dir.__module__)",
        ],
        env={**os.environ, "UNIONMOUNT_PURE": pure},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    assert said == [str(not pure)] + ["unionfs._pure" if pure else "unionfs._native"] * 3


# -- open_beneath -----------------------------------------------------------------------------


@every_opener
@pytest.mark.parametrize("path", ["file", "./file", "dir//inner", "dir/./inner", "dir", "dir/", ""])
def test_open_leads_to_the_file_and_closes_on_exec(
    opener: Opener, top: int, tmp_path: Path, path: str
) -> None:
    fd = opener(top, path, os.O_RDONLY, 0o644)
    try:
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / path))
        assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


REFUSED = [
    ("nothing", os.O_RDONLY, errno.ENOENT),
    ("nothing/file", os.O_RDONLY, errno.ENOENT),
    ("file/", os.O_RDONLY, errno.ENOTDIR),
    ("file/inner", os.O_RDONLY, errno.ENOTDIR),
    ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
    ("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
    ("dir", os.O_WRONLY, errno.EISDIR),
    ("socket", os.O_RDONLY, errno.ENXIO),
    ("fifo", os.O_WRONLY | os.O_NONBLOCK, errno.ENXIO),
    ("char", os.O_RDONLY, errno.ENXIO),
    ("x" * 256, os.O_RDONLY, errno.ENAMETOOLONG),
    # a symlink, wherever it is and wherever it leads
    ("to-file", os.O_RDONLY, errno.ELOOP),
    ("to-file", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
    ("to-file", os.O_PATH, errno.ELOOP),
    ("to-file", os.O_WRONLY | os.O_CREAT, errno.ELOOP),
    ("to-file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
    ("to-nothing", os.O_WRONLY | os.O_CREAT, errno.ELOOP),
    ("to-itself", os.O_RDONLY, errno.ELOOP),
    ("to-dir", os.O_RDONLY | os.O_DIRECTORY, errno.ELOOP),
    ("to-dir/", os.O_PATH | os.O_NOFOLLOW, errno.ELOOP),
    ("to-dir/inner", os.O_RDONLY, errno.ELOOP),
    ("to-root/etc", os.O_RDONLY, errno.ELOOP),
    ("dir/to-parent/file", os.O_RDONLY, errno.ELOOP),
    # out of the directory
    ("/", os.O_RDONLY, errno.EXDEV),
    ("/etc/passwd", os.O_RDONLY, errno.EXDEV),
    ("..", os.O_PATH, errno.EXDEV),
    ("dir/../../etc", os.O_RDONLY, errno.EXDEV),
]


@every_opener
@pytest.mark.parametrize(("path", "flags", "number"), REFUSED)
def test_open_is_refused(opener: Opener, top: int, path: str, flags: int, number: int) -> None:
    error = refusal(opener, top, path, flags, 0o600)
    assert (error.errno, error.filename) == (number, path)


@every_opener
def test_open_beneath_what_is_no_directory(opener: Opener, top: int, tmp_path: Path) -> None:
    with opened(tmp_path / "file") as file:
        assert refusal(opener, file, "inner", os.O_RDONLY).errno == errno.ENOTDIR
        assert refusal(opener, file, "", os.O_RDONLY).errno == errno.ENOTDIR
    assert refusal(opener, -1, "file", os.O_RDONLY).errno == errno.EBADF


@every_opener
def test_a_symlink_itself_opens_by_path_only(opener: Opener, top: int) -> None:
    fd = opener(top, "to-root", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert os.readlink("", dir_fd=fd) == "/"
    finally:
        os.close(fd)


@every_opener
def test_a_dead_file_descriptor_link_is_a_symlink_too(opener: Opener) -> None:
    with opened("/proc/self/fd") as links:
        assert refusal(opener, links, str(links), os.O_RDONLY).errno == errno.ELOOP


@both
def test_up_and_down_again_stays_beneath(calls: ModuleType, top: int, tmp_path: Path) -> None:
    with opened(tmp_path / "dir/inner") as inner:
        fd = calls.open_beneath(top, "dir/../dir/inner", os.O_RDONLY)
        try:
            assert os.path.samestat(os.fstat(fd), os.fstat(inner))
        finally:
            os.close(fd)


@both
def test_renames_elsewhere_do_not_fail_a_path_up_and_down(
    calls: ModuleType, top: int, tmp_path: Path
) -> None:
    done = threading.Event()

    def churn() -> None:
        (tmp_path / "there").mkdir()
        while not done.is_set():
            os.rename(tmp_path / "there", tmp_path / "here")
            os.rename(tmp_path / "here", tmp_path / "there")

    with ThreadPoolExecutor(1) as pool:
        churning = pool.submit(churn)
        try:
            for _ in range(5000):
                os.close(calls.open_beneath(top, "dir/../" * 8 + "file", os.O_PATH))
        finally:
            done.set()
        churning.result()


@every_opener
def test_only_a_new_file_takes_the_mode(opener: Opener, top: int, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(opener(top, "new", os.O_WRONLY | os.O_CREAT, 0o666))
        unnamed = opener(top, "", os.O_WRONLY | os.O_TMPFILE, 0o666)
        os.close(opener(top, "file", os.O_WRONLY | os.O_CREAT, 0o777))
    finally:
        os.umask(before)
    with closing(os.fdopen(unnamed, "wb")) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@every_opener
def test_flags_and_mode_have_names(opener: Opener, top: int, tmp_path: Path) -> None:
    os.close(opener(top, "new", flags=os.O_WRONLY | os.O_CREAT, mode=0o600))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@every_opener
def test_a_true_refusal_is_no_missing_call(opener: Opener, top: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    def by_another() -> OSError:
        system.set_fs_ids(1000, 1000)
        return refusal(opener, top, "file", os.O_RDONLY | os.O_NOATIME)

    error = in_thread(by_another)
    assert (error.errno, error.filename) == (errno.EPERM, "file")


@both
def test_a_signal_only_interrupts_an_open_that_its_handler_ends(
    calls: ModuleType, top: int, tmp_path: Path
) -> None:
    writers: list[int] = []

    def first_count_then_write(number: int, frame: FrameType | None) -> None:
        writers.append(os.open(tmp_path / "fifo", os.O_RDWR))

    class Stop(Exception):
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            calls.open_beneath(top, "fifo", os.O_RDONLY)
        signal.signal(signal.SIGALRM, first_count_then_write)
        os.close(calls.open_beneath(top, "fifo", os.O_RDONLY))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for fd in writers:
            os.close(fd)


@both
def test_other_threads_run_while_an_open_waits(calls: ModuleType, top: int, tmp_path: Path) -> None:
    story = f"""
import os, threading
from {calls.__name__} import open_beneath
top = os.open({str(tmp_path)!r}, os.O_PATH)
waiting = threading.Thread(target=open_beneath, args=(top, "fifo", os.O_RDONLY))
waiting.start()
os.open("fifo", os.O_WRONLY, dir_fd=top)
waiting.join()
"""
    subprocess.run([sys.executable, "-c", story], check=True, timeout=60)


COMPONENTS = ["file", "dir", "inner", "to-parent", "to-dir", "to-file", "nothing", "..", ".", ""]
FLAGS = [os.O_PATH, os.O_RDONLY, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH | os.O_NOFOLLOW]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(COMPONENTS), max_size=6).map("/".join), st.sampled_from(FLAGS))
@example("to-dir/", os.O_PATH | os.O_NOFOLLOW)
def test_any_path_ends_beneath_or_with_one_errno(path: str, flags: int) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(folder) as fd:
        os.mkdir(f"{folder}/dir")
        for name in ("file", "dir/inner"):
            Path(folder, name).touch()
        for name, target in (("to-dir", "dir"), ("to-file", "file"), ("dir/to-parent", "..")):
            os.symlink(target, f"{folder}/{name}")

        def end(opener: Opener) -> str | int:
            try:
                found = opener(fd, path, flags)
            except OSError as error:
                assert error.filename == path
                return error.errno or 0
            try:
                return os.readlink(f"/proc/self/fd/{found}")
            finally:
                os.close(found)

        ends = {name: end(opener) for name, opener in _openers.items()}
        if ".." in path.split("/"):
            assert ends.pop("walk") in (errno.EXDEV, *ends.values())
        assert len(set(ends.values())) == 1, ends
        found = ends["pure"]
        if isinstance(found, str):
            real = os.path.realpath(folder)
            assert os.path.commonpath([real, found]) == real
            # No symlink was passed on the way: taken as text, the path leads to the same place.
            assert found == os.path.normpath(f"{real}/{path}")


# -- names ------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: not {0, ord("/")} & {*name} and name not in (b".", b"..")
)


@both
@settings(deadline=None)
@given(names=st.sets(NAMES, max_size=5))
@example(names={b"\xff\xfe", b"...", b".a", b"new\nline", "ü".encode(), b"\x80" * 255})
def test_any_bytes_make_a_name(calls: ModuleType, names: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(folder) as fd:
        for name in names:
            os.close(calls.open_beneath(fd, os.fsdecode(name), os.O_WRONLY | os.O_CREAT, 0o600))
            os.setxattr(os.fsencode(folder) + b"/" + name, "user.name", name)
        assert {*os.listdir(os.fsencode(folder))} == names
        listed = [name for name, _, _ in calls.list_dir(fd, "")]
        assert sorted(listed) == sorted(map(os.fsdecode, names))
        for text in listed:
            assert calls.get_xattr(fd, text, "user.name") == os.fsencode(text)


@both
def test_a_nul_does_not_shorten_a_name(calls: ModuleType, top: int) -> None:
    nul: list[Callable[[], object]] = [
        lambda: calls.open_beneath(top, "file\0x", os.O_RDONLY),
        lambda: _pure.walk_beneath(top, "file\0x", os.O_RDONLY, 0),
        lambda: calls.list_dir(top, "dir\0x"),
        lambda: calls.get_xattr(top, "file\0x", "user.x"),
        lambda: calls.get_xattr(top, "file", "user.x\0x"),
        lambda: system.rename(top, "file\0x", top, "moved"),
        lambda: system.rename(top, "file", top, "moved\0x"),
        lambda: system.file_handle(top, "file\0x"),
        lambda: system.set_xattr(top, "file\0x", "user.x", b""),
        lambda: system.remove_xattr(top, "file\0x", "user.x"),
        lambda: calls.list_xattr(top, "file\0x"),
        lambda: calls.exists(top, "file\0x"),
        lambda: calls.inode_and_change(top, "file\0x"),
    ]
    for call in nul:
        with pytest.raises(ValueError, match="null"):
            call()


# -- list_dir ---------------------------------------------------------------------------------


def as_listed(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (entry.name, entry.stat(follow_symlinks=False).st_mode >> 12, entry.inode())
        for entry in os.scandir(folder)
    )


@both
def test_a_listing_tells_types_and_inodes(calls: ModuleType, top: int, tmp_path: Path) -> None:
    listed = calls.list_dir(top, "")
    assert sorted(listed) == as_listed(tmp_path)
    assert len({kind for _, kind, _ in listed}) == (6 if IN_USER_NAMESPACE else 7)
    assert sorted(calls.list_dir(top, "dir")) == as_listed(tmp_path / "dir")


@both
def test_a_listing_asks_where_the_filesystem_keeps_no_types(
    calls: ModuleType, filesystems: Callable[[str], Path]
) -> None:
    with tempfile.TemporaryDirectory(dir=filesystems("ext4")) as folder, opened(folder) as fd:
        Path(folder, "file").touch()
        Path(folder, "dir").mkdir()
        Path(folder, "link").symlink_to("dir")
        os.mknod(f"{folder}/whiteout", stat.S_IFCHR, os.makedev(0, 0))
        assert sorted(calls.list_dir(fd, "")) == as_listed(Path(folder))


@both
def test_a_long_listing_is_whole_and_in_order(calls: ModuleType, tmp_path: Path) -> None:
    """Ten times what the buffer takes, with records of every length."""
    names = {f"{number:04}{'x' * (number % 200)}" for number in range(3000)}
    for name in names:
        (tmp_path / name).touch()
    with opened(tmp_path) as fd:
        listed = [name for name, _, _ in calls.list_dir(fd, "")]
        assert {*listed} == names
        assert listed == os.listdir(tmp_path)
    with opened(tmp_path / ".") as fd:
        (tmp_path / "empty").mkdir()
        assert calls.list_dir(fd, "empty") == []


@both
@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("nothing", errno.ENOENT),
        ("file", errno.ENOTDIR),
        ("fifo", errno.ENOTDIR),
        ("to-dir", errno.ELOOP),
        ("dir/to-parent/dir", errno.ELOOP),
        ("..", errno.EXDEV),
        ("/etc", errno.EXDEV),
    ],
)
def test_a_listing_is_refused(calls: ModuleType, top: int, path: str, number: int) -> None:
    error = refusal(calls.list_dir, top, path)
    assert (error.errno, error.filename) == (number, path)


@both
def test_a_listing_leaves_no_descriptor_open(calls: ModuleType, top: int) -> None:
    before = os.listdir("/proc/self/fd")
    calls.list_dir(top, "dir")
    refusal(calls.list_dir, top, "nothing")
    assert os.listdir("/proc/self/fd") == before


@both
def test_a_removed_directory_is_gone(calls: ModuleType, top: int, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with opened(gone) as fd:
        gone.rmdir()
        error = refusal(calls.list_dir, fd, "")
        assert (error.errno, error.filename) == (errno.ENOENT, "")
        assert refusal(calls.open_beneath, fd, "file", os.O_RDONLY).errno == errno.ENOENT


@both
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_directory_may_change_while_it_is_listed(
    calls: ModuleType, filesystems: Callable[[str], Path], kind: str
) -> None:
    """What stays is listed once; what comes and goes may be, and is no failure."""
    with tempfile.TemporaryDirectory(dir=filesystems(kind)) as folder, opened(folder) as fd:
        stays = {f"stays{number}" for number in range(300)}
        for name in stays:
            Path(folder, name).touch()
        done = threading.Event()

        def churn() -> None:
            while not done.is_set():
                for number in range(50):
                    Path(folder, f"comes{number}").touch()
                for number in range(50):
                    os.unlink(f"{folder}/comes{number}")

        with ThreadPoolExecutor(1) as pool:
            churning = pool.submit(churn)
            try:
                for _ in range(200):
                    listed = calls.list_dir(fd, "")
                    kept = [name for name, _, _ in listed if name.startswith("stays")]
                    assert len(kept) == len(stays)
                    assert {*kept} == stays
                    assert {kind for _, kind, _ in listed} == {stat.S_IFREG >> 12}
            finally:
                done.set()
            churning.result()


# -- extended attributes ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4096, 65535, 65536])
def test_a_value_of_any_length(
    calls: ModuleType, filesystems: Callable[[str], Path], length: int
) -> None:
    value = bytes(number % 251 for number in range(length))
    folder = filesystems("xfs")
    (folder / "file").touch()
    os.setxattr(folder / "file", "user.value", value)
    with opened(folder) as fd, opened(folder / "file") as file:
        assert calls.get_xattr(fd, "file", "user.value") == value
        assert calls.get_xattr(file, "", "user.value") == value


@both
@machine_only(NO_TRUSTED)
@pytest.mark.parametrize("path", ["file", "dir", "to-file", "to-nothing", "fifo", "char", "socket"])
def test_every_kind_of_file_has_its_own(
    calls: ModuleType, top: int, tmp_path: Path, path: str
) -> None:
    os.setxattr(tmp_path / path, "trusted.mark", path.encode(), follow_symlinks=False)
    assert calls.get_xattr(top, path, "trusted.mark") == path.encode()
    assert calls.get_xattr(top, f"dir/../{path}", "trusted.mark") == path.encode()
    with opened(tmp_path / path, os.O_PATH | os.O_NOFOLLOW) as fd:
        assert calls.get_xattr(fd, "", "trusted.mark") == path.encode()
    if path == "to-file":
        assert calls.get_xattr(top, "file", "trusted.mark") is None


@both
@machine_only(NO_TRUSTED)
@pytest.mark.parametrize("path", ["file", "dir", "to-file", "to-nothing", "fifo", "char", "socket"])
def test_names_of_attributes_are_listed(
    calls: ModuleType, top: int, tmp_path: Path, path: str
) -> None:
    names = [f"trusted.{number}{'x' * 40}" for number in range(20)]
    for name in names:
        os.setxattr(tmp_path / path, name, b"", follow_symlinks=False)
    assert {*calls.list_xattr(top, path)} >= {*names}
    with opened(tmp_path / path, os.O_PATH | os.O_NOFOLLOW) as fd:
        assert {*calls.list_xattr(fd, "")} >= {*names}
    if path == "to-file":
        assert not {*calls.list_xattr(top, "file")} & {*names}


@both
def test_a_list_of_attributes_is_empty_or_refused(calls: ModuleType, top: int) -> None:
    with opened("/proc") as proc:
        assert calls.list_xattr(proc, "version") == calls.list_xattr(proc, "") == []
    for path, number in (("nothing", errno.ENOENT), ("file/inner", errno.ENOTDIR)):
        error = refusal(calls.list_xattr, top, path)
        assert (error.errno, error.filename) == (number, path)


@both
def test_no_value_is_none(calls: ModuleType, top: int) -> None:
    assert calls.get_xattr(top, "file", "user.none") is None
    assert calls.get_xattr(top, "", "user.none") is None
    assert calls.get_xattr(top, "to-file", "user.none") is None
    assert calls.get_xattr(top, "file", "unheard.of") is None
    with opened("/proc") as proc:
        assert calls.get_xattr(proc, "version", "user.none") is None
        assert calls.get_xattr(proc, "", "user.none") is None


@both
@pytest.mark.parametrize(
    ("path", "name", "number"),
    [
        ("nothing", "user.x", errno.ENOENT),
        ("file/inner", "user.x", errno.ENOTDIR),
        ("to-itself/x", "user.x", errno.ELOOP),
        ("x" * 256, "user.x", errno.ENAMETOOLONG),
        ("x/" * 4096, "user.x", errno.ENAMETOOLONG),
        ("file", "", errno.ERANGE),
        ("file", "user." + "x" * 256, errno.ERANGE),
        ("", "", errno.ERANGE),
    ],
)
def test_a_value_is_refused(calls: ModuleType, top: int, path: str, name: str, number: int) -> None:
    error = refusal(calls.get_xattr, top, path, name)
    assert (error.errno, error.filename) == (number, path)


@both
def test_an_absolute_path_does_not_leave_the_directory(
    calls: ModuleType, top: int, tmp_path: Path
) -> None:
    os.setxattr(tmp_path / "file", "user.mark", b"beneath")
    assert calls.get_xattr(top, "/file", "user.mark") == b"beneath"
    assert refusal(calls.get_xattr, top, str(tmp_path / "file"), "user.mark")


@machine_only(NO_TRUSTED)
@pytest.mark.parametrize("path", ["file", "dir", "to-nothing", "fifo"])
def test_attributes_come_and_go(top: int, tmp_path: Path, path: str) -> None:
    with opened(tmp_path / path, os.O_PATH | os.O_NOFOLLOW) as fd:
        system.set_xattr(top, path, "trusted.by-name", b"one")
        system.set_xattr(fd, "", "trusted.by-fd", b"two")
        for place in ((top, path), (fd, "")):
            assert {*system.list_xattr(*place)} >= {"trusted.by-name", "trusted.by-fd"}
            assert system.get_xattr(*place, "trusted.by-fd") == b"two"
        system.remove_xattr(fd, "", "trusted.by-name")
        system.remove_xattr(top, path, "trusted.by-fd")
    assert not {"trusted.by-name", "trusted.by-fd"} & {*system.list_xattr(top, path)}


def test_attributes_are_refused(top: int) -> None:
    system.set_xattr(top, "file", "user.x", b"1", os.XATTR_CREATE)
    refused = [
        (errno.EEXIST, refusal(system.set_xattr, top, "file", "user.x", b"", os.XATTR_CREATE)),
        (errno.ENODATA, refusal(system.set_xattr, top, "file", "user.y", b"", os.XATTR_REPLACE)),
        (errno.ENODATA, refusal(system.remove_xattr, top, "file", "user.y")),
        (errno.EPERM, refusal(system.set_xattr, top, "to-file", "user.x", b"")),
        (errno.ENOENT, refusal(system.list_xattr, top, "nothing")),
    ]
    assert [number for number, _ in refused] == [error.errno for _, error in refused]
    assert [error.filename for _, error in refused] == ["file"] * 3 + ["to-file", "nothing"]
    with opened("/proc") as proc:
        assert system.list_xattr(proc, "version") == []


# -- status -----------------------------------------------------------------------------------


@both
def test_what_is_there_exists(calls: ModuleType, top: int) -> None:
    for path in ("file", "dir/inner", "to-nothing", "to-dir/inner", "fifo", ""):
        assert calls.exists(top, path)
    for path in ("nothing", "file/inner", "to-nothing/x", "x" * 256, "x/" * 4096):
        assert not calls.exists(top, path)
    assert refusal(calls.exists, top, "to-itself/x").errno == errno.ELOOP


@both
def test_a_change_of_a_directory_shows(calls: ModuleType, top: int, tmp_path: Path) -> None:
    for path in ("dir", "to-nothing", "file", ""):
        status = (tmp_path / path).lstat()
        assert calls.inode_and_change(top, path) == (status.st_ino, status.st_ctime_ns)
    assert calls.inode_and_change(top, "nothing") is None
    assert calls.inode_and_change(top, "file/inner") is None
    assert refusal(calls.inode_and_change, top, "to-itself/x").errno == errno.ELOOP


@both
def test_a_status_is_renumbered_and_nothing_else(calls: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    os.utime(tmp_path / "file", ns=(-1_500_000_001, 1_500_000_002))
    status = (tmp_path / "file").stat()
    shown = calls.renumbered(status, 1 << 63, 7, 2)
    assert type(shown) is os.stat_result
    for name in dir(status):
        if name.startswith("st_") and name not in ("st_ino", "st_dev", "st_nlink"):
            assert getattr(shown, name) == getattr(status, name), name
    assert (shown.st_ino, shown.st_dev, shown.st_nlink) == (1 << 63, 7, 2)
    assert shown[:4] == (status.st_mode, 1 << 63, 7, 2) and shown[4:] == status[4:]


# -- rename -----------------------------------------------------------------------------------


def test_rename_moves_and_replaces(top: int, tmp_path: Path) -> None:
    system.rename(top, "file", top, "dir/inner")
    system.rename(top, "to-file", top, os.fsdecode(b"\xff"))
    assert (tmp_path / "dir/inner").read_bytes() == b"content"
    assert os.readlink(os.fsencode(tmp_path) + b"/\xff") == b"file"
    assert not (tmp_path / "file").exists()


def test_rename_does_not_replace(top: int, tmp_path: Path) -> None:
    error = refusal(system.rename, top, "file", top, "dir/inner", system.RENAME_NOREPLACE)
    assert (error.errno, error.filename, error.filename2) == (errno.EEXIST, "file", "dir/inner")
    assert (tmp_path / "dir/inner").read_bytes() == b"inner"
    system.rename(top, "file", top, "new", system.RENAME_NOREPLACE)
    assert (tmp_path / "new").read_bytes() == b"content"


def test_rename_exchanges(top: int, tmp_path: Path) -> None:
    system.rename(top, "file", top, "dir", system.RENAME_EXCHANGE)
    assert (tmp_path / "dir").read_bytes() == b"content"
    assert (tmp_path / "file/inner").read_bytes() == b"inner"
    error = refusal(system.rename, top, "dir", top, "nothing", system.RENAME_EXCHANGE)
    assert (error.errno, error.filename, error.filename2) == (errno.ENOENT, "dir", "nothing")


def test_rename_leaves_a_whiteout(top: int, tmp_path: Path) -> None:
    system.rename(top, "file", top, "new", system.RENAME_WHITEOUT)
    status = (tmp_path / "file").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == os.makedev(0, 0)
    assert (tmp_path / "new").read_bytes() == b"content"


# -- data -------------------------------------------------------------------------------------

PAGE = 4096
EXTENTS = st.dictionaries(st.integers(0, 40), st.integers(1, 2 * PAGE), max_size=5)


def data_map(fd: int) -> list[tuple[int, int]]:
    """Start and end of each run of data."""
    runs, offset, size = [], 0, os.fstat(fd).st_size
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, offset))
    return runs


def pages(fd: int) -> set[int]:
    """The pages that hold data."""
    runs = data_map(fd)
    return {page for start, end in runs for page in range(start // PAGE, -(-end // PAGE))}


@pytest.mark.parametrize(("kind", "onto"), list(product(["tmpfs", "ext4", "xfs"], repeat=2)))
@settings(deadline=None, max_examples=30)
@given(extents=EXTENTS, more=st.integers(0, 3 * PAGE), size=st.none() | st.integers(0, 50 * PAGE))
@example(extents={}, more=0, size=None)
@example(extents={}, more=PAGE, size=None)
@example(extents={0: 1, 9: 5000}, more=7, size=None)
@example(extents={9: 5000}, more=0, size=PAGE)
@example(extents={0: 10}, more=0, size=30 * PAGE)
def test_a_copy_has_the_data_and_the_holes(
    filesystems: Callable[[str], Path],
    kind: str,
    onto: str,
    extents: dict[int, int],
    more: int,
    size: int | None,
) -> None:
    """extents: page number to bytes written there; more: hole at the end; size: what is asked."""
    with (
        tempfile.TemporaryFile(dir=filesystems(kind)) as source,
        tempfile.TemporaryFile(dir=filesystems(onto)) as copy,
    ):
        for page, length in extents.items():
            os.pwrite(source.fileno(), bytes([65 + page]) * length, page * PAGE)
        whole = os.fstat(source.fileno()).st_size + more
        source.truncate(whole)
        size = whole if size is None else size
        system.copy_data(source.fileno(), copy.fileno(), size)

        assert os.fstat(copy.fileno()).st_size == size
        content = os.pread(source.fileno(), size, 0).ljust(size, b"\0")
        assert os.pread(copy.fileno(), size, 0) == content
        # xfs allocates small gaps, and more than is written, by itself
        assert onto == "xfs" or pages(copy.fileno()) <= pages(source.fileno())


def test_a_copy_of_many_chunks(tmp_path: Path, filesystems: Callable[[str], Path]) -> None:
    content = os.urandom(1 << 20) * 5 + b"tail"
    (tmp_path / "source").write_bytes(content)
    with (
        open(tmp_path / "source", "rb") as source,
        tempfile.TemporaryFile(dir=filesystems("tmpfs")) as copy,
    ):
        system.copy_data(source.fileno(), copy.fileno(), len(content))
        assert os.pread(copy.fileno(), len(content) + 1, 0) == content


def test_a_copy_of_what_has_neither_holes_nor_a_size(tmp_path: Path) -> None:
    with open("/proc/version", "rb") as source, open(tmp_path / "copy", "w+b") as copy:
        content = source.read()
        system.copy_data(source.fileno(), copy.fileno(), len(content) + 10)
        assert copy.read() == content + bytes(10)


def test_a_copy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with open(tmp_path / "file", "rb") as source:
        assert refusal(system.copy_data, source.fileno(), source.fileno(), 7).errno == errno.EBADF
        with open("/dev/full", "wb") as full:
            assert refusal(system.copy_data, source.fileno(), full.fileno(), 7).errno in (
                errno.ENOSPC,
                errno.EINVAL,
            )


def test_a_clone_shares_the_data(filesystems: Callable[[str], Path]) -> None:
    folder, content = filesystems("xfs"), os.urandom(1 << 20) * 8
    with (
        tempfile.TemporaryFile(dir=folder) as source,
        tempfile.TemporaryFile(dir=folder) as copy,
    ):
        source.write(content)
        os.fsync(source.fileno())
        free = os.statvfs(folder).f_bavail
        assert system.clone(source.fileno(), copy.fileno())
        os.fsync(copy.fileno())
        assert (free - os.statvfs(folder).f_bavail) * os.statvfs(folder).f_frsize < 1 << 20
        assert copy.read() == content
        os.pwrite(source.fileno(), b"!", 0)
        assert os.pread(copy.fileno(), 1, 0) == content[:1]


@pytest.mark.parametrize(
    ("kind", "onto"), [("tmpfs", "tmpfs"), ("ext4", "ext4"), ("xfs", "tmpfs"), ("ext4", "xfs")]
)
def test_no_clone_where_the_filesystem_cannot(
    filesystems: Callable[[str], Path], kind: str, onto: str
) -> None:
    with (
        tempfile.TemporaryFile(dir=filesystems(kind)) as source,
        tempfile.TemporaryFile(dir=filesystems(onto)) as copy,
    ):
        os.pwrite(source.fileno(), b"content", 0)
        assert not system.clone(source.fileno(), copy.fileno())
        assert os.fstat(copy.fileno()).st_size == 0


def test_a_clone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with open(tmp_path / "file", "rb") as source:
        assert refusal(system.clone, source.fileno(), source.fileno()).errno == errno.EBADF


FULL, ZEROS = b"x" * PAGE, bytes(PAGE)


@both
@pytest.mark.parametrize(
    ("data", "end", "there"),
    [
        (b"", 0, set()),
        (b"short", 5, {0}),
        (FULL + ZEROS + FULL, 3 * PAGE, {0, 2}),
        (ZEROS + FULL + b"tail", 2 * PAGE + 4, {1, 2}),
        (FULL + ZEROS + bytes(9), 2 * PAGE + 9, {0, 2}),
        (FULL + ZEROS * 2, PAGE, {0}),
        (ZEROS, 0, set()),
    ],
    ids=["nothing", "short", "middle", "begin", "a part of a page", "end", "all"],
)
def test_pages_of_zeros_are_holes(
    calls: ModuleType, tmp_path: Path, data: bytes, end: int, there: set[int]
) -> None:
    for begin in (0, 1):
        path = tmp_path / str(begin)
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            assert calls.write_sparsely(fd, memoryview(data), begin * PAGE) == begin * PAGE + end
            os.ftruncate(fd, begin * PAGE + len(data))
            assert pages(fd) == {begin + page for page in there}
        assert path.read_bytes() == bytes(begin * PAGE) + data


@both
def test_files_are_completed(calls: ModuleType, tmp_path: Path) -> None:
    contents = [b"", b"some", FULL + ZEROS, b"last"]
    times = [(0, 0), (-2, 999_999_999), (1, 5), (1 << 33, 1)]
    files = []
    for number, (content, time) in enumerate(zip(contents, times, strict=True)):
        fd = os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT)
        files.append((fd, str(number), content, *time, number or -1, number or -1, number or -1))
    calls.complete_files(files)
    for number, (content, (seconds, rest)) in enumerate(zip(contents, times, strict=True)):
        path = tmp_path / str(number)
        assert path.read_bytes() == content
        status = path.stat()
        assert status.st_mtime_ns == seconds * 10**9 + rest
        assert (status.st_uid, status.st_gid) == (number, number)
        assert number == 0 or stat.S_IMODE(status.st_mode) == number
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(files[number][0])


@both
def test_a_file_that_cannot_be_completed_is_named_and_all_are_closed(
    calls: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "second").touch()
    fds = [
        os.open(tmp_path / name, flags | os.O_CREAT)
        for name, flags in (("first", os.O_WRONLY), ("second", os.O_RDONLY), ("third", os.O_WRONLY))
    ]
    names = ("first", "second", "third")
    files = [(fd, name, b"data", 1, 0, -1, -1, -1) for fd, name in zip(fds, names, strict=True)]
    error = refusal(calls.complete_files, files)
    assert (error.errno, error.filename) == (errno.EBADF, "second")
    assert [(tmp_path / name).read_bytes() for name in names] == [b"data", b"", b""]
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# -- handles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
def test_a_handle_stays_with_the_file(filesystems: Callable[[str], Path], kind: str) -> None:
    with tempfile.TemporaryDirectory(dir=filesystems(kind)) as folder, opened(folder) as fd:
        Path(folder, "file").touch()
        Path(folder, "other").touch()
        Path(folder, "link").symlink_to("file")
        os.link(f"{folder}/file", f"{folder}/hard")
        handle = system.file_handle(fd, "file")
        assert handle
        assert handle[1]
        assert system.file_handle(fd, "hard") == handle
        with opened(f"{folder}/file") as file:
            assert system.file_handle(file, "") == handle
        assert len({handle, system.file_handle(fd, "other"), system.file_handle(fd, "link")}) == 3
        os.rename(f"{folder}/file", f"{folder}/moved")
        assert system.file_handle(fd, "moved") == handle
        error = refusal(system.file_handle, fd, "file")
        assert (error.errno, error.filename) == (errno.ENOENT, "file")


def test_no_handle_where_the_filesystem_has_none() -> None:
    with opened("/proc") as proc:
        assert system.file_handle(proc, "version") is None


# -- IDs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "gid"),
    [
        (1000, 2000),
        pytest.param(2**31, 2**31 + 1, marks=machine_only(NO_OTHER_IDS)),
        pytest.param(2**32 - 2, 7, marks=machine_only(NO_OTHER_IDS)),
    ],
)
def test_one_thread_creates_as_someone_else(tmp_path: Path, uid: int, gid: int) -> None:
    tmp_path.chmod(0o777)
    # The kernel reports an overflow ID for those that its inodes cannot hold; ext4 and tmpfs can.
    with opened(tmp_path) as fd:

        def create(name: str) -> tuple[int, int]:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd))
            status = os.stat(name, dir_fd=fd)
            return status.st_uid, status.st_gid

        def as_another() -> list[tuple[int, int]]:
            system.set_fs_ids(uid, gid)
            before = create("theirs")
            system.set_fs_ids(0, 0)
            return [before, create("back")]

        assert in_thread(as_another) == [(uid, gid), (0, 0)]
        assert create("ours") == (0, 0)


def test_another_user_is_bound_by_permissions(top: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "dir").chmod(0o700)

    def look() -> int | None:
        system.set_fs_ids(1000, 1000)
        return refusal(system.open_beneath, top, "dir/inner", os.O_RDONLY).errno

    assert in_thread(look) == errno.EACCES
    os.close(system.open_beneath(top, "dir/inner", os.O_RDONLY))


def test_ids_are_refused_without_privilege() -> None:
    child = os.fork()
    if not child:
        number = 0
        try:
            os.setresuid(1000, 1000, 1000)
            system.set_fs_ids(0, 0)
        except OSError as error:
            number = error.errno or 0
        finally:
            os._exit(number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EPERM


# -- older kernels ----------------------------------------------------------------------------

_OPENAT2, _GETXATTRAT, _LISTXATTRAT = 437, 464, 465


def lack_calls(number: int) -> None:
    """Let the kernel refuse, for good, what came with Linux 5.6 and 6.13 (seccomp(2)).

    `number` is ENOSYS, or EPERM as container runtimes refuse what they do not know.
    """
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
    program = b"".join(
        struct.pack("=HBBI", *step)
        for step in [
            (load, 0, 0, 0),  # seccomp_data.nr
            (equal, 2, 0, _OPENAT2),
            (equal, 1, 0, _GETXATTRAT),
            (equal, 0, 1, _LISTXATTRAT),
            (answer, 0, 0, 0x00050000 | number),  # SECCOMP_RET_ERRNO
            (answer, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
    )
    steps = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", 6, ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, header):
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
def test_older_kernels_do_the_same(number: int) -> None:
    """This module's tests of two implementations, less those that need ".." beneath."""
    story = f"""
import sys, pytest
from tests.unionfs.test_system import lack_calls
lack_calls({number})
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {__file__!r}, "-k",
    "(pure or native) and not up_and_down and not any_path and not older and not fifo"]))
"""
    played = subprocess.run(
        [sys.executable, "-c", story], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert played.returncode == 0, played.stdout
