"""Where a door differs from the kernel on purpose or by necessity, and why.

Each is expected to fail, strictly: a difference that is gone must leave the table.
"""

from dataclasses import dataclass
from typing import final

from tests.privilege import IN_USER_NAMESPACE


@final
@dataclass(frozen=True, slots=True)
class Known:
    """Scenarios that these doors cannot play as the kernel does, for one reason."""

    scenarios: frozenset[str]  # and with metacopy=on too
    doors: frozenset[str]
    reason: str


_LIBRARY = frozenset({"library"})
_FUSE = frozenset({"fuse", "fuse-cached", "fuse-pure"})
_WRITEBACK = frozenset({"fuse-cached", "fuse-pure"})
_PURE = frozenset({"fuse-pure"})

KNOWN_DIFFERENCES: tuple[Known, ...] = (
    Known(
        frozenset(
            {
                "index-held-open-for-reading",
                "index-held-open",
                "metacopy-held-open",
                "metacopy-held-open,index=on",
                "open-copied-up-meanwhile-lower",
                "open-directory-descriptors",
                "open-read-only-attributes",
                "flags-held-open",
            }
        ),
        _LIBRARY,
        "a descriptor is the layer's own file, and a lower layer's cannot be changed by it",
    ),
    Known(
        frozenset(
            {
                "flags-as-user",
                "user-acl-clears-set-gid-lower",
                "user-acl-lower",
                "user-capabilities-of-a-file-held-open-lower",
                "user-chmod-lower",
                "user-chown-lower",
                "user-chown-to-nobody-else-lower",
                "user-create-own-lower",
                "user-devices-lower",
                "user-open-truncating-clears-set-id-lower",
                "user-remove-lower",
                "user-set-id-of-a-file-copied-to-lower",
                "user-set-id-of-a-file-held-open-lower",
                "user-setgid-directory-lower",
                "user-sticky-lower",
                "user-truncate-clears-set-id-lower",
                "user-utime-lower",
                "user-write-clears-set-id-lower",
                "user-write-own-lower",
                "user-xattrs-lower",
                "user-devices-upper",
            }
        ),
        _LIBRARY,
        "the library has the rights of its process: an ordinary user cannot write root's upper",
    ),
    Known(
        frozenset(
            {
                "index-alone-written",
                "index-attributes",
                "index-directory-renamed",
                "index-held-open-for-reading",
                "index-in-upper-directories",
                "index-link-of-linked-lower-files",
                "index-written",
            }
        ),
        _FUSE,
        "a request names a file and not which of its names was used: upper gets another of them",
    ),
    Known(
        frozenset({"metacopy-opened", "metacopy-opened,index=on"}),
        _FUSE,
        "the kernel keeps the time that it knows of a file while a copy of metadata gets its data",
    ),
    Known(
        frozenset({"copy-up-by-truncate-same"}),
        _WRITEBACK,
        "with its writeback cache the kernel keeps the times of a file whose length stays",
    ),
    Known(
        frozenset({"open-unlinked-for-reading-lower"}),
        _FUSE,
        "FUSE counts down the links of a removed file, overlayfs not those of a lower one",
    ),
    Known(
        frozenset({"flags-checked-first"}),
        _FUSE,
        "what the kernel checks by itself, kinds and rights, comes before flags, which we check",
    ),
    Known(
        frozenset({"write-set-id-file-with-capability"}),
        frozenset() if IN_USER_NAMESPACE else _FUSE,  # whose root never keeps set-id bits so
        "the kernel asks as for chown(2) to the same owner, by which set-id bits go too",
    ),
    Known(
        frozenset({"write-fallocate"}),
        _PURE,
        "pyfuse3 has no fallocate operation: the C library writes a byte a block instead",
    ),
    Known(
        frozenset({"write-seek"}),
        _PURE,
        "pyfuse3 has no lseek operation: the kernel takes a file as one piece of data",
    ),
    Known(
        frozenset({"open-tmpfile"}),
        _PURE,
        "pyfuse3 has no tmpfile operation: the kernel answers EOPNOTSUPP by itself",
    ),
    Known(
        frozenset(
            {
                *(
                    f"flags-{flag}-{path}-{when}"
                    for flag in ("immutable", "append-only")
                    for path in ("file", "dir")
                    for when in ("set", "freed")
                ),
                "flags-as-user",
                "flags-copied-up",
                "flags-held-open",
                "flags-of-upper-itself",
                "flags-set",
                "flags-set-between",
            }
        ),
        _PURE,
        "pyfuse3 has no ioctl operation: flags are heeded, and neither told nor set",
    ),
    Known(
        frozenset({"flags-utime-now-append-only"}),
        _PURE,
        "pyfuse3 does not tell that times shall be those of now",
    ),
)
