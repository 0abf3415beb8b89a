"""Who is compared: each way to see a union, and the plain directory.

PEERS is the one list. A peer is started on the directories of one measurement, in a process and a
mount namespace made for that (`session.py`). Each is mounted with the options that its users give
it; nobody is tuned.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Protocol, final

from unionfs import LayerStack, UnionFS, layerindex, mount

KERNEL: Final = "overlayfs"
FUSE_OVERLAYFS: Final = "fuse-overlayfs"
_INDEXES: Final = "../indexes"  # from each layer


class PeerError(Exception):
    """A peer that did not come up; the message is its own last line."""


@final
@dataclass(frozen=True, slots=True)
class Site:
    """The directories of one measurement.

    merged: the whole fixture as one directory. lower: its layers, top first; both are only read.
    base: where the rest lies, made for this measurement.
    """

    merged: str
    lower: tuple[str, ...]
    base: str

    @property
    def upper(self) -> str:
        return f"{self.base}/upper"

    @property
    def work(self) -> str:
        return f"{self.base}/work"

    @property
    def target(self) -> str:
        """Where the peer is mounted."""
        return f"{self.base}/union"

    @property
    def log(self) -> str:
        """What the peer's program says."""
        return f"{self.base}/log"


class View(Protocol):
    """The calls that a workload makes; paths are relative to the union's root."""

    def scandir(self, path: str, /) -> Iterable[Any]: ...
    def lstat(self, path: str, /) -> os.stat_result: ...
    def os_open(self, path: str, flags: int, mode: int = 0o777, /) -> int: ...
    def mkdir(self, path: str, /) -> None: ...
    def unlink(self, path: str, /) -> None: ...
    def rename(self, src: str, dst: str, /) -> None: ...


@final
class CurrentDirectory:
    """The calls themselves, below the current directory, with nothing in between to be timed."""

    scandir: staticmethod[[str], Iterable[os.DirEntry[str]]] = staticmethod(os.scandir)
    lstat = staticmethod(os.lstat)
    os_open = staticmethod(os.open)
    mkdir = staticmethod(os.mkdir)
    unlink = staticmethod(os.unlink)
    rename = staticmethod(os.rename)


@final
@dataclass(frozen=True, slots=True)
class Peer:
    """One way to see a union.

    prepare: what is done once for layers, before anyone uses them, and is not timed.
    mount: mounts the union at the site's target; raises OSError or PeerError.
    view: opens it without a mount. With neither it is the plain directory.
    missing: why it cannot be run here, and the remedy; None when it can.
    version: as its users know it.
    rootless: runs as root of a new user namespace, which has no privileges outside.
    layered: runs only what depends on the number of layers; elsewhere it is like another peer.
    """

    name: str
    title: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    prepare: Callable[[Site], None] | None = None
    mount: Callable[[Site], None] | None = None
    view: Callable[[Site], View] | None = None
    rootless: bool = False
    layered: bool = False


def _kernel(site: Site) -> None:
    with LayerStack(site.lower, site.upper, site.work) as stack:
        mount(stack, site.target, backend="overlayfs")


def _library(site: Site) -> View:
    return UnionFS(LayerStack(site.lower, site.upper, site.work))


def _program(
    command: Callable[[Site], list[str]], environment: dict[str, str] | None = None
) -> Callable[[Site], None]:
    """Mounts by a program that goes to the background once it has mounted."""

    def start(site: Site) -> None:
        with open(site.log, "w+b") as log:
            child = subprocess.run(
                command(site),
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
        if child.returncode or not os.path.ismount(site.target):
            raise PeerError(lines[-1] if lines else f"exit code {child.returncode}, no mount")

    return start


def _overlay_options(site: Site) -> str:
    return f"lowerdir={':'.join(site.lower)},upperdir={site.upper},workdir={site.work}"


def _branches(site: Site) -> str:
    return ":".join([f"{site.upper}=RW", *(f"{layer}=RO" for layer in site.lower)])


def _unionmount(site: Site) -> list[str]:
    return [sys.executable, "-m", "fuse_mount", "-o", _overlay_options(site), site.target]


def _index(site: Site) -> None:
    """As a store does for each layer, once, when it is unpacked."""
    with LayerStack(site.lower) as stack:
        for layer in stack.lower:
            layerindex.build(f"{layer.path}/{_INDEXES}", layer.fd, stack.prefix)


def _unionmount_indexed(site: Site) -> list[str]:
    options = f"{_overlay_options(site)},layer_index={_INDEXES}"
    return [sys.executable, "-m", "fuse_mount", "-o", options, site.target]


def _fuse_overlayfs(site: Site) -> list[str]:
    return ["fuse-overlayfs", "-o", _overlay_options(site), site.target]


def _unionfs_fuse(site: Site) -> list[str]:
    return ["unionfs", "-o", "cow", _branches(site), site.target]


def _mergerfs(site: Site) -> list[str]:
    # without a name of its own, the kernel is told all branches, and refuses long ones
    return ["mergerfs", "-o", "category.create=ff,fsname=mergerfs", _branches(site), site.target]


def _present() -> None:
    return None


def _needs(program: str, package: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if shutil.which(program) is None:
            return f"no program {program}; run: apt-get install {package}"
        return _no_fuse()

    return missing


def _no_fuse() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "cannot open /dev/fuse; load the module fuse, or run as root"
    return None


def _no_fuse_mount() -> str | None:
    for module in ("fuse_mount", "pyfuse3"):
        if importlib.util.find_spec(module) is None:
            return f"no Python package {module}; install unionmount with its FUSE filesystem"
    return _no_fuse()


def _no_extension() -> str | None:
    if importlib.util.find_spec("unionfs._native") is None:
        return "the C extension is not built; install a compiler, and unionmount once more"
    return _no_fuse_mount()


def _kernel_release() -> str:
    return f"Linux {os.uname().release}"


def _own_version() -> str:
    return metadata.version("unionmount")


def _says(program: str, pattern: str) -> Callable[[], str]:
    """The version that a program prints."""

    def version() -> str:
        child = subprocess.run([program, "--version"], capture_output=True, check=False)
        found = re.search(pattern, (child.stdout + child.stderr).decode(errors="replace"))
        return found[1] if found else "unknown"

    return version


_ALL: Final = (
    Peer("plain", "plain directory", _present, _kernel_release),
    Peer(KERNEL, "kernel overlayfs", _present, _kernel_release, mount=_kernel),
    Peer(
        "unionmount",
        "unionmount",
        _no_extension,
        _own_version,
        mount=_program(_unionmount),
    ),
    Peer(
        "unionmount-indexed",
        "unionmount, its layers indexed",
        _no_extension,
        _own_version,
        prepare=_index,
        mount=_program(_unionmount_indexed),
        layered=True,
    ),
    Peer(
        "unionmount-pure",
        "unionmount without extension",
        _no_fuse_mount,
        _own_version,
        mount=_program(_unionmount, {"UNIONMOUNT_PURE": "1"}),
    ),
    Peer(
        "unionmount-rootless",
        "unionmount, unprivileged",
        _no_extension,
        _own_version,
        mount=_program(_unionmount),
        rootless=True,
    ),
    Peer("library", "unionfs in-process", _present, _own_version, view=_library),
    Peer(
        FUSE_OVERLAYFS,
        "fuse-overlayfs",
        _needs("fuse-overlayfs", "fuse-overlayfs"),
        _says("fuse-overlayfs", r"fuse-overlayfs: version (\S+)"),
        mount=_program(_fuse_overlayfs),
    ),
    Peer(
        "unionfs-fuse",
        "unionfs-fuse",
        _needs("unionfs", "unionfs-fuse"),
        _says("unionfs", r"unionfs-fuse version: (\S+)"),
        mount=_program(_unionfs_fuse),
    ),
    Peer(
        "mergerfs",
        "mergerfs",
        _needs("mergerfs", "mergerfs"),
        _says("mergerfs", r"mergerfs version: (\S+)"),
        mount=_program(_mergerfs),
    ),
)

PEERS: Final = {peer.name: peer for peer in _ALL}
"""The peers by name, in the order that they are shown in."""
