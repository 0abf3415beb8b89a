"""The threads that answer a mount from C's table, whether pyfuse3 is there yet or not.

What C does not answer goes through a socket, where it waits until pyfuse3 reads it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from fuse_mount._fast import Table

_THREADS: Final = 4
"""How many threads answer the kernel: one does, unless it waits for a disk."""


@final
class Answering:
    """A mount's answers from C.

    device: the mount's, which stays the caller's. request: INIT for libfuse, whose reply to it the
    kernel ignores, as it has had one. root: the ID that the kernel has for the root.

    session: the descriptor that pyfuse3 is to answer. news: set when the mount is gone, and by
    whoever else has some.
    """

    def __init__(self, table: Table, device: int, request: bytes | None, root: int) -> None:
        self._table = table
        self.session = table.start(device, request, root)
        self.news = threading.Event()
        self._gone = threading.Event()
        self._error: OSError | None = None

    def start(self) -> None:
        """Answer from now on, in threads that inherit this one's rights."""
        for work in (*[self._serve] * _THREADS, self._table.carry):
            threading.Thread(target=work, daemon=True).start()

    def _serve(self) -> None:
        try:
            self._table.serve()
        except OSError as error:
            self._error = error
        self._gone.set()
        self.news.set()

    @property
    def gone(self) -> bool:
        """Whether nothing is answered any more."""
        return self._gone.is_set()

    def end(self) -> None:
        """Wait for the mount's end. Raises OSError where it was not unmounted."""
        self._gone.wait()
        if self._error is not None:
            raise self._error
