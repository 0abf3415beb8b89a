"""Which system calls a container may make: the machine's profile as a runtime's filter.

A profile, as Docker, podman and containerd share its format, says which calls are allowed on which
architecture, from which kernel on and with which capabilities. Debian ships it, as other systems
do, in a package that podman needs (golang-github-containers-common). We keep none of our own: who
maintains the kernel's and the runtimes' packages maintains that one. Without one there is no
filter.

Rules: containers-seccomp.json(5); OCI runtime specification, config-linux.md, "Seccomp". Cost: a
file of 16 kB.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from unionfs.images.platform import Platform

PROFILES: Final = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
"""Where the machine's profile is; the first that is there."""

UNCONFINED: Final = "unconfined"
"""In place of a profile's path: no filter."""

_ARCHITECTURES: Final = {
    "386": ("SCMP_ARCH_X86", "x86"),
    "amd64": ("SCMP_ARCH_X86_64", "amd64"),
    "arm": ("SCMP_ARCH_ARM", "arm"),
    "arm64": ("SCMP_ARCH_AARCH64", "arm64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}
"""What libseccomp, and what a profile's conditions, call the architectures of images."""


def syscall_filter(profile: str | None, capabilities: Collection[str]) -> dict[str, Any] | None:
    """The filter of a profile for a container with some capabilities; None for no filter.

    profile: a path, `UNCONFINED`, or None for the machine's. Raises OSError: EINVAL where the file
    is no profile.
    """
    if profile == UNCONFINED:
        return None
    path = profile or next(filter(os.path.exists, PROFILES), None)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return _translated(json.load(file), capabilities)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OSError(errno.EINVAL, "not a seccomp profile; name another", path) from None


def _translated(document: Mapping[str, Any], capabilities: Collection[str]) -> dict[str, Any]:
    called, short = _ARCHITECTURES.get(Platform.of_this_machine().architecture, ("", ""))
    others = [
        other
        for row in document.get("archMap") or ()
        if row["architecture"] == called
        for other in row.get("subArchitectures") or ()
    ]
    kept: dict[str, Any] = {"defaultAction": document["defaultAction"]}
    if document.get("defaultErrnoRet") is not None:
        kept["defaultErrnoRet"] = document["defaultErrnoRet"]
    if called:
        kept["architectures"] = document.get("architectures") or [called, *others]
    kept["syscalls"] = [*_rules(document, short, capabilities)]
    return kept


def _rules(
    document: Mapping[str, Any], architecture: str, capabilities: Collection[str]
) -> Iterator[dict[str, Any]]:
    """The rules whose conditions hold."""
    release = _version(os.uname().release)
    for row in document["syscalls"]:
        wanted, unwanted = row.get("includes") or {}, row.get("excludes") or {}
        if not (
            architecture in (wanted.get("arches") or [architecture])
            and architecture not in (unwanted.get("arches") or [])
            and set(wanted.get("caps") or []).issubset(capabilities)
            and set(unwanted.get("caps") or []).isdisjoint(capabilities)
            and release >= _version(wanted.get("minKernel") or "")
        ):
            continue
        rule: dict[str, Any] = {
            "names": row.get("names") or [row["name"]],
            "action": row["action"],
        }
        if row.get("errnoRet") is not None:
            rule["errnoRet"] = row["errnoRet"]
        if row.get("args"):
            rule["args"] = row["args"]
        yield rule


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
