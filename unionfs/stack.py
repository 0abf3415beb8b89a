"""What is stacked: the layers of one union, top first, checked when the stack is built.

A stack holds paths, never descriptors, so it costs nothing to keep.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


class StackError(OSError):
    """A stack that cannot be used; the message names the path and what to do."""


def _error(number: int, path: str, message: str) -> StackError:
    return StackError(number, message, path)


@final
@dataclass(frozen=True, slots=True)
class Layer:
    """One directory of the stack.

    path: absolute path of the layer's root, symlinks resolved.
    writable: True for the upper layer alone.
    """

    path: str
    writable: bool = False

    def join(self, relative: str) -> str:
        """The path on disk of a name relative to the layer's root ("" is the root)."""
        return f"{self.path}/{relative}" if relative else self.path


def _directory(path: str | os.PathLike[str], role: str) -> str:
    """Resolve path; StackError (ENOENT, ENOTDIR, EACCES) unless it is a readable directory."""
    name = os.path.abspath(os.fspath(path))
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise _error(error.errno or 5, name, f"{role} layer is unusable; check the path") from error
    if not stat.S_ISDIR(mode):
        raise _error(20, name, f"{role} layer is not a directory; name a directory")
    if not os.access(name, os.R_OK | os.X_OK):
        raise _error(13, name, f"{role} layer is not readable; check its permissions")
    return os.path.realpath(name)


@final
class LayerStack:
    """The layers of one union, top first.

    lower: read-only directories, top layer first; at least one.
    upper, work: the writable layer and its scratch directory, both or neither; they lie on one
        filesystem and neither contains the other.

    Raises StackError where the kernel would refuse the mount
    (Documentation/filesystems/overlayfs.rst, "Sharing and copying layers", "Changes to
    underlying filesystems").
    """

    def __init__(
        self,
        lower: Sequence[str | os.PathLike[str]],
        upper: str | os.PathLike[str] | None = None,
        work: str | os.PathLike[str] | None = None,
    ) -> None:
        if not lower:
            raise StackError(22, "a stack needs at least one lower layer")
        if (upper is None) != (work is None):
            raise StackError(22, "upper and work go together; name both or neither")
        self.lower = tuple(Layer(_directory(path, "lower")) for path in lower)
        self.upper: Layer | None = None
        self.work: str | None = None
        if upper is not None and work is not None:
            self.upper = Layer(_directory(upper, "upper"), writable=True)
            self.work = _directory(work, "work")
            self._check_writable(self.upper.path, self.work)

    def _check_writable(self, upper: str, work: str) -> None:
        if os.stat(upper).st_dev != os.stat(work).st_dev:
            raise _error(18, work, "work is on another filesystem than upper; put both on one")
        for role, path in [("work", work), *(("lower", layer.path) for layer in self.lower)]:
            if os.path.commonpath([upper, path]) in (upper, path):
                raise _error(22, path, f"{role} overlaps upper {upper}; use separate directories")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, top first, the upper among them."""
        return (self.upper, *self.lower) if self.upper else self.lower
