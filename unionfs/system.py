"""The system calls that Python lacks: paths that cannot escape, whole-directory reads, copies.

Two implementations keep one contract, which the docstrings of `unionfs._pure` state. That
module is complete; `unionfs._native`, where it was built, replaces the calls that every lookup
makes, or every file that is unpacked. UNIONMOUNT_PURE=1 in the environment keeps the extension out.
"""

from __future__ import annotations

import os

from unionfs._pure import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    NewFile,
    capabilities,
    capable,
    clone,
    clone_mount,
    complete_files,
    copy_data,
    exists,
    file_handle,
    filesystem_uuid,
    get_flags,
    get_xattr,
    guards,
    inode_and_change,
    keep_capabilities,
    list_dir,
    list_xattr,
    open_beneath,
    precise,
    read_xattr,
    remove_xattr,
    rename,
    renumbered,
    set_flags,
    set_fs_ids,
    set_xattr,
    stat_handle,
    sync_filesystem,
    write_error,
    write_out,
    write_sparsely,
)

__all__ = [
    "NATIVE",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "NewFile",
    "capabilities",
    "capable",
    "clone",
    "clone_mount",
    "complete_files",
    "copy_data",
    "exists",
    "file_handle",
    "filesystem_uuid",
    "get_flags",
    "get_xattr",
    "guards",
    "inode_and_change",
    "keep_capabilities",
    "list_dir",
    "list_xattr",
    "open_beneath",
    "precise",
    "read_xattr",
    "remove_xattr",
    "rename",
    "renumbered",
    "set_flags",
    "set_fs_ids",
    "set_xattr",
    "stat_handle",
    "sync_filesystem",
    "write_error",
    "write_out",
    "write_sparsely",
]

NATIVE: bool = False
if os.environ.get("UNIONMOUNT_PURE") != "1":
    try:
        from unionfs._native import (
            complete_files,
            exists,
            get_xattr,
            inode_and_change,
            list_dir,
            list_xattr,
            open_beneath,
            renumbered,
            write_sparsely,
        )
    except ImportError:
        pass
    else:
        NATIVE = True
