"""Containers run by an OCI runtime, crun or runc: we write what it reads, and wait for it.

Rules: OCI runtime specification, runtime.md; crun(1), runc(8). A runtime keeps its state in the
store, so that it finds nobody else's containers.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from types import FrameType
from typing import Any, Final, Literal, final

from unionfs.containers.bundle import RunOptions, configuration
from unionfs.containers.container import Containers
from unionfs.stack import LayerStack
from unionfs.store import FailedPrecondition, Store
from unionfs.union import UnionFS

RUNTIMES: Final = ("crun", "runc")
_DIGITS: Final = 8
_LOG: Final = "runtime.log"
_REASONS: Final = (
    ("not found in $path", errno.ENOENT),
    ("no such file", errno.ENOENT),
    ("permission denied", errno.EACCES),
)
"""What runtimes say, and what it means."""

_FORWARDED: Final = (
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)

State = Literal["created", "running", "paused", "stopped"]


class NotStarted(OSError):
    """A command that the runtime could not start.

    It has told of that on standard error, unless the container is detached.
    """

    @property
    def status(self) -> int:
        """With what a shell exits then, or Docker."""
        return {errno.ENOENT: 127, errno.EACCES: 126}.get(self.errno or 0, 125)


@final
@dataclass(frozen=True, slots=True)
class Runtime:
    """The program that runs a store's containers.

    program: its name or path; by default what this machine can use.

    Raises OSError ENOENT where there is none.
    """

    store: Store
    program: str

    @classmethod
    def find(cls, store: Store, program: str | None = None) -> Runtime:
        """The runtime that was named, or else the first that fits this machine."""
        # crun knows control groups of version 2 alone
        wanted = (program,) if program else RUNTIMES if _unified() else RUNTIMES[::-1]
        for name in wanted:
            if shutil.which(name):
                return cls(store, name)
        message = "no such program; install the package crun or runc"
        raise OSError(errno.ENOENT, message, program or "crun")

    def run(
        self,
        name: str,
        options: RunOptions,
        *,
        detached: bool = False,
        output: int | None = None,
    ) -> int:
        """Run a container, mounted for as long; its exit status, 128 and a signal's number.

        detached: return 0 when it runs; it stays mounted until it is removed or unmounted.
        output: a descriptor for all that it prints; by default ours. With one it is our own work,
        which any exception, as of a signal, ends; without, signals are handed on to it.

        Raises NotFound, FailedPrecondition where it is mounted or runs, OSError where the image or
        the options do not fit, NotStarted, MountError.
        """
        containers = Containers(self.store)
        self.end(name)
        mount = containers.mount(name)
        try:
            self._write(containers, name, mount.target, options)
            with suppress(FileNotFoundError):
                os.unlink(self._log(name))
            status = self._detach(name, options) if detached else self._wait(name, options, output)
        except BaseException:
            mount.unmount(lazy=True)
            raise
        if not detached or status:
            mount.unmount(lazy=True)
        return status

    def _write(self, containers: Containers, name: str, rootfs: str, options: RunOptions) -> None:
        directories = self.store.snapshots.directories(name)
        layers = (directories.upper or "", *directories.lower)
        with LayerStack(layers, options=self.store.options) as stack:
            settings = containers.image(name).config.settings
            document = configuration(name, rootfs, settings, UnionFS(stack), options)
        with open(f"{containers.folder(name)}/config.json", "w") as file:
            json.dump(document, file, indent=2)

    def _command(self, action: str, name: str, *arguments: str, limited: bool = True) -> list[str]:
        state = f"{self.store.root}/run"
        os.makedirs(state, mode=0o700, exist_ok=True)
        unlimited = os.path.basename(self.program) == "crun" and not limited
        flags = ["--cgroup-manager=disabled"] if unlimited else []
        # control groups are named so, and other stores may have a container of that name
        called = f"{name}-{sha256(os.fsencode(self.store.root)).hexdigest()[:_DIGITS]}"
        if action == "run":
            flags += [f"--log={self._log(name)}", "--log-format=json"]
        return [self.program, f"--root={state}", *flags, action, *arguments, called]

    def _log(self, name: str) -> str:
        """Where the runtime tells why it failed, apart from what the container prints."""
        return f"{Containers(self.store).folder(name)}/{_LOG}"

    def _failure(self, name: str) -> NotStarted | None:
        """Why the runtime could not start a container; None where it did."""
        message = ""
        with suppress(FileNotFoundError), open(self._log(name), "rb") as file:
            for line in file:
                with suppress(ValueError):
                    told = json.loads(line)
                    message = told["msg"] if told["level"] == "error" else message
        if not message:
            return None
        reason = next((code for words, code in _REASONS if words in message.lower()), errno.EIO)
        # runc and crun say themselves where they were; what is wrong comes last
        return NotStarted(reason, f"{self.program}: {message.rpartition('process: ')[2]}", name)

    def _bundle(self, name: str) -> str:
        return f"--bundle={Containers(self.store).folder(name)}"

    def _wait(self, name: str, options: RunOptions, output: int | None) -> int:
        command = self._command("run", name, self._bundle(name), limited=options.limited)
        given = None if options.input or options.terminal else subprocess.DEVNULL
        with subprocess.Popen(command, stdin=given, stdout=output, stderr=output) as process:
            try:
                with _forwarding(process) if output is None else nullcontext():
                    status = process.wait()
            finally:
                self.end(name, force=True)
        if status and (failure := self._failure(name)):
            raise failure
        return status if status >= 0 else 128 - status

    def _detach(self, name: str, options: RunOptions) -> int:
        folder = Containers(self.store).folder(name)
        arguments = ("--detach", self._bundle(name), f"--pid-file={folder}/pid")
        command = self._command("run", name, *arguments, limited=options.limited)
        with open(f"{folder}/log", "ab") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise self._failure(name) or NotStarted(errno.EIO, f"{self.program} failed", name)
        return 0

    def stop(self, name: str, patience: float = 10) -> None:
        """End a detached container, and unmount it.

        By the signal that its image names, else SIGTERM; after patience, seconds, by SIGKILL.
        Raises NotFound, FailedPrecondition where it does not run.
        """
        containers = Containers(self.store)
        asked = containers.image(name).config.settings.stop_signal or "SIGTERM"
        if self.state(name) != "running":
            raise FailedPrecondition("it does not run", name)
        with open(f"{containers.folder(name)}/pid") as file, suppress(ProcessLookupError):
            process = os.pidfd_open(int(file.read()))
            try:
                command = [*self._command("kill", name), asked.removeprefix("SIG")]
                subprocess.run(command, capture_output=True, check=False)
                select.select([process], [], [], patience)
            finally:
                os.close(process)
        self.end(name, force=True)
        containers.unmount(name)

    def output(self, name: str) -> str:
        """The path of the file with what a detached container prints.

        Raises NotFound, FailedPrecondition where it never ran so.
        """
        path = f"{Containers(self.store).folder(Containers(self.store).get(name).name)}/log"
        if not os.path.exists(path):
            raise FailedPrecondition("it was never run with --detach", name)
        return path

    def state(self, name: str) -> State | None:
        """What a container does; None where the runtime does not know it."""
        done = subprocess.run(self._command("state", name), capture_output=True, check=False)
        if done.returncode:
            return None
        document: dict[str, Any] = json.loads(done.stdout)
        state: State = document["status"]
        return state

    def end(self, name: str, *, force: bool = False) -> None:
        """Have the runtime forget a container, which it need not know.

        force: end it first. Raises FailedPrecondition where it runs.
        """
        if not force and self.state(name) in ("created", "running", "paused"):
            raise FailedPrecondition("it runs; remove it by force to end it", name)
        subprocess.run(self._command("delete", name, "--force"), capture_output=True, check=False)


def ran(store: Store, name: str) -> bool:
    """Whether a container was ever run."""
    return os.path.exists(f"{Containers(store).folder(name)}/config.json")


def end(store: Store, name: str, *, force: bool = False) -> None:
    """`Runtime.end`, where a container was ever run."""
    if ran(store, name):
        Runtime.find(store).end(name, force=force)


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand signals that a process may know on to it, while it runs."""

    def forward(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _unified() -> bool:
    """Whether this machine has control groups of version 2 and no others."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")
