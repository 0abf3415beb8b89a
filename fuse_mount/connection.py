"""pyfuse3's one session: it answers all of a mount's requests, or those that C leaves to it.

libfuse insists on an INIT of its own, though the kernel has had its answer (`terms`). So it is
given one end of a socket pair as its device, and gets INIT there. With C, which answers the real
device, the socket stays between the two. Without, the device then takes the socket's descriptor: no
request costs more than with libfuse's own mount; less, in fact, as libfuse does not splice where it
takes the kernel for an old one.
"""

from __future__ import annotations

import os
import socket
from typing import Final, final

import pyfuse3
import trio

from fuse_mount.answering import Answering

_TASKS: Final = 5
"""How many of pyfuse3's tasks stay when idle: each new one has to set up a buffer of a megabyte."""


@final
class Connection:
    """One session.

    options: of libfuse, `debug` and `allow_root`. device: the mount's, which stays the caller's.
    request: INIT as libfuse is to see it; None where the mount is gone. answering: what answers
    the device, unless it is pyfuse3 alone.

    Raises RuntimeError where libfuse fails.
    """

    def __init__(
        self,
        operations: pyfuse3.Operations,
        options: set[str],
        device: int,
        request: bytes | None,
        answering: Answering | None = None,
    ) -> None:
        self._device = device
        self._request = request
        self._answering = answering
        if answering is None:
            self._socket, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._session = session.detach()  # libfuse's, from now on
        else:
            self._session = answering.session
        pyfuse3.init(operations, f"/dev/fd/{self._session}", options)

    async def answer(self) -> None:
        """Answer the kernel until the mount is gone. Raises OSError where that fails."""
        if self._answering is None:
            if self._request is not None:
                await self._agree(self._request)
            os.dup2(self._device, self._session, inheritable=False)
            self._socket.close()
            await pyfuse3.main(min_tasks=_TASKS)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, self._answering, nursery.cancel_scope)
            await pyfuse3.main(min_tasks=_TASKS)
            nursery.cancel_scope.cancel()

    async def _agree(self, request: bytes) -> None:
        """Have libfuse answer INIT by the socket.

        pyfuse3's loop runs for the one request and is taken down again, so that nothing waits for
        the socket when the device takes its place.
        """
        self._socket.send(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(self._socket.fileno())
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """End it; what is mounted stays so."""
        pyfuse3.close(unmount=False)


async def _cancel_after(answering: Answering, scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(answering.end, abandon_on_cancel=True)
    scope.cancel()  # it may not have begun, so that pyfuse3.terminate could be too early
