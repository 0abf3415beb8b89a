"""`unionmount doctor`: what this machine can do, found out by trying, and what to do for more."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click

from unionfs import system
from unionfs.cli.given import DIRECTORY
from unionfs.cli.output import Cell, json_option, print_columns, print_json, print_line


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. says: what came of it. remedy: what can be done where it failed."""

    name: str
    ok: bool
    says: str
    remedy: str | None = None


@click.command("doctor")
@click.option(
    "--upper",
    type=DIRECTORY,
    metavar="DIR",
    default=".",
    help="A directory on the filesystem of an upper.  [default: the current one]",
)
@json_option
def doctor_command(upper: str, as_json: bool) -> int:
    """Say what this machine can do, and how it can do more.

    Everything is tried: mounts in a namespace of their own, files in a folder in DIR that is
    removed again. Exits with 1 where no backend can mount.
    """
    with tempfile.TemporaryDirectory(
        prefix=".unionmount-doctor-",
        dir=upper,
        ignore_cleanup_errors=True,  # a trial that cannot be unmounted is a finding, told below
    ) as name:
        folder = Path(name)
        mounts = [*_mounts(folder)]
        files = [*_files(folder)]
    checks = {check.name: check for check in mounts}
    backend, why = _choice(checks["kernel overlayfs"], checks["FUSE"])
    if as_json:
        print_json({"backend": backend, "why": why, "mounts": mounts, "filesystem": files})
    else:
        _print(mounts)
        print_line()
        print_line((f"filesystem of {os.path.abspath(upper)} ({_type(upper)})", "bold"))
        _print(files)
        taken = f"unionmount mount takes {backend}" if backend else "no backend can mount here"
        print_line()
        print_line((taken, "bold green" if backend else "bold red"), (f": {why}", ""))
    return 0 if backend else 1


def _choice(kernel: Check, fuse: Check) -> tuple[str | None, str]:
    """The backend that `mount` takes, and why: the same order as `unionfs.mounting.mount`."""
    if kernel.ok:
        return "overlayfs", "the kernel mounted the trial"
    if fuse.ok:
        return "fuse", kernel.says
    return None, f"{kernel.says}; {fuse.says}"


def _print(checks: list[Check]) -> None:
    rows: list[list[Cell]] = []
    for check in checks:
        answer = ("  yes", "green") if check.ok else ("  no", "yellow")
        rows.append([answer, (check.name, "bold"), (check.says, "")])
        if check.remedy:
            rows.append([("", ""), ("", ""), (check.remedy, "dim")])
    print_columns(rows)


def _mounts(folder: Path) -> Iterator[Check]:
    """What a mount needs of this machine."""
    private = ["unshare", "--mount"] if os.geteuid() == 0 else []
    yield _trial(
        "kernel overlayfs", "overlayfs", folder, private, "or unionmount takes FUSE, where it can"
    )
    yield _trial(
        "overlayfs in a user namespace",
        "overlayfs",
        folder,
        ["unshare", "--user", "--map-root-user", "--mount"],
        "it takes Linux 5.11 and sysctl user.max_user_namespaces=10000, on Debian "
        "kernel.unprivileged_userns_clone=1, on Ubuntu "
        "kernel.apparmor_restrict_unprivileged_userns=0",
    )
    yield _trial("FUSE", "fuse", folder, private, "see the lines below")
    yield _device()
    yield _fusermount()
    yield _trial(
        "FUSE passthrough",
        "passthrough",
        folder,
        private,
        "it takes Linux 6.9; without it data passes through the mount program, slower",
        "the kernel offers it, to mounts of the machine's root",
    )
    yield Check(
        "C extension",
        system.NATIVE,
        "in use" if system.NATIVE else "not built, or kept out by UNIONMOUNT_PURE",
        None if system.NATIVE else "install a C compiler and python3-dev, then unionmount anew",
    )


def _trial(
    name: str,
    kind: str,
    folder: Path,
    namespace: list[str],
    remedy: str,
    success: str = "tried, and it works",
) -> Check:
    """Run `trial`, in a namespace that the command `namespace` makes."""
    place = Path(tempfile.mkdtemp(dir=folder)).resolve()
    for directory in ("lower", "upper", "work", "target"):
        (place / directory).mkdir()
    command = [*namespace, sys.executable, "-P", "-m", "unionfs.cli.trial", kind, str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return Check(name, False, f"no program {error.filename}", "install util-linux")
    if done.returncode == 0:
        return Check(name, True, success)
    said = (done.stderr.strip().splitlines() or ["the trial died"])[-1]
    for prefix in ("unionmount: ", f"{place}/target: "):
        said = said.removeprefix(prefix)
    return Check(name, False, said, remedy)


def _device() -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        remedy = "modprobe fuse, or give this container the device"
        if error.errno == errno.EACCES:
            remedy = "chmod 666 /dev/fuse lets users open it, as udev does"
        return Check("/dev/fuse", False, error.strerror or "", remedy)
    return Check("/dev/fuse", True, "can be opened")


def _fusermount() -> Check:
    program = shutil.which("fusermount3")
    if program is None:
        remedy = "users other than root need it to mount by FUSE: install the package fuse3"
        return Check("fusermount3", False, "not found", remedy)
    if not os.stat(program).st_mode & stat.S_ISUID:
        remedy = f"users other than root need it to mount by FUSE: chmod u+s {program}"
        return Check("fusermount3", False, f"{program} is not setuid root", remedy)
    return Check("fusermount3", True, program)


def _files(folder: Path) -> Iterator[Check]:
    """What an upper layer needs of its filesystem, and what makes it fast."""
    (folder / "file").write_bytes(b"data")
    yield _tried(
        "trusted. attributes",
        lambda: os.setxattr(folder / "file", "trusted.unionmount", b""),
        "marks of root's unions; without root the option userxattr is taken by itself",
    )
    yield _tried(
        "user. attributes",
        lambda: os.setxattr(folder / "file", "user.unionmount", b""),
        "marks of other users' unions; take a filesystem that has them: ext4, xfs, btrfs, tmpfs",
    )
    yield _tried(
        "whiteout devices",
        lambda: os.mknod(folder / "whiteout", stat.S_IFCHR),
        "whiteouts are marked files instead, which needs attributes and Linux 6.7 to be mounted",
    )
    yield _tried("RENAME_WHITEOUT", lambda: _rename_whiteout(folder), "whiteouts take a step more")
    yield _tried(
        "O_TMPFILE",
        lambda: os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY)),
        "programs make temporary files under a name",
    )
    yield _tried(
        "reflinks",
        lambda: _reflink(folder),
        "the first write to a lower file copies its data; xfs and btrfs share it instead",
    )


def _tried(name: str, act: Callable[[], object], remedy: str) -> Check:
    try:
        act()
    except OSError as error:
        return Check(name, False, error.strerror or str(error), remedy)
    return Check(name, True, "works")


def _rename_whiteout(folder: Path) -> None:
    (folder / "renamed").touch()
    fd = os.open(folder, os.O_PATH)
    try:
        system.rename(fd, "renamed", fd, "new name", system.RENAME_WHITEOUT)
    finally:
        os.close(fd)


def _reflink(folder: Path) -> None:
    with open(folder / "file", "rb") as source, open(folder / "clone", "wb") as target:
        if not system.clone(source.fileno(), target.fileno()):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _type(directory: str) -> str:
    """The type of a directory's filesystem, in the words of stat(1)."""
    command = ["stat", "--file-system", "--format=%T", "--", directory]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
