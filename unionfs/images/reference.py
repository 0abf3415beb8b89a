"""Names of images, read exactly as Docker reads them.

    reference := [domain "/"] path [":" tag] ["@" digest]

What looks like a domain is one: the part before the first slash, where it has a dot, a colon or a
capital letter, or is `localhost`. Without one the image is on docker.io, and there below `library/`
where its path has one part: `ubuntu:14.04` is `docker.io/library/ubuntu:14.04`.

Rule: the grammar and `normalize.go` of distribution/reference, which Docker, containerd and podman
share. Cost: one regular expression a name.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, replace
from typing import Final, Self, final

from unionfs.store import InvalidArgument, digest

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
LONGEST_PATH: Final = 255
"""Characters that a path may have."""

_LEGACY_DEFAULT_DOMAIN: Final = "index.docker.io"
_OFFICIAL: Final = "library/"

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PART: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_ALGORITHM: Final = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*"
_DIGEST: Final = rf"{_ALGORITHM}:[0-9a-fA-F]{{32,}}"
_REFERENCE: Final = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_PART}(?:/{_PART})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


class InvalidReference(OSError):
    """A name that is no reference; the message says what is wrong with it."""

    def __init__(self, text: str, wrong: str) -> None:
        super().__init__(errno.EINVAL, wrong, text)


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """The full name of an image; `str` gives it as text that `parse` reads back.

    domain: the registry's host, with its port where the name has one. path: the repository there.
    digest: algorithm and hexadecimal digits, joined by a colon.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that a user's text means. Raises InvalidReference."""
        if not text:
            raise InvalidReference(text, "an image's name is empty")
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(text, f"that is a bare digest; write NAME@sha256:{text}")
        domain, rest = _split_domain(text)
        found = _REFERENCE.fullmatch(f"{domain}/{rest}")
        if found is None:
            path = rest.partition(":")[0].partition("@")[0]
            if path != path.lower():
                raise InvalidReference(text, f"capital letters in a repository; try {path.lower()}")
            raise InvalidReference(text, "no name of an image; it is [HOST/]PATH[:TAG][@DIGEST]")
        if len(found["path"]) > LONGEST_PATH:
            raise InvalidReference(text, f"a repository of more than {LONGEST_PATH} characters")
        if found["digest"]:
            try:
                digest.parts(found["digest"])
            except InvalidArgument as error:
                raise InvalidReference(text, f"{found['digest']}: {error.strerror}") from None
        return cls(**found.groupdict())

    @property
    def name(self) -> str:
        """Domain and path: the repository without a choice of image."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """As Docker shows it: without what a reader adds anyway, but for a tag."""
        path = self.path
        if path.startswith(_OFFICIAL) and path.count("/") == 1:
            path = path.removeprefix(_OFFICIAL)
        return (path if self.domain == DEFAULT_DOMAIN else f"{self.domain}/{self.path}") + self._end

    def chosen(self) -> Self:
        """The name of one image, by its digest alone or else by a tag, which has a default."""
        return replace(self, tag=None if self.digest else self.tag or DEFAULT_TAG)

    @property
    def _end(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return tag + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._end


def _split_domain(text: str) -> tuple[str, str]:
    """The domain that a name has or means, and the rest of it."""
    first, slash, rest = text.partition("/")
    named = slash and (
        first == "localhost" or not {".", ":"}.isdisjoint(first) or first != first.lower()
    )
    domain, path = (first, rest) if named else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = _OFFICIAL + path
    return domain, path
