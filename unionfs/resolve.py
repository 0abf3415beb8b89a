"""Path to node: which layers hold a name, which one answers, and where the search stops.

A lookup asks the layers top first, as the kernel's ovl_lookup does: the topmost layer that holds
the name answers; directories of further layers merge into it until one is opaque, a
non-directory or a whiteout. A redirect mark makes the search go on under another name.

Rules: Documentation/filesystems/overlayfs.rst; fs/overlayfs/namei.c. Cost of a lookup: an lstat(2)
a layer that can hold the name; the marks of a directory that something may lie below.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final, final

from unionfs import markers, system
from unionfs.inodes import FileId, file_id
from unionfs.stack import Layer, LayerStack

SYMLINKS_MAX: Final = 40
"""As many symlinks as the kernel follows in one path (MAXSYMLINKS)."""
PATH_MAX: Final = 4095
_NAME_MAX: Final = 255


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where one layer holds something; the path is relative to the layer's root, "" that root."""

    layer: Layer
    path: str

    def child(self, name: str) -> Place:
        """The place of name in this directory."""
        return Place(self.layer, join(self.path, name))

    def status(self) -> os.stat_result:
        """lstat(2) of it."""
        return lstat(self.layer, self.path)


class Node:
    """One object of the union, known by at least one name until the last is removed.

    names: parent and name of each known hard link; empty for the root, and once it is removed.
    is_root: whether it is the root.
    kind: its file type, of S_IFMT.
    upper: whether the upper layer holds it, always at the union's own path.
    lower: the lower places of a directory, merged top first; the one place of another file that
        upper does not hold.
    file: the layer's file whose number it has, its origin.
    redirect, opaque, impure: the marks of its directory in upper.
    origin: whether its file in upper is a copy that tells where it came from.
    """

    __slots__ = (
        "__weakref__",
        "file",
        "impure",
        "is_root",
        "kind",
        "lower",
        "names",
        "opaque",
        "origin",
        "redirect",
        "upper",
    )

    def __init__(
        self,
        names: list[tuple[Node, str]],
        kind: int,
        file: FileId,
        *,
        upper: bool,
        lower: tuple[Place, ...] = (),
        marks: markers.Marks = markers.Marks(),  # noqa: B008 - frozen
        origin: bool = False,
    ) -> None:
        self.is_root = not names
        self.names = names
        self.kind = kind
        self.file = file
        self.upper = upper
        self.lower = lower
        self.redirect = marks.redirect
        self.opaque = marks.opaque
        self.impure = marks.impure
        self.origin = origin

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_merged(self) -> bool:
        """A directory that several layers hold, whose link count is not told."""
        return self.is_dir and len(self.lower) + self.upper > 1

    @property
    def path(self) -> str:
        """Its path in the union, and so in upper; "" is the root.

        Raises FileNotFoundError when it, or a directory above it, was removed.
        """
        parts = []
        node = self
        while node.names:
            node, name = node.names[0]
            parts.append(name)
        if not node.is_root:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return "/".join(reversed(parts))


def join(directory: str, name: str) -> str:
    """The path of name in a directory, where "" is the root."""
    return f"{directory}/{name}" if directory else name


def lstat(layer: Layer, path: str) -> os.stat_result:
    """lstat(2) of a path in a layer."""
    if path:
        return os.stat(path, dir_fd=layer.fd, follow_symlinks=False)
    return os.stat(layer.fd)


def lstat_or_none(layer: Layer, path: str) -> os.stat_result | None:
    """lstat(2) of a path in a layer that may not hold it."""
    try:
        return lstat(layer, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def places(stack: LayerStack, node: Node) -> tuple[Place, ...]:
    """Where the layers hold a node, top first: the first one answers."""
    if node.upper and stack.upper:
        return (Place(stack.upper, node.path), *node.lower)
    return node.lower


def top(stack: LayerStack, node: Node) -> Place:
    """The place that answers for a node."""
    if node.upper and stack.upper:
        return Place(stack.upper, node.path)
    return node.lower[0]


def root(stack: LayerStack) -> Node:
    """The merged root: every layer's own root."""
    marks = markers.Marks()
    if stack.upper:
        marks = markers.of_directory(stack.prefix, stack.upper.fd, "")
    lower = tuple(Place(layer, "") for layer in stack.lower)
    file = file_id(lower[0].status())
    return Node([], stat.S_IFDIR, file, upper=stack.upper is not None, lower=lower, marks=marks)


def lookup(stack: LayerStack, parent: Node, name: str) -> Node | None:
    """The node called name in the directory parent, or None where the union has none.

    Raises PermissionError for a redirect that the stack's options forbid to follow, OSError EINVAL
    for a corrupt one, and what lstat(2) raises.
    """
    candidates = [place.child(name) for place in places(stack, parent)]
    found = _search(stack, candidates, name)
    if not found:
        return None
    place, status = found.places[0], found.status
    upper = place.layer.writable
    names = [(parent, name)]
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        lower = found.places[1:] if upper else found.places
        file = found.lower_file or file_id(status)
        return Node(names, kind, file, upper=upper, lower=lower, marks=found.marks)
    if not upper:
        return Node(names, kind, file_id(status), upper=False, lower=(place,))
    origin = None
    if parent.lower or parent.impure:
        origin = origin_of(stack, place, status)
    return Node(names, kind, origin or file_id(status), upper=True, origin=origin is not None)


def origin_of(stack: LayerStack, place: Place, status: os.stat_result) -> FileId | None:
    """The lower file that the file at place was copied up from, by its mark."""
    mark = system.get_xattr(place.layer.fd, place.path, stack.prefix + markers.ORIGIN)
    if not mark:
        return None
    file = stack.numbers.origin(mark)
    return file if file != file_id(status) else None


@dataclass(slots=True)
class _Found:
    """The places that answer, the topmost one's status, and the marks of it if it is in upper."""

    places: tuple[Place, ...]
    status: os.stat_result
    lower_file: FileId | None
    marks: markers.Marks


def _search(stack: LayerStack, candidates: list[Place], name: str) -> _Found | None:
    """Ask the candidates, top first, which of them answer for a name."""
    if name.startswith(markers.AUFS_PREFIX):
        return None
    answering: list[Place] = []
    passed: list[Place] = []
    status: os.stat_result | None = None
    lower_file: FileId | None = None
    upper_marks = markers.Marks()
    while candidates:
        place = candidates.pop(0)
        here = lstat_or_none(place.layer, place.path)
        if here is None:
            passed.append(place)
            continue
        if any(_hidden_by_aufs(above) for above in passed):
            break
        if markers.is_whiteout(stack.prefix, place.layer.fd, place.path, here):
            break
        if not stat.S_ISDIR(here.st_mode):
            if not answering:
                _check_data(stack, place, here)
                answering, status = [place], here
            break
        answering.append(place)
        passed.append(place)
        status = status or here
        if not place.layer.writable:
            lower_file = lower_file or file_id(here)
            if not candidates:
                break
        marks = markers.of_directory(stack.prefix, place.layer.fd, place.path)
        if place.layer.writable:
            upper_marks = marks
        if marks.opaque:
            break
        if marks.redirect is not None:
            candidates = _redirected(stack, place, candidates, marks.redirect)
    return _Found(tuple(answering), status, lower_file, upper_marks) if status else None


def _check_data(stack: LayerStack, place: Place, status: os.stat_result) -> None:
    """PermissionError for a file without its data, as from the kernel with metacopy=off."""
    if stat.S_ISREG(status.st_mode) and markers.lacks_data(
        stack.prefix, place.layer.fd, place.path, status
    ):
        message = "a copy of metadata alone; mount by overlayfs with metacopy=on"
        raise PermissionError(errno.EPERM, message, place.path)


def _hidden_by_aufs(place: Place) -> bool:
    directory, _, name = place.path.rpartition("/")
    return markers.hidden_by_aufs(place.layer.fd, directory, name)


def _redirected(
    stack: LayerStack, place: Place, candidates: list[Place], target: str
) -> list[Place]:
    """Where the search goes on below place: a sibling's name, or a path from the root."""
    if not stack.follows_redirects:
        message = "a redirect, which the options forbid to follow; mount with redirect_dir=follow"
        raise PermissionError(errno.EPERM, message, place.path)
    if not target.startswith("/"):
        return [Place(c.layer, join(c.path.rpartition("/")[0], target)) for c in candidates]
    below = [layer for layer in stack.lower if layer.index > place.layer.index]
    *parents, name = target.strip("/").split("/")
    directories = [Place(layer, "") for layer in below]
    for part in parents:
        found = _search(stack, [directory.child(part) for directory in directories], part)
        if not found or not stat.S_ISDIR(found.status.st_mode):
            return []
        directories = list(found.places)
    return [directory.child(name) for directory in directories]


def exists_below(stack: LayerStack, parent: Node, name: str) -> bool:
    """Whether the lower layers of a directory hold name, were upper not to.

    Then only a whiteout hides it (ovl_lower_positive, fs/overlayfs/dir.c).
    """
    return _search(stack, [place.child(name) for place in parent.lower], name) is not None


def walk(
    stack: LayerStack,
    start: Node,
    path: str,
    *,
    follow: bool = True,
    known: dict[tuple[Node, str], Node | None] | None = None,
) -> tuple[Node, str, Node | None]:
    """The directory that holds the last component of path, that component, and what it names.

    path: from start, or from the root where it begins with "/"; ".." stays within the union, and
        so do symlinks. follow: whether a symlink at the end is followed, as it is before a "/".
    known: what earlier walks of the same operation have found, so that one object has one node.

    The component is ".", ".." or, for the root itself, "" where path ends so. The node is None
    where the directory has no such name. A slash at the end asks for a directory.

    Raises OSError ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG (path_resolution(7)).
    """
    if not path:
        raise _error(errno.ENOENT, path)
    base = start
    while base.names:
        base = base.names[0][0]
    directory = base if path.startswith("/") else start
    node: Node | None = directory
    name = ""
    links = 0
    pending = _parts(path)
    while pending:
        part = pending.pop(0)
        if node is None and not (part or pending):
            break
        if node is None:
            raise _error(errno.ENOENT, path)
        if not node.is_dir:
            raise _error(errno.ENOTDIR, path)
        if not part:
            continue
        directory, name = node, part
        if part == ".":
            continue
        if part == "..":
            node = node.names[0][0] if node.names else node
            continue
        if len(os.fsencode(part)) > _NAME_MAX:
            raise _error(errno.ENAMETOOLONG, path)
        if known is not None and (directory, part) in known:
            node = known[directory, part]
        else:
            node = lookup(stack, directory, part)
            if known is not None:
                known[directory, part] = node
        if node is None or node.kind != stat.S_IFLNK or not (pending or follow):
            continue
        links += 1
        if links > SYMLINKS_MAX:
            raise _error(errno.ELOOP, path)
        target = readlink(stack, node)
        pending = _parts(target) + pending
        node = base if target.startswith("/") else directory
        name = ""
    return directory, name, node


def _parts(path: str) -> list[str]:
    """The components of a path; a last one of "" stands for a slash at its end."""
    if len(os.fsencode(path)) > PATH_MAX:
        raise _error(errno.ENAMETOOLONG, path)
    parts = [part for part in path.split("/") if part]
    return [*parts, ""] if path.endswith("/") and parts else parts


def resolve(stack: LayerStack, path: str, *, follow: bool = True) -> Node:
    """The node at path, from the union's root.

    Raises what `walk` raises, and FileNotFoundError where there is none.
    """
    node = walk(stack, root(stack), path or "/", follow=follow)[2]
    if node is None:
        raise _error(errno.ENOENT, path)
    return node


def readlink(stack: LayerStack, node: Node) -> str:
    """The text of a symlink."""
    place = top(stack, node)
    return os.readlink(place.path, dir_fd=place.layer.fd)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
