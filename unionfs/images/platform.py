"""Platforms, and which image of several runs on one.

An index holds an image for each platform. Taken is the one that the wanted platform runs best: its
own, else the nearest older variant (arm v7 runs v6 and v5), else the architecture that its
processor runs too (amd64 runs 386, arm64 runs arm).

Rule: containerd's `platforms` package, `Normalize` and `Only`. Cost: nothing but comparing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Self, final

from unionfs.images.reference import InvalidReference

_ALIASES: Final = {
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
}
"""What else an architecture is called, as Debian and uname(2) do, and the variant that it means."""

_DEFAULT_VARIANTS: Final = {("amd64", "v1"), ("arm64", "v8")}
_TEXT: Final = re.compile(r"[a-z0-9_]+/[a-z0-9_-]+(/[a-z0-9_.]+)?")
_NEWEST_V8_OF_V9: Final = 5
"""arm v9.0 is v8.5, v9.1 is v8.6, and so on."""


@final
@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor, by their names in Go; `str` is OS/ARCH[/VARIANT]."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The platform that OS/ARCH[/VARIANT] names. Raises InvalidReference."""
        if not _TEXT.fullmatch(text.lower()):
            raise InvalidReference(text, "no platform; it is OS/ARCH[/VARIANT], as in linux/arm64")
        return cls(*text.lower().split("/")).normal()

    @classmethod
    def of_this_machine(cls) -> Self:
        """The platform that runs this program."""
        status = os.uname()
        return cls(status.sysname, status.machine).normal()

    def normal(self) -> Self:
        """The same platform by its usual name."""
        system, architecture, variant = (
            part.lower() for part in (self.os, self.architecture, self.variant)
        )
        architecture, meant = _ALIASES.get(architecture, (architecture, None))
        variant = variant if meant is None else meant
        if architecture in ("arm", "arm64") and variant.isdigit():
            variant = f"v{variant}"
        if architecture == "arm" and not variant:
            variant = "v7"
        if (architecture, variant) in _DEFAULT_VARIANTS:
            variant = ""
        return replace(self, os=system, architecture=architecture, variant=variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def best(wanted: Platform, offered: Iterable[Platform]) -> int | None:
    """The position of the offered platform that the wanted one runs best; None where it runs none.

    Of two alike the first is taken.
    """
    positions: dict[Platform, int] = {}
    for position, platform in enumerate(offered):
        positions.setdefault(platform.normal(), position)
    for platform in runs(wanted):
        if platform in positions:
            return positions[platform]
    return None


def runs(wanted: Platform) -> Iterator[Platform]:
    """The platforms whose programs run on this one, the best first."""
    wanted = wanted.normal()
    yield wanted
    for architecture, variant in _older(wanted.architecture, wanted.variant):
        yield Platform(wanted.os, architecture, variant).normal()


def _older(architecture: str, variant: str) -> Iterator[tuple[str, str]]:
    """The architectures and variants below one, the newest first."""
    number, _, minor = variant.removeprefix("v").partition(".")
    version = int(number) if number.isdigit() else 0
    if architecture == "amd64":
        yield from (("amd64", f"v{older}") for older in range(version - 1, 0, -1))
        yield "386", ""
    elif architecture == "arm":
        yield from (("arm", f"v{older}") for older in range(version - 1, 4, -1))
    elif architecture == "arm64":
        step = int(minor) if minor.isdigit() else 0
        if version == 9:
            yield from _steps(9, step)
            step += _NEWEST_V8_OF_V9 + 1
        yield from _steps(8, step)
        yield "arm", "v8"
        yield from _older("arm", "v8")


def _steps(version: int, below: int) -> Iterator[tuple[str, str]]:
    """The variants of one version of arm64 before a minor one."""
    for minor in range(below - 1, -1, -1):
        yield "arm64", f"v{version}.{minor}" if minor else f"v{version}"
