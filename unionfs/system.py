"""The system calls that Python lacks: paths that cannot escape, whole-directory reads, copies.

The docstrings of `unionfs._pure` state the contract.
"""

from __future__ import annotations

from unionfs._pure import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    clone,
    copy_data,
    file_handle,
    get_xattr,
    list_dir,
    list_xattr,
    open_beneath,
    remove_xattr,
    rename,
    set_fs_ids,
    set_xattr,
)

__all__ = [
    "NATIVE",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "clone",
    "copy_data",
    "file_handle",
    "get_xattr",
    "list_dir",
    "list_xattr",
    "open_beneath",
    "remove_xattr",
    "rename",
    "set_fs_ids",
    "set_xattr",
]

NATIVE: bool = False
