"""Faults of the system in the middle of an operation, made by strace(1) from outside.

Each system call that changes a file counts as a step. At one of them a process is killed, or told
that the call failed; so every state in which a crash can leave the disk is met, whatever part of
the code, Python or C, makes the call. Cost: 30 ms to attach.
"""

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHANGES = ",".join(
    [
        *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
        *("mkdir", "mkdirat", "mknod", "mknodat", "unlink", "unlinkat", "rmdir"),
        *("chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat", "utimensat"),
        *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
        *("truncate", "ftruncate", "pwrite64", "copy_file_range", "fsync", "fdatasync", "openat2"),
    ]
)
"""The steps. Files are made by openat2(2) and opened by it, so those are steps too."""

KILLED = -signal.SIGKILL

Step = tuple[str, int]
"""A system call's name, and which of the calls of that name it is, from 1 on."""


@contextmanager
def traced(process: int, *options: str) -> Iterator[None]:
    """With strace on a process and its threads."""
    command = ["strace", "-f", *options, "-p", str(process)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert "attached" in (said := tracer.stderr.readline()), said
            yield
        finally:
            tracer.kill()  # asked to end, it may wait for ever for a thread that was killed


def watching(log: Path) -> list[str]:
    """The options of `traced` that write a log for `steps_in`."""
    return ["-o", str(log), "-e", f"trace={CHANGES}"]


def steps_in(log: Path) -> list[Step]:
    """What steps a process took while it was watched."""
    found: dict[Step, None] = {}
    seen: Counter[tuple[str, str]] = Counter()  # each thread counts by itself
    lines = re.findall(r"^(\d+) +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE)
    for thread, name in lines:
        if name in CHANGES.split(","):  # others are too new for strace to know them
            seen[thread, name] += 1
            found[name, seen[thread, name]] = None
    return [*found]


def failing(step: Step, fault: str) -> list[str]:
    """The options of `traced` that make a step fail: "signal=KILL", or "error=EIO"."""
    name, number = step
    return ["-o", "/dev/null", "-e", f"inject={name}:{fault}:when={number}"]


def run(work: Callable[[], None], *options: str) -> int:
    """Run work in a child that is traced with these options; its end.

    0: it came to its end. KILLED; or the errno that it raised.
    """
    ready, ours = os.pipe()
    theirs, go = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(go)
            os.write(ours, b"!")
            os.read(theirs, 1)
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(255)
    try:
        os.close(theirs)
        os.read(ready, 1)
        with traced(child, *options):
            os.write(go, b"!")
            _, status = os.waitpid(child, 0)
    finally:
        for fd in (ready, ours, go):
            os.close(fd)
    return os.waitstatus_to_exitcode(status)
