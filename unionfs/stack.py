"""What is stacked: the layers of one union, top first, checked when the stack is built.

A stack holds each layer open, so a layer that is moved or exchanged on disk stays the one that
was checked. Cost: one descriptor a layer; nothing is read until a path is resolved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Final, final

from unionfs import index, layerindex, markers, override, system
from unionfs.inodes import Numbers
from unionfs.lower import Memory
from unionfs.options import MountOptions
from unionfs.place import Layer
from unionfs.workdir import MEMBERS, WorkDir, mount_table

LAYERS_MAX: Final = 500
"""As many lower layers as the kernel takes (OVL_MAX_STACK)."""


class StackError(OSError):
    """A stack that cannot be used; the message names the path and what to do."""


@final
class LayerStack:
    """The layers of one union, top first.

    lower: read-only directories, top layer first; at least one.
    upper, work: the writable layer and its scratch directory, both or neither; they lie on one
        filesystem and neither contains the other.
    options: what a mount of it, and the library, keep to.
    data: directories that are not merged: only the absolute redirects of copies of metadata alone
        lead into them, for files' data.

    layers: upper, where there is one, and the lower ones. lower: the read-only ones.
    prefix: of the extended attributes that are this stack's marks.
    redirects: whether a lower directory is renamed by a redirect; copies_directories: whether it
        is copied up whole instead, where the options leave that open. With neither it cannot be
        renamed (EXDEV). follows_redirects: whether redirects on disk are followed
        (`redirect_dir` in overlayfs.rst).
    indexes: whether hard links of lower files stay linked (option `index`); as in the kernel, not
        so where files cannot be found by their handles. index: the directory that is for that, as
        a layer; None before the first claim made it.
    metacopy: whether a copy-up may copy metadata alone, and such copies are followed.
    numbers: the inode numbers of the union. memory: what directories of the lower layers hold.
    lock: held by whoever reads or changes the union. changes: grows before each change of names
        in upper, and when the claim is given up.

    A context manager: `close` lets go of the layers. Its methods may be called from any thread.

    Raises StackError where the kernel would refuse the mount
    (Documentation/filesystems/overlayfs.rst, "Sharing and copying layers", "Changes to
    underlying filesystems").
    """

    def __init__(
        self,
        lower: Sequence[str | os.PathLike[str]],
        upper: str | os.PathLike[str] | None = None,
        work: str | os.PathLike[str] | None = None,
        *,
        options: MountOptions = MountOptions(),  # noqa: B008 - frozen
        data: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not lower:
            raise StackError(errno.EINVAL, "a stack needs at least one lower layer; name one")
        if (count := len(lower) + len(data)) > LAYERS_MAX:
            message = f"{count} lower layers; overlayfs takes {LAYERS_MAX}, so merge some"
            raise StackError(errno.EINVAL, message, os.fspath(lower[-1]))
        if (upper is None) != (work is None):
            named = os.fspath(upper or work or "")
            raise StackError(errno.EINVAL, "upper and work go together; name both", named)
        self.options = options
        decided = options.decided(trusted=markers.trusted_permitted())
        self.prefix = markers.USER if decided.userxattr else markers.TRUSTED
        self.metacopy = bool(decided.metacopy)
        follows = decided.redirect_dir == "follow" and upper is None
        if self.metacopy and (decided.userxattr or not (decided.redirect_dir == "on" or follows)):
            message = "option metacopy=on needs redirect_dir=on, and excludes userxattr"
            raise StackError(errno.EINVAL, message, os.fspath(lower[0]))
        self.redirects = decided.redirect_dir == "on"
        self.copies_directories = not self.redirects and options.redirect_dir is None
        self.follows_redirects = decided.redirect_dir in ("on", "follow") or (
            options.redirect_dir in (None, "off") and not decided.userxattr
        )
        self.memory = Memory(self.prefix)
        self.lock = threading.RLock()
        self.changes = 0
        self._indexed = False
        self.upper: Layer | None = None
        self.index: Layer | None = None
        self.work: str | None = None
        self._workdir: WorkDir | None = None
        opened: list[Layer] = []
        try:
            if upper is not None and work is not None:
                self.upper = _opened(upper, "upper", 0, opened, options.xattr_permissions)
                self.work = _directory(work, "work")
            for number, path in enumerate(lower, 1):
                _opened(path, "lower", number, opened, options.xattr_permissions)
            self.layers: tuple[Layer, ...] = tuple(opened)
            self.lower: tuple[Layer, ...] = self.layers[1:] if self.upper else self.layers
            for number, path in enumerate(data, len(lower) + 1):
                _opened(path, "lower", number, opened)
            self.data: tuple[Layer, ...] = tuple(opened[len(self.layers) :])
            self.numbers = Numbers(
                (layer.fd for layer in opened),
                upper=self.upper is not None,
                apart=options.xino == "off",
            )
            self._check_writable()
            self.indexes = bool(decided.index and self.upper) and self.numbers.follows_handles(
                layer.device for layer in self.lower
            )
            if self.indexes and self.work is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._open_index(os.path.join(self.work, index.DIRECTORY))
                with _as_stack_error():
                    index.verify(self)
        except BaseException:
            for layer in (*opened, *filter(None, [self.index])):
                os.close(layer.fd)
            raise

    def _check_writable(self) -> None:
        if self.upper is None or self.work is None:
            return
        upper = self.upper.path
        if os.stat(upper).st_dev != os.stat(self.work).st_dev:
            message = f"work is on another filesystem than upper {upper}; put both on one"
            raise StackError(errno.EXDEV, message, self.work)
        _check_apart("work", self.work, upper)
        for layer in (*self.lower, *self.data):
            _check_apart("lower", layer.path, upper)
        foreign = sorted(set(os.listdir(self.work)) - MEMBERS)
        if foreign:
            message = f"work holds {foreign[0]!r}, which no union made; name an empty directory"
            raise StackError(errno.ENOTEMPTY, message, self.work)

    def read_indexes(self) -> None:
        """Give the lower layers their indexes, once, where the options ask for them.

        For whoever is about to read the union; a mount by the kernel has no use for them.
        """
        folder = self.options.layer_index
        with self.lock:
            if folder is None or self._indexed or self.options.xattr_permissions:
                return
            if self.idmapped:  # the owners in an index are those of another mount
                return
            self._indexed = True
            self.lower = tuple(_indexed(layer, folder, self.prefix) for layer in self.lower)
            self.layers = (*([self.upper] if self.upper else []), *self.lower)

    @cached_property
    def idmapped(self) -> bool:
        """Whether a layer lies on an idmapped mount, which need not map every owner."""
        mounts = {
            line.split(" ", 1)[0]
            for line in mount_table()
            if "idmapped" in line.split(" ", 6)[5].split(",")
        }
        return bool(mounts) and any(_mount_id(layer.path) in mounts for layer in self.layers)

    @property
    def claimed(self) -> bool:
        """Whether nobody but this stack's user may change upper."""
        return self._workdir is not None

    def claim(self) -> WorkDir:
        """The work directory, ours from now on until `release` or `close`; asked for each change.

        Raises StackError: EROFS without an upper, EBUSY where another union uses it, and what
        `WorkDir` and `index.prepare` raise.
        """
        with self.lock:
            self.changes += 1
            if self._workdir is None:
                if self.upper is None or self.work is None:
                    raise StackError(errno.EROFS, os.strerror(errno.EROFS))
                with _as_stack_error():
                    workdir = WorkDir(
                        self.work, self.upper.path, self.prefix, volatile=self.options.volatile
                    )
                    try:
                        if self.indexes:
                            self._prepare_index(workdir)
                        self._keep_owners()
                    except BaseException:
                        workdir.close()
                        raise
                    self._workdir = workdir
            return self._workdir

    def check_claim(self) -> None:
        """Raise what `claim` would raise where another union uses upper or work, or none can.

        Nothing is kept from being claimed by someone else afterwards.
        """
        if self.upper is not None and self.work is not None:
            with _as_stack_error():
                WorkDir(self.work, self.upper.path, self.prefix).close()

    def check_owners(self) -> None:
        """Raise what `claim` would raise where owners cannot be kept in the attribute asked for."""
        with _as_stack_error():
            self._keep_owners()

    def _keep_owners(self) -> None:
        """Say by upper's root that its files have their owners in an attribute, if they have."""
        upper = self.upper
        if upper is None or upper.owners is None:
            return
        if system.get_xattr(upper.fd, "", upper.owners) is not None:
            return
        status = os.stat(upper.fd)
        try:
            override.put(upper.fd, "", upper.owners, status)
        except PermissionError:
            message = f"nobody but root may keep owners in {upper.owners}; use xattr_permissions=2"
            raise PermissionError(errno.EPERM, message, upper.path) from None

    def _prepare_index(self, workdir: WorkDir) -> None:
        if self.index is None:
            self._open_index(workdir.make(index.DIRECTORY))
        index.prepare(self)

    def _open_index(self, path: str) -> None:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        owners = self.upper.owners if self.upper else None
        self.index = Layer(path, fd, 0, os.fstat(fd).st_dev, writable=True, owners=owners)

    def release(self) -> None:
        """Give up the claim: another process may write from now on."""
        with self.lock:
            if self._workdir is not None:
                self.changes += 1
                self._workdir.close()
                self._workdir = None

    def close(self) -> None:
        """Let go of the layers; the stack is of no use afterwards."""
        self.release()
        layers = self.layers + self.data
        self.layers = self.data = ()
        if self.index is not None:
            layers += (self.index,)
            self.index = None
        for layer in layers:
            os.close(layer.fd)

    def __enter__(self) -> LayerStack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _as_stack_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StackError(error.errno, error.strerror, error.filename) from error


def _indexed(layer: Layer, folder: str, prefix: str) -> Layer:
    """A layer with its index; folder: where that is, from the layer's root."""
    known = layerindex.use(os.path.join(layer.path, folder), layer.fd, prefix)
    return dataclasses.replace(layer, known=known)


def _mount_id(directory: str) -> str:
    """The mount that a path leads to, by its number in the table of mounts."""
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as facts:
            return next(line.split()[1] for line in facts if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def _opened(
    path: str | os.PathLike[str], role: str, index: int, opened: list[Layer], kept: int = 0
) -> Layer:
    """The layer at path, added to opened. kept: the option xattr_permissions."""
    name = _directory(path, role)
    fd = system.clone_mount(name) if role == "lower" else None
    if fd is None:
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    upper = role == "upper"
    owners = None
    if kept:
        owners = override.attribute_for(fd, kept) if upper else override.attribute_of(fd)
    opened.append(Layer(name, fd, index, os.fstat(fd).st_dev, writable=upper, owners=owners))
    return opened[-1]


def _directory(path: str | os.PathLike[str], role: str) -> str:
    """Path resolved; StackError (ENOENT, ENOTDIR, EACCES) unless it is a readable directory."""
    name = os.path.abspath(os.fspath(path))
    what = "work directory" if role == "work" else f"{role} layer"
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        message = f"{what}: {error.strerror}; check the path"
        raise StackError(error.errno or errno.EIO, message, name) from error
    if not stat.S_ISDIR(mode):
        raise StackError(errno.ENOTDIR, f"{what} is not a directory; name a directory", name)
    if not os.access(name, os.R_OK | os.X_OK, effective_ids=True):
        raise StackError(errno.EACCES, f"{what} is not readable; check its permissions", name)
    return os.path.realpath(name)


def _check_apart(role: str, path: str, upper: str) -> None:
    if os.path.commonpath([upper, path]) in (upper, path):
        message = f"{role} overlaps upper {upper}; use separate directories"
        raise StackError(errno.EINVAL, message, path)
