"""A private room for a container client: its own mounts, processes, users and devices.

Clients change the machine they run on: mounts, daemons, users, lock files under /run. In a room
(a mount and PID namespace) they change only the room, and it all ends with the room's first
process, which ends by itself when the test process does, however that ends. The rule: what a test
needs of the machine is altered in `_FURNISH` and nowhere else.

What is furnished, and why:
- /run, /var/tmp and /dev/shm are empty, so no state is shared with the machine's own clients;
- /etc may be written, so a test can add users;
- /dev/fuse is open to ordinary users, as udev makes it on a desktop but not in a bare machine;
- /sys/fs/cgroup is cgroup v2, since crun refuses the hybrid of v1 and v2;
- /usr/local/sbin holds the mount program and nothing else: mount(8) drops PATH before it starts
  a helper, and /bin/sh then looks in its built-in path, where this folder comes first.

A room costs 20 ms, a command in it 3 ms.
"""

import os
import select
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

PATIENCE = 120  # seconds after which a command counts as hung
_FURNISH = """
set -e
umask 022
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir /run/etc /run/etc.work /run/bin /run/user
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
touch /etc/subuid /etc/subgid
cp -a /dev/fuse /run/fuse
chmod 666 /run/fuse
mount --bind /run/fuse /dev/fuse
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s "$1" /run/bin/
mount --bind /run/bin /usr/local/sbin
echo furnished
cat
"""  # cat ends with its input; the shell around it, as PID 1, reaps what daemons leave behind


class CommandFailed(AssertionError):
    """A command in the room ended with an error; the message is its call and what it printed."""


@final
@dataclass(frozen=True, slots=True)
class MountedFilesystem:
    """One line of mountinfo: where, and of which type."""

    target: str
    fstype: str


def parse_mountinfo(text: str) -> list[MountedFilesystem]:
    """The mounts in the text of a /proc/PID/mountinfo (proc_pid_mountinfo(5))."""
    mounts = []
    for line in text.splitlines():
        before, after = line.split(" - ", 1)
        mounts.append(MountedFilesystem(before.split()[4], after.split()[0]))
    return mounts


@final
class Room:
    """The namespaces, alive between entering and leaving the context."""

    def __init__(self, program: Path) -> None:
        """Prepare a room in which `program` is the mount program on mount(8)'s path."""
        self._program = program
        self._init = 0
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Furnish it; CommandFailed when this machine does not allow that."""
        with ExitStack() as stack:
            # fmt: off
            shell = stack.enter_context(subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "sh", "-c", _FURNISH, "sh", str(self._program)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            ))
            # fmt: on
            stack.callback(shell.kill)
            assert shell.stdout
            if shell.stdout.readline() != "furnished\n":
                raise CommandFailed("cannot furnish a room; its first error is printed above")
            children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text()
            self._init = int(children.split()[0])
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of the room and with them every mount."""
        init = os.pidfd_open(self._init)
        self._exit.close()
        # The init's end is reported when the kernel has ended everything else in its namespace.
        select.select([init], [], [], PATIENCE)
        os.close(init)

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, folder: Path = Path("/")
    ) -> str:
        """Run a command in the room as root; return what it prints, raise CommandFailed."""
        # env changes to the folder inside: nsenter's own --wd would be a folder of outside's mounts
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--"]
        enter += ["env", f"--chdir={folder}"]
        done = subprocess.run(
            [*enter, *map(str, command)],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise CommandFailed(f"{' '.join(map(str, command))} → {done.returncode}\n{said}")
        return done.stdout

    def mounts(self) -> list[MountedFilesystem]:
        """What is mounted in any mount namespace that the room's processes are in."""
        texts = {}
        for process in self._processes():
            try:
                texts[(process / "ns/mnt").readlink()] = (process / "mountinfo").read_text()
            except OSError:
                continue  # it ended meanwhile, or is a zombie
        return [mount for text in texts.values() for mount in parse_mountinfo(text)]

    def wait_for_end(self, mention: str) -> list[str]:
        """Wait for the processes with `mention` in their command line; return those that stay."""
        stayed = []
        for process in self._processes():
            try:
                call = (process / "cmdline").read_text().replace("\0", " ")
                if mention not in call:
                    continue
                pidfd = os.pidfd_open(int(process.name))
            except OSError:
                continue  # it ended meanwhile
            if not select.select([pidfd], [], [], PATIENCE)[0]:
                stayed.append(call)
            os.close(pidfd)
        return stayed

    def _processes(self) -> list[Path]:
        """The room's processes, as folders of this namespace's /proc."""
        room = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns/pid") == room:
                    found.append(process)
            except OSError:
                continue  # it ended meanwhile
        return found
