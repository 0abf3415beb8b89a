"""The filters by which containerd's clients choose snapshots.

    name==base                          kind==active,labels.app
    parent!=""                          labels."example.com/owner"~=^team

A filter is selectors joined by commas, all of which must hold; of several filters, one.

Rule: containerd, pkg/filters/filter.go and parser.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from unionfs.store.errors import InvalidArgument

Adaptor = Callable[[Sequence[str]], str | None]
"""What an object has at a path of fields; None where there is none."""

_QUOTED: Final = r'"(?:\\.|[^"\\])*"'
_FIELD: Final = rf"(?:{_QUOTED}|[A-Za-z][A-Za-z0-9_]*)"
_SELECTOR: Final = re.compile(
    rf"(?P<path>{_FIELD}(?:\.{_FIELD})*)"
    rf"(?:(?P<operator>==|!=|~=)(?P<value>{_QUOTED}|/(?:\\.|[^/\\])*/|\|[^|]*\||[^\s,]+))?"
    r"(?:,(?=.)|$)"
)


def matcher(filters: Sequence[str]) -> Callable[[Adaptor], bool]:
    """Whether one of the filters holds for an object; always where there are none.

    Raises InvalidArgument for what is no filter.
    """
    parsed = [_parse(text) for text in filters]

    def matches(adaptor: Adaptor) -> bool:
        return not parsed or any(all(test(adaptor) for test in tests) for tests in parsed)

    return matches


def adaptor_of(fields: Mapping[str, str], labels: Mapping[str, str]) -> Adaptor:
    """An object with fields, empty where they are missing, and labels."""

    def get(path: Sequence[str]) -> str | None:
        if path[0] == "labels" and len(path) > 1:
            return labels.get(".".join(path[1:]))
        return fields.get(path[0]) if len(path) == 1 else None

    return get


def _parse(text: str) -> list[Callable[[Adaptor], bool]]:
    tests = []
    at = 0
    while at < len(text):
        found = _SELECTOR.match(text, at)
        if found is None:
            message = f"no filter from {text[at:]!r} on; write FIELD==VALUE, FIELD!=VALUE or"
            raise InvalidArgument(f"{message} FIELD~=PATTERN", text)
        tests.append(_test(found, text))
        at = found.end()
    return tests


def _test(found: re.Match[str], text: str) -> Callable[[Adaptor], bool]:
    path = [_unquoted(field, text) for field in re.findall(_FIELD, found["path"])]
    value = found["value"]
    if value is None:
        return lambda adaptor: bool(adaptor(path))
    if found["operator"] == "==":
        wanted = _unquoted(value, text)
        return lambda adaptor: adaptor(path) == wanted
    if found["operator"] == "!=":
        wanted = _unquoted(value, text)
        return lambda adaptor: adaptor(path) != wanted
    try:
        pattern = re.compile(value[1:-1] if value[0] in "/|" else _unquoted(value, text))
    except re.error as error:
        raise InvalidArgument(f"not a regular expression: {error}", text) from None
    return lambda adaptor: pattern.search(adaptor(path) or "") is not None


def _unquoted(text: str, whole: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise InvalidArgument(f"{text} is not quoted as Go quotes", whole) from None
