"""Digests: the names that content has by its bytes, and the chain IDs of stacked layers.

Rules: OCI image specification, descriptor.md ("Digests") and config.md ("Layer ChainID").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from unionfs.store.errors import InvalidArgument

if TYPE_CHECKING:
    from hashlib import _Hash

ALGORITHM: Final = "sha256"
"""What content is called by where nobody says otherwise."""
_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}  # hexadecimal digits


def parts(digest: str) -> tuple[str, str]:
    """A digest's algorithm and its hexadecimal digits. Raises InvalidArgument where it is none."""
    algorithm, _, digits = digest.partition(":")
    if not re.fullmatch(f"[0-9a-f]{{{_LENGTHS.get(algorithm, 1)}}}", digits) or (
        algorithm not in _LENGTHS
    ):
        raise InvalidArgument("not a digest; one is sha256: and 64 hexadecimal digits", digest)
    return algorithm, digits


def hasher(digest: str | None) -> _Hash:
    """An empty hash of the digest's algorithm."""
    return hashlib.new(parts(digest)[0] if digest else ALGORITHM)


def of_hash(hashed: _Hash) -> str:
    """The digest that a hash has come to."""
    return f"{hashed.name}:{hashed.hexdigest()}"


def of_bytes(data: bytes) -> str:
    """The digest of data."""
    return of_hash(hashlib.sha256(data))


def chain_id(diff_ids: Iterable[str]) -> str:
    """The chain ID of a stack of layers, the bottom one first; "" of none."""
    chain = ""
    for diff_id in diff_ids:
        chain = of_bytes(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain
