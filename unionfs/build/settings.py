"""Instructions that change an image's settings and nothing of its files.

Each is a function from the settings before to those after. Rules: Dockerfile reference; Docker's
image specification 1.2 for how a health check is written.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from unionfs.build.dockerfile import Instruction, expanded, instruction
from unionfs.images.documents import Settings

DEFAULT_SHELL: Final = ("/bin/sh", "-c")
_PORT: Final = re.compile(r"([0-9]+)(?:-([0-9]+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_PORT_MAX: Final = 65535
_DURATION: Final = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_NOT_TRIGGERED: Final = ("FROM", "ONBUILD", "MAINTAINER")

Variables = Mapping[str, str]
Change = Callable[[Settings, Instruction, Variables], Settings]


def command(settings: Settings, one: Instruction) -> tuple[str, ...]:
    """The words to run: those of the JSON form, else the shell's with the script."""
    form = one.form()
    return (*(settings.shell or DEFAULT_SHELL), one.script) if form is None else form


def environment(settings: Settings) -> dict[str, str]:
    """The variables that are set."""
    return dict(entry.split("=", 1) for entry in settings.env if "=" in entry)


def working_directory(settings: Settings, text: str) -> str:
    """A path of the image, where a relative one leads from the working directory."""
    slash = "/" if text.endswith(("/", "/.")) or text == "." else ""
    path = posixpath.normpath(posixpath.join("/", settings.working_dir, text))
    return f"/{path.lstrip('/')}".rstrip("/") + slash or "/"


def _env(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    found = environment(settings) | one.pairs(variables)
    return replace(settings, env=tuple(f"{name}={value}" for name, value in found.items()))


def _label(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    return replace(settings, labels={**settings.labels, **one.pairs(variables)})


def _expose(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    found = [*settings.exposed_ports]
    for word in one.words(variables):
        port = _PORT.fullmatch(word)
        first, last = (int(port[1]), int(port[2] or port[1])) if port else (0, 0)
        if port is None or not first <= last <= _PORT_MAX:
            raise one.error(f"{word!r} is no port; write PORT[/tcp|udp]")
        found += [f"{number}/{(port[3] or 'tcp').lower()}" for number in range(first, last + 1)]
    return replace(settings, exposed_ports=tuple(dict.fromkeys(found)))


def _volume(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    found = (*settings.volumes, *one.words(variables))
    return replace(settings, volumes=tuple(dict.fromkeys(found)))


def _user(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    return replace(settings, user=expanded(one.text, variables))


def _workdir(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    path = working_directory(settings, " ".join(one.words(variables)))
    return replace(settings, working_dir=path.rstrip("/") or "/")


def _cmd(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    return replace(settings, cmd=command(settings, one))


def _entrypoint(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    return replace(settings, entrypoint=command(settings, one))


def _shell(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    form = one.form()
    if not form:
        raise one.error('SHELL needs the JSON form, such as ["/bin/sh", "-c"]')
    return replace(settings, shell=form)


def _stop_signal(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    return replace(settings, stop_signal=expanded(one.text, variables))


def _on_build(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    if instruction(one.text, one.where).name in _NOT_TRIGGERED:
        raise one.error(f"ONBUILD takes none of {', '.join(_NOT_TRIGGERED)}")
    return replace(settings, on_build=(*settings.on_build, one.lines))


def _healthcheck(settings: Settings, one: Instruction, variables: Variables) -> Settings:
    kind, _, rest = one.text.partition(" ")
    if kind.upper() == "NONE":
        return replace(settings, healthcheck={"Test": ["NONE"]})
    if kind.upper() != "CMD" or not rest:
        raise one.error("HEALTHCHECK takes CMD and a command, or NONE")
    form = replace(one, text=rest.strip()).form()
    check: dict[str, object] = {
        "Test": ["CMD-SHELL", rest.strip()] if form is None else ["CMD", *form]
    }
    for flag, value in one.flags.items():
        key = "".join(part.capitalize() for part in flag.split("-"))
        check[key] = _count(one, value) if flag == "retries" else _nanoseconds(one, value)
    return replace(settings, healthcheck=check)


def _count(one: Instruction, text: str) -> int:
    if not text.isdecimal():
        raise one.error(f"{text!r} is no number of retries")
    return int(text)


def _nanoseconds(one: Instruction, text: str) -> int:
    """A duration as Go writes it, such as 1m30s."""
    found = _DURATION.findall(text)
    if not found or "".join(f"{number}{unit}" for number, unit in found) != text:
        raise one.error(f"{text!r} is no duration; write 30s or 1m30s")
    return round(sum(float(number) * _UNITS[unit] for number, unit in found))


CHANGES: Final[Mapping[str, Change]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
"""What each instruction does to the settings."""
