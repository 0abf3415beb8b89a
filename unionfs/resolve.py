"""Path to node: which layers hold a name, which one answers, and where the search stops.

A lookup asks the layers top first, as the kernel's ovl_lookup does: the topmost layer that holds
the name answers; directories of further layers merge into it until one is opaque, a
non-directory or a whiteout. A redirect mark makes the search go on under another name.

Rules: Documentation/filesystems/overlayfs.rst; fs/overlayfs/namei.c. Cost of a lookup: an lstat(2)
in upper and one in the layer that answers, and the marks of a directory in each layer that has it;
the first one in a directory asks all of its layers (`lower`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from unionfs import index, markers, system
from unionfs.inodes import FileId, file_id
from unionfs.place import Place, lstat_or_none
from unionfs.stack import LayerStack

_BLOCK: Final = 512

SYMLINKS_MAX: Final = 40
"""As many symlinks as the kernel follows in one path (MAXSYMLINKS)."""
PATH_MAX: Final = 4095
NAME_MAX: Final = 255


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
    data: where the data of a file lies whose own copy is of metadata alone; None where it has its
        data itself. With it, `lower` has the file that is copied or would be.
    index: the name in the index that its copy has or will have, for it has several names below;
        where upper is true it answers there, and upper need not hold each of its names.
    guard: which of the flags immutable and append-only it has; None where not read yet.
    """

    __slots__ = (
        "__weakref__",
        "data",
        "file",
        "guard",
        "impure",
        "index",
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
        index: str | None = None,
        data: Place | None = None,
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
        self.index = index
        self.data = data
        self.guard: int | None = None

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


def places(stack: LayerStack, node: Node) -> tuple[Place, ...]:
    """Where the layers hold a node, top first: the first one answers."""
    return (_in_upper(stack, node), *node.lower) if node.upper else node.lower


def top(stack: LayerStack, node: Node) -> Place:
    """The place that answers for a node."""
    return _in_upper(stack, node) if node.upper else node.lower[0]


def data(stack: LayerStack, node: Node) -> Place:
    """The place that has a regular file's data.

    Raises FileNotFoundError where the layers of data alone lack it.
    """
    if node.data is None:
        return top(stack, node)
    if node.data.layer in stack.data and not _is_regular(node.data):
        raise _error(errno.ENOENT, node.data.path)
    return node.data


def status(stack: LayerStack, node: Node) -> os.stat_result:
    """That of a node's file in its layer: metadata of the top, as many blocks as the data has."""
    found = top(stack, node).status()
    if node.data is None:
        return found
    data = lstat_or_none(node.data.layer, node.data.path)
    blocks = data.st_blocks if data else -(-found.st_size // _BLOCK)
    return os.stat_result(found[:10], system.precise(found) | {"st_blocks": blocks})


def _in_upper(stack: LayerStack, node: Node) -> Place:
    if node.index is not None and stack.index is not None:
        return Place(stack.index, node.index)
    assert stack.upper is not None
    return Place(stack.upper, node.path)


def root(stack: LayerStack) -> Node:
    """The merged root: every layer's own root. Here all reading of a union begins.

    Its number is the top layer's, unlike other merged directories' (ovl_get_root).
    """
    stack.read_indexes()
    marks = markers.Marks()
    if stack.upper:
        marks = markers.of_directory(stack.prefix, stack.upper.fd, "")
    lower = tuple(Place(layer, "") for layer in stack.lower)
    file = file_id(os.stat(stack.layers[0].fd))
    return Node([], stat.S_IFDIR, file, upper=stack.upper is not None, lower=lower, marks=marks)


def lookup(stack: LayerStack, parent: Node, name: str, *, indexed: bool = True) -> Node | None:
    """The node called name in the directory parent, or None where the union has none.

    indexed: False to see the lower layers as they are without upper.

    Raises PermissionError for a redirect, or a copy of metadata alone, that the stack's options
    forbid to follow; OSError EINVAL for a corrupt redirect, EIO for a copy of metadata alone
    without data below, ESTALE for one that is not of the file that the index says; and what
    lstat(2) raises.
    """
    found = _search(stack, places(stack, parent), _holding(stack, parent, name), name)
    return _node(stack, parent, name, found, indexed) if found else None


def find(stack: LayerStack, parent: Node, name: str) -> tuple[Node, os.stat_result] | None:
    """As `lookup`, and `status` of the node, which a search has read for the most part."""
    found = _search(stack, places(stack, parent), _holding(stack, parent, name), name)
    if not found:
        return None
    node = _node(stack, parent, name, found, indexed=True)
    elsewhere = node.index is not None or node.data is not None
    return node, status(stack, node) if elsewhere else found.status


def _node(stack: LayerStack, parent: Node, name: str, found: _Found, indexed: bool) -> Node:
    place, status = found.places[0], found.status
    upper = place.layer.writable
    names = [(parent, name)]
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        lower = found.places[1:] if upper else found.places
        file = found.lower_file or file_id(status)
        return Node(names, kind, file, upper=upper, lower=lower, marks=found.marks)
    node = Node(names, kind, file_id(status), upper=upper, lower=found.places, data=found.data)
    if upper:
        node.lower = found.places[1:]
        _find_origin(stack, node, place)
    elif indexed:
        _find_copy(stack, node, place, status)
    return node


def _find_copy(stack: LayerStack, node: Node, place: Place, status: os.stat_result) -> None:
    """Let the index answer for a lower file of several names that has a copy there."""
    node.index = index.name_of(stack, place.layer.fd, place.path, status)
    copied = index.find(stack, node.index, node.kind) if node.index is not None else None
    if copied is None:
        return
    node.upper = node.origin = True
    copy = top(stack, node)
    if _lacks_data(stack, copy, copied):
        node.data = node.data or place
        node.redirect = markers.redirect_of(stack.prefix, copy.layer.fd, copy.path)
    else:
        node.lower, node.data = (), None


def _find_origin(stack: LayerStack, node: Node, place: Place) -> None:
    """Tell a file of upper by the lower one that it was copied up from, if it was."""
    prefix, fd, path = stack.prefix, place.layer.fd, place.path
    parent = node.names[0][0]
    if not (parent.lower or parent.impure or node.data):
        return
    mark = system.get_xattr(fd, path, prefix + markers.ORIGIN)
    origin = stack.numbers.origin(mark) if mark else None
    if origin is not None and not _is_of_kind(stack, origin, node.kind):
        origin = None
    if node.data is not None:
        node.redirect = markers.redirect_of(prefix, fd, path)
        below = node.lower[0].status()
        if stack.indexes and origin is not None and file_id(origin) != file_id(below):
            message = "the file below is not the one that it was copied up from"
            raise OSError(errno.ESTALE, message, path)
        origin = below
    if origin is None:
        return
    if mark and stack.indexes and origin.st_nlink > 1:
        copy = index.find(stack, mark.hex(), node.kind)
        if copy is not None and file_id(copy) == node.file:
            node.index = mark.hex()
    # Links of a lower file may have been copied up one by one: each is a file of its own then.
    if node.index is not None or origin.st_nlink == 1:
        node.file, node.origin = file_id(origin), True


def _is_of_kind(stack: LayerStack, origin: os.stat_result, kind: int) -> bool:
    """Whether a lower file is of a node's kind, or may stand in for such a one (`override`)."""
    found = stat.S_IFMT(origin.st_mode)
    return found == kind or bool(stack.options.xattr_permissions and found == stat.S_IFREG)


@dataclass(slots=True)
class _Found:
    """The places that answer, the topmost one's status, and the marks of it if it is in upper.

    data: for a copy of metadata alone, the place of the data.
    """

    places: tuple[Place, ...]
    status: os.stat_result
    lower_file: FileId | None
    marks: markers.Marks
    data: Place | None


_Holder = tuple[Place, int, os.stat_result | None]
"""A layer's place that holds a name, its file type of S_IFMT, and its status if that was asked."""


def _holding(stack: LayerStack, parent: Node, name: str) -> Iterator[_Holder]:
    """The places that hold a name of a directory, top first, as far as nothing hides them."""
    above: list[Place] = []
    if parent.upper and stack.upper:
        above.append(Place(stack.upper, parent.path))
    held = stack.memory.for_lookup(parent.lower)
    if held is None:
        yield from _ask(stack, [*above, *parent.lower], name)
        return
    hidden = yield from _ask(stack, above, name)
    if name in held and not hidden and not any(_hidden_by_aufs(each, name) for each in above):
        kind, _, positions = held[name]
        for position in positions:
            yield parent.lower[position].child(name), kind << 12, None


def _ask(
    stack: LayerStack, directories: Sequence[Place], name: str
) -> Generator[_Holder, None, bool]:
    """The same, asked of each layer, and in the end whether the name is hidden further below.

    directories: places, top first.
    """
    above: list[Place] = []
    for directory in directories:
        place = directory.child(name)
        status = lstat_or_none(place.layer, place.path)
        if status is not None:
            if any(_hidden_by_aufs(each, name) for each in above):
                return True
            if markers.is_whiteout(stack.prefix, place.layer.fd, place.path, status):
                return True
            yield place, stat.S_IFMT(status.st_mode), status
            above.clear()
        above.append(directory)
    return False


def _search(
    stack: LayerStack, directories: Sequence[Place], holding: Iterator[_Holder], name: str
) -> _Found | None:
    """Which of the places that hold a name answer for it; directories: where they were asked."""
    if name.startswith(markers.AUFS_PREFIX):
        return None
    answering: list[Place] = []
    status: os.stat_result | None = None
    lower_file: FileId | None = None
    upper_marks = markers.Marks()
    data: Place | None = None
    while held := next(holding, None):
        place, kind, here = held
        if kind != stat.S_IFDIR:
            if not answering:
                status = here or place.status()
                answering = [place]
                if kind == stat.S_IFREG and _lacks_data(stack, place, status):
                    below, data = _with_data(stack, place, directories, name)
                    answering += [below] if place.layer.writable else []
            break
        answering.append(place)
        if status is None:
            status = here = here or place.status()
        if not place.layer.writable:
            lower_file = lower_file or file_id(here or place.status())
            if place.layer is stack.layers[-1]:
                break
        marks = place.marks(stack.prefix)
        if place.layer.writable:
            upper_marks = marks
        if marks.opaque:
            break
        if marks.redirect is not None:
            directories, target = _redirected(stack, place, directories, marks.redirect)
            holding = _ask(stack, directories, target)
    return _Found(tuple(answering), status, lower_file, upper_marks, data) if status else None


def _lacks_data(stack: LayerStack, place: Place, status: os.stat_result) -> bool:
    return place.lacks_data(stack.prefix, status, sure=stack.metacopy)


def _with_data(
    stack: LayerStack, place: Place, directories: Sequence[Place], name: str
) -> tuple[Place, Place]:
    """The file below a copy of metadata alone, and the one further below that has the data.

    directories: where place was found, by that name.
    """
    lowest = None if place.layer.writable else place
    below: Place | None = None
    while True:
        redirect = markers.redirect_of(stack.prefix, place.layer.fd, place.path)
        to_data = redirect if stack.data and redirect and redirect.startswith("/") else None
        if to_data and place.layer is stack.lower[-1]:
            # Nothing of what the options could forbid to follow lies in between.
            return below or place, _of_data_alone(stack, to_data)
        if not stack.metacopy:
            message = "a copy of metadata alone; use the option metacopy=on"
            raise PermissionError(errno.EPERM, message, place.path)
        if redirect is not None:
            directories, name = _redirected(stack, place, directories, redirect)
        directories = [each for each in directories if each.layer.index > place.layer.index]
        place, kind, status = next(_ask(stack, directories, name), (place, 0, None))
        if kind != stat.S_IFREG or status is None:
            if to_data and lowest:
                return below or lowest, _of_data_alone(stack, to_data)
            message = "a copy of metadata alone, and no layer below has the data; remove it"
            raise OSError(errno.EIO, message, place.path)
        below = lowest = below or place
        if not _lacks_data(stack, place, status):
            return below, place


def _of_data_alone(stack: LayerStack, redirect: str) -> Place:
    """The place of a regular file in the first layer of data alone that has it.

    In the first of all where none has: it is missed when it is needed (ovl_lookup_data_layers).
    """
    found = [Place(layer, redirect.lstrip("/")) for layer in stack.data]
    return next(filter(_is_regular, found), found[0])


def _is_regular(place: Place) -> bool:
    with contextlib.suppress(OSError):
        fd = system.open_beneath(place.layer.fd, place.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
    return False


def _hidden_by_aufs(directory: Place, name: str) -> bool:
    return markers.hidden_by_aufs(directory.layer.fd, directory.path, name)


def _redirected(
    stack: LayerStack, place: Place, directories: Sequence[Place], target: str
) -> tuple[Sequence[Place], str]:
    """Where the search goes on below place: in which directories, and for which name.

    That is a sibling's, or a path from the root. directories: where place was found.
    """
    if not stack.follows_redirects:
        message = "a redirect, which the options forbid to follow; mount with redirect_dir=follow"
        raise PermissionError(errno.EPERM, message, place.path)
    if not target.startswith("/"):
        return [each for each in directories if each.layer.index > place.layer.index], target
    below: Sequence[Place] = [
        Place(layer, "") for layer in stack.lower if layer.index > place.layer.index
    ]
    *parents, name = target.strip("/").split("/")
    for part in parents:
        found = _search(stack, below, _ask(stack, below, part), part)
        if not found or not stat.S_ISDIR(found.status.st_mode):
            return [], name
        below = found.places
    return below, name


def exists_below(stack: LayerStack, parent: Node, name: str) -> bool:
    """Whether the lower layers of a directory hold name, were upper not to.

    Then only a whiteout hides it (ovl_lower_positive, fs/overlayfs/dir.c).
    """
    held = stack.memory.for_lookup(parent.lower)
    if held is not None:
        return name in held
    return next(_ask(stack, parent.lower, name), None) is not None


def walk(
    stack: LayerStack,
    start: Node,
    path: str,
    *,
    follow: bool = True,
    child: Callable[[Node, str], Node | None] | None = None,
) -> tuple[Node, str, Node | None]:
    """The directory that holds the last component of path, that component, and what it names.

    path: from start, or from the root where it begins with "/"; ".." stays within the union, and
        so do symlinks. follow: whether a symlink at the end is followed, as it is before a "/".
    child: what finds a name in a directory, in the place of `lookup`.

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
        if 4 * len(part) > NAME_MAX and len(os.fsencode(part)) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG, path)
        node = child(directory, part) if child else lookup(stack, directory, part)
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
