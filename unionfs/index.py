"""The index: lower files with several names stay one file when they are copied up (`index=on`).

Such a file is copied up into the work directory's `index/`, under the hexadecimal digits of its
lower file's handle; a name that is written becomes a hard link of that. A name that upper does not
hold finds the copy by the lower file's handle. How many names the union shows is told by a mark on
the copy, as the difference from the links that it has: those count the index too, and not the
names that are still below.

Rules: Documentation/filesystems/overlayfs.rst, "Index"; fs/overlayfs/namei.c (ovl_lookup_index,
ovl_verify_index), util.c (ovl_nlink_start), super.c (ovl_get_indexdir). Cost: for each lower file
with several links a name_to_handle_at(2) and an lstat(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from unionfs import markers, system
from unionfs.workdir import remove_directory

if TYPE_CHECKING:
    from unionfs.stack import LayerStack

DIRECTORY: Final = "index"
"""Its name in the work directory."""

LINKS_MARK: Final = re.compile(rb"([LU])([+-]\d+)")
"""How many links there are more than the file has, of L lower or U upper."""
_REMEDY: Final = "remove the index directory, or mount with index=off"


def verify(stack: LayerStack) -> None:
    """Check that upper belongs to the topmost lower layer, and the index to upper.

    Raises OSError: ESTALE where either was made for another one.
    """
    for path, root_fd, mark, of_fd in _identities(stack):
        value = system.get_xattr(root_fd, "", stack.prefix + mark)
        if value and value != stack.numbers.handle_mark(of_fd, "", upper=mark == markers.UPPER):
            of = "upper layer" if mark == markers.UPPER else "topmost lower layer"
            message = f"was used with another {of}; {_REMEDY}"
            raise OSError(errno.ESTALE, message, path)


def prepare(stack: LayerStack) -> None:
    """Tie upper and index together by marks, and clear entries of no use.

    Raises OSError: what `verify` raises; EINVAL, ENODATA for what no union has put there.
    """
    verify(stack)
    for _, root_fd, mark, of_fd in _identities(stack):
        value = stack.numbers.handle_mark(of_fd, "", upper=mark == markers.UPPER)
        if not system.get_xattr(root_fd, "", stack.prefix + mark):
            system.set_xattr(root_fd, "", stack.prefix + mark, value)
    for name, _, _ in system.list_dir(_fd(stack), ""):
        if not is_sound(stack, name):
            discard(stack, name)


def _identities(stack: LayerStack) -> list[tuple[str, int, str, int]]:
    """Path and descriptor of a directory, the mark that it has, and what that is the handle of."""
    upper, index = stack.upper, stack.index
    assert upper is not None
    found = [(upper.path, upper.fd, markers.ORIGIN, stack.lower[0].fd)]
    if index is not None:
        found.append((index.path, index.fd, markers.UPPER, upper.fd))
    return found


def _fd(stack: LayerStack) -> int:
    assert stack.index is not None
    return stack.index.fd


def discard(stack: LayerStack, name: str) -> None:
    """Remove an entry."""
    try:
        os.unlink(name, dir_fd=_fd(stack))
    except IsADirectoryError:
        remove_directory(name, _fd(stack))


def is_sound(stack: LayerStack, name: str) -> bool:
    """Whether an entry may stay: the copy of a lower file of that handle, with names to show.

    A directory's entry, which the kernel makes for NFS, and a whiteout are not looked into.

    Raises OSError EINVAL, ENODATA for what no union of this machine has put there.
    """
    if name.startswith("#"):  # something that was never finished
        return False
    path = os.path.join(DIRECTORY, name)
    try:
        handle = bytes.fromhex(name)
    except ValueError:
        raise OSError(errno.EINVAL, f"is no name of an index entry; {_REMEDY}", path) from None
    stack.numbers.check_handle_mark(handle, path)
    status = os.stat(name, dir_fd=_fd(stack), follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode) or _is_whiteout(status):
        return True
    origin = system.read_xattr(_fd(stack), name, stack.prefix + markers.ORIGIN)
    if origin != handle:
        return False
    if status.st_nlink > 1:
        return True
    lower = stack.numbers.origin(handle)
    return lower is not None and _told(stack, name, status, lower) > 0


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def name_of(stack: LayerStack, layer_fd: int, path: str, status: os.stat_result) -> str | None:
    """The name that the copy of a lower file has or would have in the index; None: it has none.

    status: of the lower file.
    """
    if not stack.indexes or status.st_nlink == 1:
        return None
    return stack.numbers.handle_mark(layer_fd, path).hex() or None


def find(stack: LayerStack, name: str, kind: int) -> os.stat_result | None:
    """The status of an entry, if there is one. kind: its file's type, of S_IFMT.

    Raises OSError EIO for an entry that cannot be a copy of that file.
    """
    if stack.index is None:
        return None
    try:
        status = os.stat(name, dir_fd=stack.index.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_IFMT(status.st_mode) != kind or _is_whiteout(status):
        message = f"the index has something else for this file; {_REMEDY}"
        raise OSError(errno.EIO, message, f"{stack.index.path}/{name}")
    return status


def links(stack: LayerStack, name: str, status: os.stat_result) -> int:
    """How many names the union shows for the file of an entry. status: of that file."""
    return _told(stack, name, status, None) or status.st_nlink


def _told(
    stack: LayerStack, name: str, status: os.stat_result, lower: os.stat_result | None
) -> int:
    """The same by its mark alone; 0 where that does not tell (ovl_get_nlink)."""
    try:
        value = system.get_xattr(_fd(stack), name, stack.prefix + markers.NLINK)
    except FileNotFoundError:
        return 0
    match = LINKS_MARK.fullmatch(value or b"")
    if not match:
        return 0
    if match[1] == b"L":
        lower = lower or stack.numbers.origin(bytes.fromhex(name))
    base = status if match[1] == b"U" else lower
    return max(0, base.st_nlink + int(match[2])) if base else 0


def links_mark(total: int, counted: int, base: str = "U") -> bytes:
    """The mark that says how many names there are in total where a file has so many links.

    base: U where those of the copy are counted, L for those of the lower file.
    """
    return f"{base}{total - counted:+d}".encode()


def keep_links(stack: LayerStack, name: str, base: str = "U") -> int:
    """Before links are made or removed: say how many names the union shows, and return it."""
    status = os.stat(name, dir_fd=_fd(stack), follow_symlinks=False)
    total = links(stack, name, status)
    lower = stack.numbers.origin(bytes.fromhex(name)) if base == "L" else None
    counted = lower or status
    _set_links(stack, name, links_mark(total, counted.st_nlink, "L" if lower else "U"))
    return total


def set_links(stack: LayerStack, name: str, total: int) -> None:
    """After links were made: say how many names the union shows."""
    status = os.stat(name, dir_fd=_fd(stack), follow_symlinks=False)
    _set_links(stack, name, links_mark(total, status.st_nlink))


def _set_links(stack: LayerStack, name: str, value: bytes) -> None:
    system.set_xattr(_fd(stack), name, stack.prefix + markers.NLINK, value)


def drop(stack: LayerStack, name: str) -> None:
    """After the last name was removed: remove the entry, unless upper has names for it yet."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=_fd(stack), follow_symlinks=False)
        if status.st_nlink > 1:
            _set_links(stack, name, links_mark(status.st_nlink - 1, status.st_nlink))
        else:
            os.unlink(name, dir_fd=_fd(stack))
