"""The life of one FUSE mount's process: checked, mounted, in the background, taken down.

All that can go wrong is tried before the process leaves its caller's sight, so that a failure is
one line on standard error and exit code 1, with nothing left mounted. The caller's process returns
when the mount answers. What serves the mount holds nothing of the caller's: no descriptor, no
folder, no terminal.

Signals are blocked from the mount on until the loop handles them: none can leave a dead mount.

Cost: nothing that grows with the layers' files. pyfuse3 and trio, most of the start's time, are
imported when the command line and the layers have been found good.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from unionfs import mount_api
from unionfs.mounting import check_target, is_dead, unmount
from unionfs.options import WITHOUT_EFFECT, Command, MountOptions, OptionError
from unionfs.overlayfs import MountError
from unionfs.stack import LayerStack

if TYPE_CHECKING:
    from fuse_mount.device import Connection

_MOMENT: Final = 2.0
"""Seconds within which the program of a mount that was taken down ends."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


def serve(command: Command) -> int:
    """Mount, and answer until it is unmounted; the exit code.

    0 when it was unmounted, from outside or by SIGTERM, SIGINT or SIGHUP; 1, after a line on
    standard error, when it could not be mounted. Without `-f` this forks: the caller's process
    returns when the mount answers, the new one when it was unmounted.
    """
    with ExitStack() as held:
        try:
            inherited = _descriptors()
            _raise_limit()
            streams = _streams(command, held)
            target = check_target(command.target)
            below = os.stat(target).st_dev
            stack = _stack(command, held)
            connection = _mount(stack, target, streams, held)
        except (OptionError, OSError, ImportError, RuntimeError) as error:
            complain(error)
            return 1
        if not command.foreground:
            if os.fork():
                held.pop_all()  # the new process' now
                connection.disown()
                return _await_answer(target, below)
            _detach(inherited, streams)
        return _run(connection, target)


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


def _streams(command: Command, held: ExitStack) -> tuple[int, int, int]:
    """Log to the file that was named, else to standard error.

    Gives what the standard streams are to be in the background: libfuse prints what is wrong, which
    belongs in the log.
    """
    null = os.open(os.devnull, os.O_RDWR)
    held.callback(os.close, null)
    stream, errors = sys.stderr, null
    if command.log:
        file = open(command.log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        stream = held.enter_context(file)
        errors = stream.fileno()
    logging.basicConfig(
        stream=stream,
        level=logging.DEBUG if command.parsed.options.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for name in command.parsed.ignored:
        log.debug("option %s has no effect: %s", name, WITHOUT_EFFECT.get(name, "not for us"))
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


def _mount(
    stack: LayerStack, target: str, streams: tuple[int, int, int], held: ExitStack
) -> Connection:
    """All that can fail, the mount last."""
    from fuse_mount.device import Connection
    from fuse_mount.operations import Operations

    options = stack.options
    operations = Operations(stack)
    held.callback(operations.close)
    held.callback(_clear, target)
    words = {name for name in ("debug", "allow_root") if getattr(options, name)}
    connection = Connection(
        operations, words, operations.table, passthrough=operations.passthrough
    )
    held.callback(connection.close)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    connection.mount(target, options)
    if options.auto_unmount:
        _watch(target, streams)
    return connection


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
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


def _run(connection: Connection, target: str) -> int:
    """Answer until the end; the exit code."""
    import trio

    os.umask(0)  # the kernel's requests carry modes as they shall be
    try:
        trio.run(_answer, connection, target)
    except Exception:
        log.exception("%s: the mount failed", target)
        return 1
    log.info("%s: unmounted", target)
    return 0


async def _answer(connection: Connection, target: str) -> None:
    import trio

    await connection.negotiate()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_attend, signals, target)
            await connection.answer()
            nursery.cancel_scope.cancel()


async def _attend(signals: AsyncIterator[int], target: str) -> None:
    """What is done beside answering; in threads, as it has to be answered itself."""
    import pyfuse3
    import trio

    own = (await trio.to_thread.run_sync(os.stat, target)).st_dev
    log.info("%s: mounted", target)
    number = await anext(signals)
    log.info("%s: %s", target, signal.Signals(number).name)
    await trio.to_thread.run_sync(_take_down, target, own)
    pyfuse3.terminate()


def _take_down(target: str, own: int) -> None:
    """Unmount, or detach what is in use once its data is written out. own: our device number."""
    if os.stat(target).st_dev != own:
        return  # it was detached already, or something was mounted over it
    try:
        unmount(target)
    except MountError as error:
        if error.errno != errno.EBUSY:
            raise
        mount_api.sync(target)
        unmount(target, lazy=True)
