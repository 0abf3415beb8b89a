"""Requests that no kernel sends, to what answers them in C: `… requests SEED COUNT`.

A socket stands in the device's place. Headers and arguments are of a random opcode: whole, cut
short, too long, noise, about nodes and files that exist or not. Every request that is owed an
answer gets one, here or from pyfuse3, and the process ends whole. Descriptors in a request are the
kernel's to give, so only such as the answers gave are used.
"""

import errno
import os
import random
import socket
import struct
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from fuse_mount.accelerate import TableInodes, decide
from fuse_mount.operations import Operations
from tests.tree import build, directory, file, symlink
from unionfs import LayerStack, MountOptions

_HEADER = struct.Struct("=IIQQIIIHH")  # linux/fuse.h, struct fuse_in_header
_ANSWER = struct.Struct("=IiQ")
_SILENT = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
_BY_DESCRIPTOR = {15, 16, 18, 20, 43, 46, 47}  # READ WRITE RELEASE FSYNC FALLOCATE LSEEK COPY
_OPCODES = [code for code in range(1, 54) if code not in (26, 38)]  # INIT, DESTROY
_LOOKUP, _GETATTR, _OPEN, _READ, _RELEASE = 1, 3, 14, 15, 18
_SIZES = (0, 4, 8, 16, 24, 32, 40, 48, 56, 88, 200)
_NAMES = (
    b"a",
    b"d",
    b"link",
    b"absent",
    b"..",
    b".",
    b"",
    b"x" * 255,
    b"y" * 3000,
    b"a/b",
    b".wh.a",
)


class Kernel:
    """The other end of the device."""

    def __init__(self, seed: int, device: socket.socket) -> None:
        self.random = random.Random(seed)
        self.device = device
        self.unique = 0

    def ask(self, opcode: int, node: int, argument: bytes, length: int | None = None) -> bytes:
        """Send a request; its answer, notifications and those to others passed over."""
        self.unique += 2
        size = _HEADER.size + len(argument) if length is None else length
        header = _HEADER.pack(size, opcode, self.unique, node, 0, 0, os.getpid(), 0, 0)
        self.device.send(header + argument)
        while opcode not in _SILENT:
            answer = self.device.recv(1 << 21)
            if _ANSWER.unpack_from(answer)[2] == self.unique:
                return answer
        return b""

    def anything(self) -> None:
        """One request of any kind."""
        pick = self.random
        opcode = pick.choice(_OPCODES)
        node = pick.choice([0, 1, 1, 3, 4, 5, 6, pick.getrandbits(64)])  # 2 is the kept file
        fixed = bytearray(pick.randbytes(pick.choice(_SIZES)))
        if opcode in _BY_DESCRIPTOR:
            fixed[:8] = struct.pack("=Q", 1 << 30)
        names = b"\0".join(pick.choices(_NAMES, k=pick.randint(0, 3))) + pick.choice([b"", b"\0"])
        argument = bytes(fixed) + names
        self.ask(opcode, node, argument[: pick.choice([len(argument)] * 3 + [0, 7, 20])])

    def lies(self) -> None:
        """A length other than that of the message."""
        length = self.random.choice([0, 39, 41, 1 << 16, 0xFFFFFFFF])
        answer = self.ask(_GETATTR, 1, bytes(16), length)
        assert _ANSWER.unpack_from(answer)[1] == -errno.EINVAL

    def strays(self) -> None:
        """Names that lead out of a directory, below a file, or to no file's data."""
        for name in (b"..", b".", b"", b"d/a"):
            assert _ANSWER.unpack_from(self.ask(_LOOKUP, 1, name + b"\0"))[1] == -errno.EINVAL
        found = self.ask(_LOOKUP, 1, b"kept\0")
        (node,) = struct.unpack_from("=Q", found, _ANSWER.size)
        below = self.ask(_LOOKUP, node, b"name\0")
        assert _ANSWER.unpack_from(below)[1] == -errno.ENOTDIR
        assert _ANSWER.unpack_from(self.ask(_OPEN, 1, bytes(8)))[1] == -errno.EINVAL

    def serves(self) -> None:
        """The root is there, and a file that no request names can be looked up and read."""
        assert _ANSWER.unpack_from(self.ask(_GETATTR, 1, bytes(16)))[1] == 0
        found = self.ask(_LOOKUP, 1, b"kept\0")
        assert _ANSWER.unpack_from(found)[1] == 0
        (node,) = struct.unpack_from("=Q", found, _ANSWER.size)
        opened = self.ask(_OPEN, node, bytes(8))
        assert _ANSWER.unpack_from(opened)[1] == 0
        (handle,) = struct.unpack_from("=Q", opened, _ANSWER.size)
        data = self.ask(_READ, node, struct.pack("=QQIIQII", handle, 0, 100, 0, 0, 0, 0))
        assert data[_ANSWER.size :] == b"content"
        self.ask(_RELEASE, node, struct.pack("=QIIQ", handle, 0, 0, 0))


def _refuse(forwarded: socket.socket) -> None:
    """In pyfuse3's place: not one request is known."""
    while request := forwarded.recv(1 << 21):
        unique, opcode = _HEADER.unpack_from(request)[2], _HEADER.unpack_from(request)[1]
        if opcode not in _SILENT:
            forwarded.send(_ANSWER.pack(_ANSWER.size, -errno.ENOSYS, unique))


def main(seed: int, count: int) -> None:
    """Send so many requests, the same for one seed; with an odd one, the layer has an index."""
    with ExitStack() as held:
        base = held.enter_context(tempfile.TemporaryDirectory(prefix="requests-"))
        for name in ("upper", "work"):
            Path(base, name).mkdir()
        tree = {
            "kept": file(b"content"),
            "a": file(b"a"),
            "d": directory(),
            "d/a": file(),
            "link": symlink("a"),
        }
        build(f"{base}/lower", tree)
        options = MountOptions(layer_index=f"{base}/indexes" if seed % 2 else None)
        stack = held.enter_context(
            LayerStack([f"{base}/lower"], f"{base}/upper", f"{base}/work", options=options)
        )
        stack.claim()
        inodes = TableInodes(stack, decide(stack))
        Operations(stack, decide(stack), inodes)
        table = inodes.table
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kernel.settimeout(30)
        pyfuse3 = socket.socket(fileno=table.start(device.fileno(), None, 1))
        works = (table.serve, table.carry)
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        threads.append(threading.Thread(target=_refuse, args=(pyfuse3,), daemon=True))
        for thread in threads:
            thread.start()
        asking = Kernel(seed, kernel)
        for number in range(count):
            if number % 50 == 0:
                asking.serves()
                asking.lies()
                asking.strays()
            asking.anything()
        asking.serves()
    os._exit(0)  # the threads wait for more


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
