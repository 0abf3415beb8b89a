"""`RUN --mount`: what a command is lent while it runs, and that is in no layer.

Rules: Dockerfile reference, "RUN --mount". Cost: parsing alone is here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast, final

from unionfs.build.dockerfile import Instruction, expanded

Kind = Literal["bind", "cache", "tmpfs", "secret"]
Sharing = Literal["shared", "private", "locked"]

_OTHER_NAMES: Final = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "readwrite": "rw",
    "readonly": "ro",
}
_TARGET: Final = frozenset({"type", "target"})
_OWNER: Final = frozenset({"id", "mode", "uid", "gid"})
_FIELDS: Final = {
    "bind": _TARGET | {"from", "source", "rw", "ro"},
    "cache": _TARGET | _OWNER | {"sharing", "rw", "ro"},
    "tmpfs": _TARGET | {"size"},
    "secret": _TARGET | _OWNER | {"required", "env"},
}
"""The fields that each type may have."""

_SECRETS: Final = "/run/secrets"
_SIZE: Final = re.compile(r"([0-9]+)([bkmg]?)", re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True)
class Mount:
    """One `--mount`. target: of the container, perhaps relative; "" for a secret in a variable.

    source: a path in the stage or image called origin, "" being the context. id: of the cache or
    secret. env: the variable that a secret is in. size: of tmpfs, as mount(8) has it.
    """

    kind: Kind
    target: str
    source: str = ""
    origin: str = ""
    id: str = ""
    writable: bool = False
    sharing: Sharing = "shared"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    required: bool = False
    env: str = ""
    size: str = ""


def mounts(one: Instruction, variables: Mapping[str, str]) -> list[Mount]:
    """The mounts of a RUN. Raises BuildError."""
    return [_mount(one, expanded(text, variables)) for text in one.mounts]


def origins(one: Instruction) -> list[str]:
    """The stages and images that an instruction takes files from."""
    found = [one.flags["from"]] if "from" in one.flags else []
    return found + [mount.origin for mount in mounts(one, {}) if mount.origin]


def _mount(one: Instruction, text: str) -> Mount:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        found[_OTHER_NAMES.get(name.lower(), name.lower())] = value if equals else "true"
    kind = found.get("type", "bind")
    if kind not in _FIELDS:
        raise one.error(f"--mount=type={kind} cannot be had; there are: {', '.join(_FIELDS)}")
    unknown = sorted({*found} - _FIELDS[kind])
    if unknown:
        raise one.error(f"--mount=type={kind} has no {unknown[0]}; leave it out")
    target, env = found.get("target", ""), found.get("env", "")
    identity = found.get("id") or (posixpath.basename(target) if kind == "secret" else target)
    if kind == "secret" and identity and not target and not env:
        target = f"{_SECRETS}/{posixpath.basename(identity)}"
    if not target and not (env and identity):
        raise one.error(f"--mount=type={kind} needs a target")
    sharing = found.get("sharing", "shared")
    if sharing not in ("shared", "private", "locked"):
        raise one.error(f"sharing={sharing} is none of shared, private, locked")
    size = found.get("size", "")
    if size and not _SIZE.fullmatch(size):
        raise one.error(f"{size!r} is not a size; write 64m")
    return Mount(
        cast(Kind, kind),
        target,
        found.get("source", ""),
        found.get("from", ""),
        identity,
        _is_true(one, found.get("rw", "true" if kind == "cache" else "false"))
        and not _is_true(one, found.get("ro", "false")),
        cast(Sharing, sharing),
        _number(one, found.get("mode", "755" if kind == "cache" else "400"), 8),
        _number(one, found.get("uid", "0"), 10),
        _number(one, found.get("gid", "0"), 10),
        _is_true(one, found.get("required", "false")),
        env,
        size.lower().removesuffix("b"),
    )


def _is_true(one: Instruction, text: str) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise one.error(f"{text!r} is neither true nor false")
    return text in ("true", "1")


def _number(one: Instruction, text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise one.error(f"{text!r} is no number") from None
