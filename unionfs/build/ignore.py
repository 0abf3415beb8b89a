"""`.dockerignore`: which files of a context are not part of it.

Rules: moby's patternmatcher: patterns lead from the context's root, `*` stays within a name, `**`
takes any number of directories, `!` takes files back, and the last pattern that fits decides.
"""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Iterable
from typing import final


@final
class Ignore:
    """The patterns of a file's lines. Raises OSError EINVAL for one that is none."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            back = text.startswith("!")
            path = posixpath.normpath(text.removeprefix("!").strip()).lstrip("/")
            if path != ".":
                self._patterns.append((compiled(path, "(?:/.*)?"), back))
        self.takes_back = any(back for _, back in self._patterns)

    def __contains__(self, path: str) -> bool:
        """Whether a path from the context's root is left out."""
        ignored = False
        for found, back in self._patterns:
            if ignored == back and found.fullmatch(path):
                ignored = not back
        return ignored


def compiled(text: str, end: str = "") -> re.Pattern[str]:
    """A path pattern; end: a regular expression that follows it. Raises OSError EINVAL."""
    try:
        return re.compile(_expression(text) + end, re.DOTALL)
    except re.error as error:
        message = f"no pattern of paths ({error}); check its brackets"
        raise OSError(errno.EINVAL, message, text) from None


def _expression(text: str) -> str:
    """A regular expression of a path pattern, as Go's filepath.Match has it, with `**`."""
    found = ""
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if text.startswith("**/", position - 1):
            found += "(?:.*/)?"
            position += 2
        elif text.startswith("**", position - 1):
            found += ".*"
            position += 1
        elif char == "*":
            found += "[^/]*"
        elif char == "?":
            found += "[^/]"
        elif char == "[" and "]" in text[position + 1 :]:
            end = text.index("]", position + 1)
            found += f"[{text[position:end]}]".replace("\\", "\\\\")
            position = end + 1
        elif char == "\\" and position < len(text):
            found += re.escape(text[position])
            position += 1
        else:
            found += re.escape(char)
    return found
