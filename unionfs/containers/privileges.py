"""What a container's processes may do: their capabilities, and what of /proc and /sys is closed.

Granted are the capabilities that Docker grants, with those that a user adds and without those that
he drops; none that we lack ourselves, since a runtime cannot give them. Closed are the paths that
Docker closes.

Rules: capabilities(7); OCI runtime specification, config.md, "Linux Process", and config-linux.md,
"Masked Paths". Cost: one read of /proc.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from unionfs import system

_ALL: Final = "ALL"
_NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE"),
    *("SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME"),
    *("SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
    *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
"""Each at the place that is its number."""

_DEFAULT: Final = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
    *("NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)

MASKED: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux"),
)
"""What cannot be read."""

READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What cannot be written."""


def granted(add: Iterable[str] = (), drop: Iterable[str] = ()) -> tuple[str, ...]:
    """The capabilities of a container, as CAP_NAME.

    add, drop: names, with CAP_ or without, in any case; ALL for all. Raises OSError EINVAL for one
    that is unknown.
    """
    added, dropped = {*map(_named, add)}, {*map(_named, drop)}
    kept = {*_NAMES} if _ALL in added else set() if _ALL in dropped else {*_DEFAULT}
    kept = (kept | (added - {_ALL})) - (dropped - {_ALL})
    ours = system.capabilities("CapBnd")  # what we can give on
    return tuple(
        f"CAP_{name}" for number, name in enumerate(_NAMES) if name in kept and ours >> number & 1
    )


def capabilities(
    uid: int, add: Sequence[str] = (), drop: Sequence[str] = ()
) -> dict[str, Sequence[str]]:
    """What a runtime is told of them, for a first process of some user.

    One that is not root has only those that were added by name. Raises as `granted`.
    """
    bounding = granted(add, drop)
    if uid == 0:
        return {"bounding": bounding, "effective": bounding, "permitted": bounding}
    own = tuple(name for name in granted(add, (*drop, _ALL)) if name in bounding)
    return {
        "bounding": bounding,
        "effective": own,
        "permitted": own,
        "inheritable": own,
        "ambient": own,
    }


def _named(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name != _ALL and name not in _NAMES:
        message = "no such capability; see capabilities(7)"
        raise OSError(errno.EINVAL, message, text)
    return name
