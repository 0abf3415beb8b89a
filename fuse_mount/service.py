"""A mount answered until its end: by C from the start, by pyfuse3 as soon as it is there.

Imported once C answers, as is all that it needs, so that nobody waits for it. Signals are blocked
until the loop handles them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from fuse_mount.session import SIGNALS
from unionfs import mount_api
from unionfs.mounting import unmount
from unionfs.options import WITHOUT_EFFECT, Command
from unionfs.overlayfs import MountError

if TYPE_CHECKING:
    from fuse_mount.answering import Answering
    from fuse_mount.connection import Connection
    from fuse_mount.session import Mounted

log = logging.getLogger(__name__)


def run(mounted: Mounted, answering: Answering | None, held: ExitStack) -> int:
    """Answer until the end, beside the threads that do already; the exit code.

    held: what is to be let go of afterwards, in addition to what it holds.
    """
    try:
        if answering is not None:
            _load(answering)
        if answering is None or not answering.gone:
            _answer(mounted, answering, held)
    except Exception:
        log.exception("%s: the mount failed", mounted.target)
        if answering is not None and not answering.gone:
            _take_down(mounted)
        return 1
    log.info("%s: unmounted", mounted.target)
    return 0


def open_log(command: Command, file: int) -> None:
    """Log to that file where the command names one, else to standard error."""
    stream = sys.stderr
    if command.log is not None:
        stream = os.fdopen(file, "a", encoding="utf-8", errors="backslashreplace", closefd=False)
    logging.basicConfig(
        stream=stream,
        level=logging.DEBUG if command.parsed.options.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for name in command.parsed.ignored:
        log.debug("option %s has no effect: %s", name, WITHOUT_EFFECT.get(name, "not for us"))


def _load(answering: Answering) -> None:
    """Import what answers the rest; returns when that is done, or the mount is gone."""

    def load() -> None:
        with suppress(Exception):  # who imports it next has it again
            import_module("fuse_mount.operations")
        answering.news.set()

    threading.Thread(target=load, daemon=True).start()
    answering.news.wait()


def _answer(mounted: Mounted, answering: Answering | None, held: ExitStack) -> None:
    import trio

    from fuse_mount.connection import Connection
    from fuse_mount.operations import Operations

    options = mounted.stack.options
    words = {name for name in ("debug", "allow_root") if getattr(options, name)}
    operations = Operations(mounted.stack, mounted.terms, mounted.inodes)
    connection = Connection(operations, words, mounted.device, mounted.request, answering)
    held.callback(connection.close)
    trio.run(_attended, connection, mounted)


async def _attended(connection: Connection, mounted: Mounted) -> None:
    import trio

    with trio.open_signal_receiver(*SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_attend, signals, mounted)
            await connection.answer()
            nursery.cancel_scope.cancel()


async def _attend(signals: AsyncIterator[int], mounted: Mounted) -> None:
    """What is done beside answering; in threads, as it has to be answered itself."""
    import pyfuse3
    import trio

    log.info("%s: mounted", mounted.target)
    number = await anext(signals)
    log.info("%s: %s", mounted.target, signal.Signals(number).name)
    await trio.to_thread.run_sync(_take_down, mounted)
    pyfuse3.terminate()


def _take_down(mounted: Mounted) -> None:
    """Unmount, or detach what is in use once its data is written out."""
    target = mounted.target
    if os.stat(target).st_dev != mounted.number:
        return  # it was detached already, or something was mounted over it
    try:
        unmount(target)
    except MountError as error:
        if error.errno != errno.EBUSY:
            raise
        mount_api.sync(target)
        unmount(target, lazy=True)
