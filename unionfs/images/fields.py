"""Frozen dataclasses read from JSON and written to it, with whatever they do not know kept.

A field names its key and how its value is read; keys without a field are kept in `extra`. Absent
and null are the same, and neither is written, as in the Go programs whose documents these are.
Every type is checked when it is read, since documents come from strangers.

Cost: a function call a value.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Final, Self, TypeVar

_T = TypeVar("_T")

Data = Mapping[str, Any]
"""A JSON object."""

LARGEST: Final = 8 << 20
"""Bytes that a document may have; containerd reads no larger one."""


class InvalidDocument(OSError):
    """A document that is none of its kind; the message says where it is wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__(errno.EINVAL, wrong)


def key(
    name: str,
    read: Callable[[Any], _T],
    *,
    write: Callable[[Any], Any] | None = None,
    default: Any = MISSING,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass field for the value at a key, which must be there unless there is a default.

    read: makes the value from JSON, and raises InvalidDocument. write: makes JSON from it; by
    default `plain`.
    """
    told = {"key": name, "read": read, "write": write or plain}
    if factory is not None:
        return field(default_factory=factory, metadata=told)
    return field(default=default, metadata=told)


@dataclass(frozen=True, slots=True)
class Fields:
    """What the dataclasses share. extra: the keys without a field of their own."""

    extra: Data = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, data: Any) -> Self:
        """The value that a JSON object gives. Raises InvalidDocument."""
        left = dict(mapping(data))
        values: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            if "key" not in each.metadata:
                continue
            name = each.metadata["key"]
            found = left.pop(name, None)
            if found is not None:
                try:
                    values[each.name] = each.metadata["read"](found)
                except InvalidDocument as error:
                    raise InvalidDocument(f"{name}: {error.strerror}") from None
            elif each.default is MISSING and each.default_factory is MISSING:
                raise InvalidDocument(f"{name} is missing")
        return cls(**values, extra=left)

    def data(self) -> dict[str, Any]:
        """The JSON object that gives this value."""
        written: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            if "key" in each.metadata:
                value = getattr(self, each.name)
                required = each.default is MISSING and each.default_factory is MISSING
                if required or value:
                    written[each.metadata["key"]] = each.metadata["write"](value)
        return written | dict(self.extra)


@dataclass(frozen=True, slots=True)
class Document(Fields):
    """A JSON object that is stored, and known by the digest of its bytes.

    raw: these bytes, as they were read; `dataclasses.replace` writes them anew.
    """

    raw: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "raw", json.dumps(self.data(), separators=(",", ":")).encode())

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """The document that is written in some bytes. Raises InvalidDocument."""
        document = cls.of(parse(raw))
        object.__setattr__(document, "raw", raw)
        return document


def parse(raw: bytes) -> Data:
    """The JSON object in some bytes. Raises InvalidDocument."""
    if len(raw) > LARGEST:
        raise InvalidDocument(f"larger than {LARGEST >> 20} MiB, so no document of an image")
    try:
        return mapping(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"no JSON: {error}") from None


def plain(value: Any) -> Any:
    """JSON from a value that `key` read by one of the functions below."""
    if isinstance(value, Fields):
        return value.data()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def mapping(data: Any) -> Data:
    """Read an object of anything."""
    if not isinstance(data, dict):
        raise InvalidDocument("not an object")
    return data


def text(data: Any) -> str:
    """Read a string."""
    if not isinstance(data, str):
        raise InvalidDocument("not a string")
    return data


def count(data: Any) -> int:
    """Read a number of things."""
    if not isinstance(data, int) or isinstance(data, bool) or data < 0:
        raise InvalidDocument("not a count")
    return data


def truth(data: Any) -> bool:
    """Read true or false."""
    if not isinstance(data, bool):
        raise InvalidDocument("neither true nor false")
    return data


def each_of(read: Callable[[Any], _T]) -> Callable[[Any], tuple[_T, ...]]:
    """Read an array whose items are each read in one way."""

    def items(data: Any) -> tuple[_T, ...]:
        if not isinstance(data, list):
            raise InvalidDocument("not an array")
        return tuple(read(item) for item in data)

    return items


def texts(data: Any) -> dict[str, str]:
    """Read an object of strings."""
    return {name: text(value) for name, value in mapping(data).items()}


def names(data: Any) -> tuple[str, ...]:
    """Read an object that is a set, its values empty objects."""
    return tuple(mapping(data))


def as_set(value: tuple[str, ...]) -> Data:
    """Write what `names` read."""
    return {name: {} for name in value}
