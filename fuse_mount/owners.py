"""Owners as the mount shows them, and as they are on disk: mapped, or squashed to one.

What is squashed is so to the eye: on disk a file belongs to who made it, where that is permitted.

csrc/ufs_owners.c does the same for what C answers.

Rules: fuse-overlayfs(1), options uidmapping, gidmapping, squash_to_root, squash_to_uid and
squash_to_gid; its find_mapping. Cost: none where no such option is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from unionfs.options import IdRange, MountOptions

_OVERFLOW: Final = 65534
"""Whom a file belongs to whose owner has no number in the mount (/proc/sys/fs/overflowuid)."""
_UNCHANGED: Final = -1


@final
@dataclass(frozen=True, slots=True)
class Ids:
    """The users, or the groups. squash: the one that all are; None: as `ranges` map them."""

    ranges: tuple[IdRange, ...]
    squash: int | None

    def shown(self, on_disk: int) -> int:
        """The number in the mount of one on disk."""
        if self.squash is not None:
            return self.squash
        for disk, inside, count in self.ranges:
            if disk <= on_disk < disk + count:
                return inside + on_disk - disk
        return _OVERFLOW if self.ranges else on_disk

    def on_disk(self, shown: int) -> int:
        """The number on disk of one in the mount.

        The overflow user's where there is none: podman makes links in a mount as root, whom the
        container has no number for, and gives them to its own root then.
        """
        if shown == _UNCHANGED:
            return shown
        for disk, inside, count in self.ranges:
            if inside <= shown < inside + count:
                return disk + shown - inside
        return _OVERFLOW if self.ranges else shown


def users(options: MountOptions) -> Ids:
    """The users of a mount."""
    return Ids(options.uidmapping, _squash(options.squash_to_uid, options))


def groups(options: MountOptions) -> Ids:
    """The groups of a mount."""
    return Ids(options.gidmapping, _squash(options.squash_to_gid, options))


def _squash(one: int | None, options: MountOptions) -> int | None:
    return 0 if one is None and options.squash_to_root else one
