"""What an OCI runtime is told of a container: config.json, from the image's settings and a user's.

A container has namespaces of its own for processes, mounts, host name, IPC and network; the last
has nothing but a loopback device, unless it shares the machine's. What it may do is told by
`privileges` and `seccomp`. What the machine's user namespace does not map is left out, so that an
ordinary user's containers start too.

Rules: OCI runtime specification, config.md and config-linux.md; image specification, config.md and
conversion.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

from unionfs.containers import privileges
from unionfs.containers.seccomp import syscall_filter
from unionfs.images.documents import Settings
from unionfs.union import UnionFS

PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMES: Final = ("/etc/resolv.conf", "/etc/hosts")
_TTY_GROUP: Final = 5
_CPU_PERIOD: Final = 100_000  # microseconds
_NAME_MAX: Final = 64  # of a host, as the kernel has it


@final
@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the machine, source, seen in the container at target."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Volume:
        """SOURCE:TARGET[:ro|rw]. Raises OSError EINVAL, ENOENT for a source that is not there."""
        source, _, rest = text.partition(":")
        target, _, access = rest.partition(":")
        if not source or not target.startswith("/") or access not in ("", "ro", "rw"):
            message = "not a volume; write SOURCE:TARGET[:ro] with an absolute TARGET"
            raise OSError(errno.EINVAL, message, text)
        if not os.path.exists(source):
            raise OSError(errno.ENOENT, "does not exist; make the directory", source)
        return cls(os.path.realpath(source), target, access == "ro")


@final
@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A directory in memory at target; options are mount(8)'s."""

    target: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Tmpfs:
        """TARGET[:OPTIONS]. Raises OSError EINVAL."""
        target, _, options = text.partition(":")
        if not target.startswith("/"):
            raise OSError(errno.EINVAL, "not absolute; write /DIR or /DIR:size=64m", text)
        return cls(target, tuple(filter(None, options.split(","))))


@final
@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks for beside the image's settings, and in their place.

    command: after the entry point. env: NAME=VALUE, or NAME for the caller's value.
    user: NAME|UID[:GROUP|GID]. memory: bytes. cpus: how many processors' time. pids: how many
    processes and threads. terminal: whether it has one. input: whether it reads ours.
    network: "host" shares the machine's. add_capabilities, drop_capabilities: see
    `privileges.granted`. seccomp: see `seccomp.syscall_filter`. new_privileges: whether a program
    may gain some by its set-id bits or capabilities.
    """

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    hostname: str | None = None
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    read_only: bool = False
    terminal: bool = False
    input: bool = False
    network: Literal["none", "host"] = "none"
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    seccomp: str | None = None
    new_privileges: bool = True

    @property
    def limited(self) -> bool:
        """Whether it needs control groups."""
        return any(limit is not None for limit in (self.memory, self.cpus, self.pids))


@final
@dataclass(frozen=True, slots=True)
class Account:
    """Who a container's first process runs as. groups: further ones."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def configuration(
    name: str, rootfs: str, settings: Settings, union: UnionFS, options: RunOptions
) -> dict[str, Any]:
    """The document that a runtime reads.

    rootfs: where the container is mounted. union: its files, to look accounts up in.

    Raises OSError: ENOENT where the image says nothing to run or does not know the user, EINVAL.
    """
    entrypoint = settings.entrypoint if options.entrypoint is None else options.entrypoint
    # a new entry point makes the image's arguments meaningless, as in Docker
    arguments = settings.cmd if options.entrypoint is None else ()
    command = [*entrypoint, *(options.command or arguments)]
    if not command:
        raise OSError(errno.ENOENT, "the image has no command; name one", name)
    account = find_account(union, options.user or settings.user)
    hostname = (options.hostname or name)[:_NAME_MAX]
    capabilities = privileges.capabilities(
        account.uid, options.add_capabilities, options.drop_capabilities
    )
    syscalls = syscall_filter(options.seccomp, capabilities["bounding"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": {
                "uid": account.uid,
                "gid": account.gid,
                "additionalGids": [*account.groups],
            },
            "args": command,
            "env": [*_environment(settings, options, account, hostname)],
            "cwd": options.workdir or settings.working_dir or "/",
            "capabilities": capabilities,
            "noNewPrivileges": not options.new_privileges,
        },
        "root": {"path": rootfs, "readonly": options.read_only},
        "hostname": hostname,
        "mounts": [*mounts(settings, options)],
        "linux": {
            "namespaces": [
                {"type": kind}
                for kind in ("pid", "ipc", "uts", "mount", "network")
                if kind != "network" or options.network == "none"
            ],
            "resources": _resources(options),
            "maskedPaths": privileges.MASKED,
            "readonlyPaths": privileges.READ_ONLY,
            **({"seccomp": syscalls} if syscalls else {}),
        },
    }


def find_account(union: UnionFS, user: str) -> Account:
    """The account that USER[:GROUP] means in a container's files; "" is root.

    Raises OSError ENOENT for a name that they do not know.
    """
    name, _, group = user.partition(":")
    name = name or "0"
    users, groups = [*_table(union, "etc/passwd", 7)], [*_table(union, "etc/group", 4)]
    known = next((row for row in users if name in (row[0], row[2])), None)
    if known is None and not name.isdecimal():
        raise OSError(errno.ENOENT, "the image has no such user; give a number", name)
    uid = int(known[2] if known else name)
    if group:
        row = next((row for row in groups if group in (row[0], row[2])), None)
        if row is None and not group.isdecimal():
            raise OSError(errno.ENOENT, "the image has no such group; give a number", group)
        return Account(uid, int(row[2] if row else group), (), known[5] if known else "/")
    if known is None:
        return Account(uid)
    further = tuple(int(row[2]) for row in groups if known[0] in row[3].split(","))
    return Account(uid, int(known[3]), tuple(filter(_is_mapped_group, further)), known[5] or "/")


def _table(union: UnionFS, path: str, columns: int) -> Iterator[list[str]]:
    """The rows of passwd(5) or group(5); none where the image has no such file."""
    try:
        text = os.fsdecode(union.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    numbers = (2, 3) if columns == 7 else (2,)
    for line in text.splitlines():
        row = line.split(":")
        if len(row) == columns and all(row[number].isdecimal() for number in numbers):
            yield row


def _environment(
    settings: Settings, options: RunOptions, account: Account, hostname: str
) -> Iterator[str]:
    """NAME=VALUE, each name once: the user's, else the image's, else a default."""
    given = [PATH, f"HOME={account.home}", f"HOSTNAME={hostname}"]
    if options.terminal:
        given.append("TERM=xterm")
    given += settings.env
    for entry in options.env:
        if "=" in entry:
            given.append(entry)
        elif entry in os.environ:
            given.append(f"{entry}={os.environ[entry]}")
    yield from {entry.partition("=")[0]: entry for entry in given}.values()


def mounts(settings: Settings, options: RunOptions) -> Iterator[dict[str, Any]]:
    """What is mounted in a container, in this order."""
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if _is_mapped_group(_TTY_GROUP):
        terminals.append(f"gid={_TTY_GROUP}")
    shared = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
    closed = ["nosuid", "noexec", "nodev"]
    yield _mount("/proc", "proc", "proc", closed)
    yield _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"])
    yield _mount("/dev/pts", "devpts", "devpts", terminals)
    yield _mount("/dev/shm", "tmpfs", "shm", shared)
    yield _mount("/dev/mqueue", "mqueue", "mqueue", closed)
    if options.network == "none":
        yield _mount("/sys", "sysfs", "sysfs", [*closed, "ro"])
    else:  # sysfs shows a network, so only its owner may mount it
        yield _mount("/sys", "bind", "/sys", ["rbind", *closed, "ro"])
        for path in filter(os.path.exists, _NAMES):  # whom the network's names mean
            yield _mount(path, "bind", path, ["rbind", "rprivate", "ro"])
    in_memory = ["nosuid", "nodev", "tmpcopyup"]
    given = [*(each.target for each in options.volumes), *(each.target for each in options.tmpfs)]
    targets = {target.rstrip("/") for target in given}
    if options.read_only:
        # what the image means to be written stays so, for as long as it runs
        for path in (*settings.volumes, "/tmp", "/run", "/var/tmp"):
            if path.rstrip("/") not in targets:
                yield _mount(path, "tmpfs", "tmpfs", in_memory)
    for tmpfs in options.tmpfs:
        yield _mount(tmpfs.target, "tmpfs", "tmpfs", [*in_memory, *tmpfs.options])
    for volume in options.volumes:
        access = "ro" if volume.read_only else "rw"
        yield _mount(volume.target, "bind", volume.source, ["rbind", "rprivate", access])


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _resources(options: RunOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.memory is not None:
        resources["memory"] = {"limit": options.memory}
    if options.cpus is not None:
        resources["cpu"] = {"period": _CPU_PERIOD, "quota": int(options.cpus * _CPU_PERIOD)}
    if options.pids is not None:
        resources["pids"] = {"limit": options.pids}
    return resources


def _is_mapped_group(gid: int) -> bool:
    """Whether a group exists in this user namespace (user_namespaces(7))."""
    for line in Path("/proc/self/gid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= gid < first + count:
            return True
    return False
