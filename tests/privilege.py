"""Root of the machine, root of a user namespace, or neither: what a test may expect of either.

Here alone is decided which it is. Both mount, change owners and act as other users; what only the
machine's root can do is skipped elsewhere, with its reason (user_namespaces(7)).
"""

import os
from pathlib import Path

import pytest


def _whole(numbers: str) -> bool:
    """Whether a /proc/self/uid_map maps every number to itself: the first namespace's does."""
    return numbers.split() == ["0", "0", str(2**32 - 1)]


IN_USER_NAMESPACE = not _whole(Path("/proc/self/uid_map").read_text())
"""Whether root, if that is what we are, is one in a user namespace only."""

NO_DEVICES = "device nodes cannot be made in a user namespace"
NO_DISKS = "only root of the machine mounts filesystems that lie on disks"
NO_TRUSTED = "trusted. attributes cannot be set in a user namespace"
NO_FLAGS = "immutable and append-only flags cannot be set in a user namespace"
NO_PASSTHROUGH = "the kernel passes data by a FUSE program for root of the machine alone"
NO_CACHES = "only root of the machine drops the kernel's caches"
NO_OTHER_IDS = "a user namespace has only the ids that are mapped into it"
NO_IDMAPPING = "a user namespace cannot map owners of the machine's filesystems"
NO_REDIRECTS = "with user. marks the kernel follows neither redirects nor metacopies"
NO_HANDLES = "file handles, which origins are, cannot be opened in a user namespace"
NO_INDEX = "with user. marks the kernel keeps no index"


def machine_only(reason: str) -> pytest.MarkDecorator:
    """Skip a test where we are not root of the machine.

    reason: what is not possible in a user namespace.
    """
    return pytest.mark.skipif(os.geteuid() != 0 or IN_USER_NAMESPACE, reason=reason)
