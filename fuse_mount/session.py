"""The life of one FUSE mount's process: checked, mounted, in the background, taken down.

All that can go wrong is tried before the process leaves its caller's sight, so that a failure is
one line on standard error and exit code 1, with nothing left mounted. The caller's process returns
when the mount answers. What serves the mount holds nothing of the caller's: no descriptor, no
folder, no terminal.

Signals are blocked from the mount on, until `service` handles them: none can leave a dead mount.

Cost: nothing that grows with the layers' files. Where C answers, pyfuse3 and trio, most of the
start's time, are imported once the mount answers; else, when the layers have been found good.
Who waits for the end of a process waits for no interpreter: it ends when its work is done.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Final, final

from fuse_mount import accelerate, device, subtree
from fuse_mount.answering import Answering
from fuse_mount.inodes import ROOT_ID, Inodes
from fuse_mount.terms import Terms, agree
from unionfs import resolve, system
from unionfs.mounting import check_target, is_dead, unmount
from unionfs.options import Command, MountOptions, OptionError
from unionfs.overlayfs import MountError
from unionfs.stack import LayerStack
from unionfs.workdir import mount_table, unescaped

_MOMENT: Final = 2.0
"""Seconds within which the program of a mount that was taken down ends."""
_LATER_DESCRIPTORS: Final = 24
"""More than pyfuse3, trio and the sockets to them open."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Those that take the mount down."""


def serve(command: Command) -> int:
    """Mount, and answer until it is unmounted; returns 1 where it could not be mounted.

    Then a line on standard error says why. Else the process ends in here: with 0 when it was
    unmounted, from outside or by SIGTERM, SIGINT or SIGHUP. Without `-f` that is a new process;
    the caller's ends with 0 when the mount answers.
    """
    with ExitStack() as held:
        try:
            inherited = _descriptors()
            _raise_limit()
            streams = _streams(command.log, held)
            target = check_target(command.target)
            below = os.stat(target).st_dev
            stack = _stack(command, held)
            mounted = _mount(stack, target, streams, held)
        except (OptionError, OSError, ImportError, RuntimeError) as error:
            complain(error)
            return 1
        if not command.foreground:
            if os.fork():
                held.pop_all()  # the new process' now
                os.close(mounted.device)
                code = _await_answer(target, below)
                sys.stderr.flush()
                os._exit(code)  # the caller waits for no interpreter either
            _detach(inherited, streams)
        os.umask(0)  # the kernel's requests carry modes as they shall be
        answering = _answering(mounted)
        from fuse_mount import service

        service.open_log(command, streams[2])
        code = service.run(mounted, answering, held)
    os._exit(code)


def complain(error: Exception) -> None:
    """One line on standard error, with the path that the error is about."""
    text = str(error)
    if isinstance(error, OSError):
        text = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    print(f"unionmount: {text}", file=sys.stderr)


def _descriptors() -> set[int]:
    """What is open, the standard streams apart."""
    found = [int(name) for name in os.listdir("/proc/self/fd")]
    # one of them was for the listing itself
    return {fd for fd in found if fd > 2 and os.path.lexists(f"/proc/self/fd/{fd}")}


def _raise_limit() -> None:
    """Open as many files as the caller may: every open file of the mount is one of ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _streams(log: str | None, held: ExitStack) -> tuple[int, int, int]:
    """What the standard streams are to be in the background: the log takes what libfuse prints."""
    null = os.open(os.devnull, os.O_RDWR)
    held.callback(os.close, null)
    if log is None:
        return null, null, null
    errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    held.callback(os.close, errors)
    return null, null, errors


def _stack(command: Command, held: ExitStack) -> LayerStack:
    """The layers, with the options as this mount has them, and the upper claimed."""
    parsed = command.parsed
    lost = parsed.options.not_by("fuse")
    if lost:
        raise OptionError(f"FUSE has no option {', '.join(lost)}; leave it out")
    stack = LayerStack(
        parsed.lower, parsed.upper, parsed.work, options=_settled(command), data=parsed.data
    )
    held.enter_context(stack)
    if not stack.options.ro:
        _claim(stack)
    return stack


def _claim(stack: LayerStack) -> None:
    """Hold the upper, which a mount that has just been taken down may still have for a moment."""
    patience = time.monotonic() + _MOMENT
    while True:
        try:
            stack.claim()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > patience:
                raise
        time.sleep(_MOMENT / 100)


def _settled(command: Command) -> MountOptions:
    """The options, with those that follow from others and from who we are."""
    options = command.parsed.options
    if options.allow_other and options.allow_root:
        raise OptionError("options allow_other and allow_root exclude each other; give one")
    return replace(
        options,
        ro=options.ro or command.parsed.upper is None,
        # as every user may enter what root mounts by the kernel
        allow_other=options.allow_other or (os.geteuid() == 0 and not options.allow_root),
        fsname=options.fsname or command.source,
    )


@final
@dataclass(frozen=True, slots=True)
class Mounted:
    """What is mounted, and not answered yet.

    number: the st_dev of its files. device: its /dev/fuse. request: INIT, for libfuse. root: the ID
    that the kernel has for its root.
    """

    stack: LayerStack
    target: str
    number: int
    terms: Terms
    inodes: Inodes
    device: int
    request: bytes | None
    root: int


def _mount(
    stack: LayerStack, target: str, streams: tuple[int, int, int], held: ExitStack
) -> Mounted:
    """All that can fail, the mount last."""
    terms = accelerate.decide(stack)
    inodes: Inodes
    if terms.fast:
        _check_later()
        inodes = accelerate.TableInodes(stack, terms)
    else:
        import fuse_mount.operations  # noqa: F401

        inodes = Inodes(resolve.root(stack))
    held.callback(inodes.close)
    held.callback(_clear, target)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    made = subtree.mount(target, stack.options, terms) if terms.fast and terms.acl else None
    mount = made[0] if made else device.mount(target, stack.options)
    held.callback(os.close, mount)
    request, root = (made[1], subtree.ROOT_ID) if made else (agree(mount, terms), ROOT_ID)
    number = _number(target)
    device.read_ahead(number)
    if stack.options.auto_unmount:
        _watch(target, streams)
    return Mounted(stack, target, number, terms, inodes, mount, request, root)


def _number(target: str) -> int:
    """The st_dev of what was mounted on target last, which need not answer; 0 where nothing is."""
    for line in reversed(mount_table()):
        _, _, number, _, place, _ = line.split(" ", 5)
        if unescaped(place) == target:
            return os.makedev(*map(int, number.split(":")))
    return 0


def _answering(mounted: Mounted) -> Answering | None:
    """C's answers, begun; None where pyfuse3 is to give them all."""
    if not isinstance(mounted.inodes, accelerate.TableInodes):
        return None
    system.keep_capabilities()
    table = mounted.inodes.table
    answering = Answering(table, mounted.device, mounted.request, mounted.root)
    answering.start()
    return answering


def _check_later() -> None:
    """Raise now what importing and starting pyfuse3 and trio would once the mount answers."""
    for module in ("pyfuse3", "trio"):
        if find_spec(module) is None:
            raise ImportError(f"no package {module}; install unionmount anew")
    with ExitStack() as opened:
        for _ in range(_LATER_DESCRIPTORS):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def _clear(target: str) -> None:
    """Take down a mount whose process has died, and nothing else."""
    if is_dead(target):
        with suppress(MountError):  # another of our processes was faster
            unmount(target, lazy=True)


def _watch(target: str, streams: tuple[int, int, int]) -> None:
    """Leave a process behind that clears the mount when this one and its heirs have died."""
    ended, _ = os.pipe()  # the other end stays open as long as we live
    if os.fork():
        os.close(ended)
        return
    try:
        _detach(_descriptors() - {ended}, streams)
        os.read(ended, 1)
        _clear(target)
    finally:
        os._exit(0)


def _await_answer(target: str, below: int) -> int:
    """In the caller's process: wait until the mount answers. below: the device under it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        died = os.stat(target).st_dev == below
    except OSError:
        died = True
        _clear(target)
    if died:
        complain(MountError(errno.EIO, "the mount died as it started; try -f to see why", target))
    return int(died)


def _detach(descriptors: set[int], streams: tuple[int, int, int]) -> None:
    """Hold nothing of the caller's: descriptors are closed, and the standard streams replaced."""
    os.setsid()
    os.chdir("/")
    for standard, fd in enumerate(streams):
        os.dup2(fd, standard)
    for fd in descriptors:
        os.close(fd)
