"""Mount a stack by the kernel's overlayfs or by FUSE, say which and why, and take it down again.

What a kernel can mount is found out by trying, never from its version: it refuses before anything
is attached, and says why. The FUSE filesystem is a child process of its own, so that this library
does not depend on it and the mount outlives its caller. That process uses this module too, and
nothing that starts one: functions import that when they need it.

Rules: mount_namespaces(7), proc_pid_mountinfo(5), fusermount3(1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Literal, final

from unionfs import mount_api
from unionfs.options import (
    Command,
    MountOptions,
    OptionError,
    parse_command,
    render,
    split_lowerdir,
)
from unionfs.overlayfs import SOURCE, MountError, mount_overlay
from unionfs.stack import LayerStack
from unionfs.workdir import mount_table, unescaped

Backend = Literal["overlayfs", "fuse"]

_PATIENCE: Final = 5
"""Seconds that a mount program may take to end once its mount is down."""
FUSE_TYPE: Final = f"fuse.{SOURCE}"
_TYPES: Final[dict[str, Backend]] = {
    "overlay": "overlayfs",
    FUSE_TYPE: "fuse",
    "fuse.fuse-overlayfs": "fuse",
}
FUSE_SUBTREE: Final = ".union"
"""What is mounted of a FUSE filesystem, where it is not its root."""
_ROOTS: Final = ("/", f"/{FUSE_SUBTREE}")
_FUSE_PROGRAMS: Final = ("fuse_mount", "unionmount", "fuse-overlayfs")

# How a kernel says that it cannot mount this stack here, whereas FUSE may. Other errors, such as
# EBUSY, are about the layers themselves.
_FUSE_MAY: Final = {
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.ENODEV,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}


@final
@dataclass(frozen=True, slots=True)
class Mount:
    """A union that was mounted; as a context manager it is unmounted at the end.

    target: where, symlinks resolved. why: the reason for the backend, in words for a user.
    """

    target: str
    backend: Backend
    why: str

    def unmount(self, *, lazy: bool = False) -> None:
        """`unmount` of this target."""
        unmount(self.target, lazy=lazy)

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """After a failure lazily: its cause may hold a file open."""
        self.unmount(lazy=error is not None)


@final
@dataclass(frozen=True, slots=True)
class ActiveMount:
    """A union in the table of mounts.

    type: the filesystem's type, which tells unionmount from fuse-overlayfs.
    lower, upper, work, data: as the mount was given them; empty and None where that is not known.
    options: those that say how the layers are read.
    dead: whether it is a FUSE mount whose program has died; only unmounting it makes sense.
    """

    target: str
    backend: Backend
    type: str
    source: str
    read_only: bool
    dead: bool = False
    lower: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    options: MountOptions = field(default_factory=MountOptions)
    data: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether unionmount mounted it."""
        return self.type == FUSE_TYPE or self.source == SOURCE


def mount(
    stack: LayerStack,
    target: str | os.PathLike[str],
    backend: Literal["auto", "overlayfs", "fuse"] = "auto",
) -> Mount:
    """Mount stack at the directory target, which need not be empty.

    auto: the kernel's overlayfs, or FUSE where that cannot mount this stack or honour its options.

    Raises MountError, and StackError where upper or work is in use; then nothing is mounted.
    """
    place = check_target(target)
    if not stack.options.ro:
        stack.check_claim()
    if backend == "fuse":
        return _mount_fuse(stack, place, "it was asked for")
    needs_fuse = stack.options.not_by("overlayfs")
    if needs_fuse:
        why = f"kernel overlayfs has no option {', '.join(needs_fuse)}"
        if backend == "overlayfs":
            raise MountError(errno.EINVAL, f"{why}; mount by FUSE", place)
        return _mount_fuse(stack, place, why)
    try:
        mount_overlay(stack, place)
    except MountError as error:
        needs_kernel = stack.options.not_by("fuse")
        if backend == "overlayfs" or needs_kernel or error.errno not in _FUSE_MAY:
            raise
        return _mount_fuse(stack, place, error.strerror or "")
    why = "it was asked for" if backend == "overlayfs" else "the kernel can mount this stack"
    return Mount(place, "overlayfs", why)


def check_target(target: str | os.PathLike[str]) -> str:
    """The path of the directory target, symlinks resolved.

    Raises MountError (ENOENT, ENOTDIR, EBUSY, …) where no union can be mounted on it.
    """
    path = os.path.realpath(target)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise MountError(errno.ENOENT, "target does not exist; make the directory", path) from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise MountError(error.errno, f"target: {error.strerror}", path) from None
        message = "target is a FUSE mount whose program died; unmount it first"
        raise MountError(errno.ENOTCONN, message, path) from None
    if not stat.S_ISDIR(mode):
        raise MountError(errno.ENOTDIR, "target is not a directory; name a directory", path)
    if any(active.target == path and active.ours for active in _table()):
        raise MountError(errno.EBUSY, "a union is mounted on target; unmount it first", path)
    return path


def _mount_fuse(stack: LayerStack, target: str, why: str) -> Mount:
    """Mount in a child process. Raises MountError, which says why it had to be FUSE."""
    import importlib.util
    import subprocess

    lost = stack.options.not_by("fuse")
    if lost:
        raise MountError(errno.EINVAL, f"FUSE has no option {', '.join(lost)} ({why})", target)
    if stack.options.debug:
        message = "option debug keeps the mount program in front; run it yourself: unionmount -d"
        raise MountError(errno.EINVAL, message, target)
    found = importlib.util.find_spec("fuse_mount")
    if found is None or not found.submodule_search_locations:
        message = f"FUSE: the package fuse_mount is not installed; FUSE is needed as {why}"
        raise MountError(errno.ENOSYS, message, target)
    home = os.path.dirname(found.submodule_search_locations[0])
    if not stack.options.ro:
        stack.check_owners()
    options = render(
        stack.options,
        [layer.path for layer in stack.lower],
        stack.upper.path if stack.upper else None,
        stack.work,
        [layer.path for layer in stack.data],
    )
    try:
        # -P: a module in the current directory, which may be anyone's, must not take the place of
        # one of ours.
        child = subprocess.run(
            [sys.executable, "-P", "-m", "fuse_mount", "-o", options, target],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_python_path(home))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        message = f"FUSE: the paths of {len(stack.lower)} layers do not fit into a command line"
        raise MountError(errno.E2BIG, f"{message}; use shorter paths", target) from None
    if child.returncode:
        lines = os.fsdecode(child.stderr).strip().splitlines() or ["the mount program died"]
        words = lines[-1].removeprefix(f"{SOURCE}: ").removeprefix(f"{target}: ")
        raise MountError(errno.EIO, f"{words} (FUSE, as {why})", target)
    return Mount(target, "fuse", why)


def _python_path(home: str) -> Iterator[str]:
    yield home
    if path := os.environ.get("PYTHONPATH"):
        yield path


def unmount(target: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Take down the union at target, the topmost one where there are several.

    lazy: take it out of sight at once, and down when nothing uses it any more; a dead mount always
    goes so. Otherwise the layers are free for another mount when this returns.

    Raises MountError: EBUSY while it is in use, EINVAL where no union is mounted.
    """
    import select

    path = os.path.realpath(target)
    backends = {active.backend for active in _table() if active.target == path}
    if not backends:
        raise MountError(errno.EINVAL, "no union is mounted there", path)
    serving = []
    if "fuse" in backends and not lazy:
        serving = [pid for pid, where, _ in _fuse_commands() if where == path]
        lazy = not serving and is_dead(path)
    with ExitStack() as held:
        programs = [] if os.getpid() in serving else list(_opened(serving, held))
        _take_down(path, backends, lazy)
        for program in programs:
            select.select([program], [], [], _PATIENCE)


def _opened(processes: list[int], held: ExitStack) -> Iterator[int]:
    """A descriptor of each process that has not ended."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process)
            held.callback(os.close, fd)
            yield fd


def _take_down(path: str, backends: set[Backend], lazy: bool) -> None:
    try:
        mount_api.umount(path, lazy=lazy)
    except PermissionError as error:
        if "fuse" not in backends:
            raise MountError(errno.EPERM, "only root may unmount it", path) from error
        _fusermount(path, lazy)
    except OSError as error:
        words = error.strerror or ""
        if error.errno == errno.EBUSY:
            words = "it is in use; end what uses it (fuser -m finds that), or unmount lazily"
        raise MountError(error.errno, f"cannot unmount: {words}", path) from error


def _fusermount(target: str, lazy: bool) -> None:
    """Unmount a FUSE filesystem as the ordinary user who mounted it."""
    import subprocess

    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target]
    try:
        child = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        message = "cannot unmount: no program fusermount3; install the package fuse3"
        raise MountError(errno.ENOENT, message, target) from None
    if child.returncode:
        words = os.fsdecode(child.stderr).strip()
        number = errno.EBUSY if "busy" in words.lower() else errno.EPERM
        raise MountError(number, f"cannot unmount: {words}", target)


def list_mounts() -> list[ActiveMount]:
    """The unions mounted in this mount namespace, whoever mounted them, in order of mounting."""
    commands = None
    mounts = []
    for active in _table():
        if active.backend == "fuse":
            if commands is None:
                commands = {target: command for _, target, command in _fuse_commands()}
            if active.target in commands:
                active = _with_layers(active, commands[active.target])
            else:
                active = replace(active, dead=is_dead(active.target))
        mounts.append(active)
    return mounts


def is_dead(target: str) -> bool:
    """Whether what is mounted at target is a FUSE mount that no program answers for any more."""
    try:
        os.statvfs(target)  # never answered from the kernel's cache
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _table() -> Iterator[ActiveMount]:
    """The unions in /proc/self/mountinfo; the layers of FUSE ones are not in there."""
    for line in mount_table():
        where, _, what = line.partition(" - ")
        _, _, _, root, target, attributes, *_ = where.split(" ")
        kind, source, parameters = what.split(" ")
        if kind not in _TYPES or root not in _ROOTS:
            continue
        words = [word.partition("=") for word in parameters.split(",")]
        values = {name: unescaped(value) for name, _, value in words}
        lower, data = (
            [unescaped(value) for name, _, value in words if name == wanted]
            for wanted in ("lowerdir+", "datadir+")
        )
        if "lowerdir" in values:
            # mount(2) was given numbers of descriptors where the paths were too long for it
            paths, data = split_lowerdir(values["lowerdir"])
            lower = [path for path in paths if not path.isdecimal()]
        yield ActiveMount(
            target=unescaped(target),
            backend=_TYPES[kind],
            type=kind,
            source=unescaped(source),
            read_only="ro" in attributes.split(",") or "ro" in values,
            lower=tuple(lower),
            upper=values.get("upperdir"),
            work=values.get("workdir"),
            options=MountOptions(
                userxattr="userxattr" in values,
                index=_switch(values.get("index")),
                metacopy=_switch(values.get("metacopy")),
            ),
            data=tuple(data),
        )


def _switch(value: str | None) -> bool | None:
    return None if value is None else value == "on"


def _with_layers(active: ActiveMount, command: Command) -> ActiveMount:
    parsed = command.parsed
    return replace(
        active,
        lower=tuple(parsed.lower),
        upper=parsed.upper,
        work=parsed.work,
        options=parsed.options,
        data=tuple(parsed.data),
    )


def _fuse_commands() -> Iterator[tuple[int, str, Command]]:
    """Process, target and command line of each FUSE mount program that runs."""
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                arguments = os.fsdecode(file.read()).split("\0")[:-1]
        except OSError:
            continue  # it has ended
        names = [os.path.basename(argument) for argument in arguments[:5]]
        at = next((at for at, name in enumerate(names) if name in _FUSE_PROGRAMS), None)
        if at is None:
            continue
        try:
            command = parse_command(arguments[at + 1 :])
        except OptionError:
            continue  # no mount: another command of that name
        parsed = command.parsed
        paths = [
            command.target,
            *parsed.lower,
            *parsed.data,
            *filter(None, (parsed.upper, parsed.work)),
        ]
        # Without layers it is no mount either. Where it was started, in the background it has left.
        if parsed.lower and all(map(os.path.isabs, paths)):
            yield int(process), os.path.realpath(command.target), command
