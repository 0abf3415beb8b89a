"""The system calls of `unionfs.system` without the C extension: by `os`, or else by ctypes.

The docstrings are the contract of `unionfs._native` too:

- Names are `str` as `os.fsdecode` gives them, so any byte but NUL and "/" survives. A NUL is a
  ValueError, as in `os`: the kernel would take the name for a shorter one.
- A path is relative to `dir_fd`, which is open, if only with O_PATH; "" is the descriptor itself.
- A failure is an OSError with errno, message and the path as it was given.
- Only `open_beneath`, and `list_dir` through it, guard against symlinks among a path's parents.
  The others follow them, so callers pass one name, or a path whose parents they know.

A ctypes call costs 1 to 3 µs on top of the system call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from unionfs.mount_api import OPEN_TREE, OPEN_TREE_CLONE

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

# linux/openat2.h; system calls from number 424 on have the same number on every architecture
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_OPENAT2_ATTEMPTS: Final = 16

_CREATES: Final = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)

_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # linux/proc_ns.h, PROC_USER_INIT_INO
_PR_SET_SECUREBITS: Final = 28
_NO_SETUID_FIXUP: Final = 1 << 2
_FICLONE: Final = 0x40049409  # linux/fs.h
_FS_IOC_GETFSUUID: Final = 0x80111500
_BTRFS_IOC_FS_INFO: Final = 0x8400941F
# _IOR('f', 1, long), _IOW('f', 2, long); what is read and written is an int all the same
_LONG: Final = struct.calcsize("l")
_FS_IOC_GETFLAGS: Final = 0x80006601 | _LONG << 16
_FS_IOC_SETFLAGS: Final = 0x40006602 | _LONG << 16
_FLAGS: Final = struct.Struct("=I")
_STATX_SIZE: Final = 256
_STATX_ATTRIBUTES: Final = struct.Struct("=8xQ")
_STATX_GUARDS: Final = 0x10 | 0x20  # STATX_ATTR_IMMUTABLE, STATX_ATTR_APPEND
_CANNOT_CLONE: Final = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_CANNOT_COPY_RANGE: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_COPY_CHUNK: Final = 1 << 20
_WRITTEN_CHUNK: Final = 16 << 20  # is written to disk while the next one is copied
_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WAIT: Final = 1 | 4  # before and after

_AT_FDCWD: Final = -100
_AT_EACCESS: Final = 0x200
_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_SYS_FACCESSAT2: Final = 439
_SYS_MOUNT_SETATTR: Final = 442
_MOUNT_ATTR: Final = struct.Struct("=QQQQ")  # set, clear, propagation, user namespace
_READ_ONLY: Final = 0x1
_NO_ATIME: Final = 0x10
_ATIME: Final = 0x70
_MAX_HANDLE_SIZE: Final = 128  # MAX_HANDLE_SZ, linux/exportfs.h

_BELOW_PROC: Final = 4095 - len("/proc/self/fd/2147483647/")
"""Bytes of the longest path that fits below a link in /proc (PATH_MAX)."""

_PRECISE: Final = (
    "st_atime",
    "st_mtime",
    "st_ctime",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
    "st_blksize",
    "st_blocks",
    "st_rdev",
)

_DT_UNKNOWN: Final = 0
_DIRENT: Final = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type; the name follows
_DIRENT_BUFFER: Final = 32 << 10

_PAGE: Final = 4096
_ZEROS: Final = bytes(_PAGE)
_SECOND: Final = 10**9  # nanoseconds

NewFile = tuple[int, str, bytes | memoryview, int, int, int, int, int]
"""Its descriptor, what errors call it, its content, its time in seconds and nanoseconds, and its
owner, group and mode: -1 where it has these already, and -1 for both or neither of the IDs."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


class _FileHandle(ctypes.Structure):
    _fields_ = [
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SIZE),
    ]


def _call(function: str, *arguments: object) -> int:
    """The result of a C library function; -1 means failure, and OSError is raised without a path.

    ENOSYS where the library lacks it, as musl lacks some.
    """
    try:
        call = getattr(_libc, function)
    except AttributeError:
        raise _error(errno.ENOSYS) from None
    result: int = call(*arguments)
    if result == -1:
        raise _error(ctypes.get_errno())
    return result


def _error(number: int, *paths: str | None) -> OSError:
    return OSError(number, os.strerror(number), *paths)


def _encoded(path: str) -> ctypes.c_char_p:
    encoded = os.fsencode(path)
    if 0 in encoded:
        raise ValueError("embedded null byte")
    return ctypes.c_char_p(encoded)


def open_beneath(dir_fd: int, path: str, /, flags: int, mode: int = 0) -> int:
    """Open `path` without ever leaving `dir_fd`; always O_CLOEXEC.

    ELOOP where any component is a symlink; the last one may be, with O_PATH | O_NOFOLLOW.
    EXDEV where the path is absolute or climbs above `dir_fd`.
    `mode` counts, less the umask, only when a file is created.
    """
    flags |= os.O_CLOEXEC
    how = _OpenHow(
        flags,
        mode if flags & _CREATES else 0,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    arguments = (
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_long(dir_fd),
        _encoded(path or "."),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    attempts = 0
    while True:
        try:
            return _call("syscall", *arguments)
        except InterruptedError:
            continue  # the interpreter has run the signal's handler, which may raise
        except OSError as error:
            # EPERM is also how old seccomp filters refuse a system call they do not know;
            # a true EPERM shows again in the walk.
            if error.errno in (errno.ENOSYS, errno.EPERM):
                return walk_beneath(dir_fd, path, flags, mode)
            # A rename elsewhere made it uncertain whether a ".." stayed beneath.
            attempts += 1
            if error.errno != errno.EAGAIN or attempts == _OPENAT2_ATTEMPTS:
                raise _error(error.errno or 0, path) from None


def walk_beneath(dir_fd: int, path: str, flags: int, mode: int) -> int:
    """`open_beneath` before Linux 5.6: a descriptor a component, and EXDEV for every ".."."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.startswith("/") or ".." in names:
        raise _error(errno.EXDEV, path)
    last = names.pop() if names else "."
    try:
        with contextlib.ExitStack() as opened:
            for name in names:
                dir_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
                opened.callback(os.close, dir_fd)
                if stat.S_ISLNK(os.fstat(dir_fd).st_mode):
                    raise _error(errno.ELOOP)
            # O_NOFOLLOW alone would open a symlink with O_PATH, and say ENOTDIR with O_DIRECTORY.
            directory = path.endswith(("/", "/."))
            itself = flags & (os.O_NOFOLLOW | os.O_EXCL) and not directory
            if not itself and _is_symlink(dir_fd, last):
                raise _error(errno.ELOOP)
            if directory:
                flags |= os.O_DIRECTORY
            return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
    except OSError as error:
        raise _error(error.errno or 0, path) from None


def _is_symlink(dir_fd: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _set_attributes(mount_fd: int, add: int, remove: int) -> None:
    """mount_setattr(2) of one mount."""
    arguments = ctypes.create_string_buffer(_MOUNT_ATTR.pack(add, remove, 0, 0))
    size = ctypes.c_size_t(_MOUNT_ATTR.size)
    _call("syscall", _SYS_MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH, arguments, size)


def clone_mount(directory: str) -> int | None:
    """A directory opened with O_PATH through a private mount of it, read-only and without atime.

    Whatever is opened beneath it cannot be changed, and what is mounted below is left out. In a
    user namespace with atime, which is not for its root to change (mount_namespaces(7)). None
    without CAP_SYS_ADMIN, or before Linux 5.12.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    try:
        fd = _call("syscall", OPEN_TREE, _AT_FDCWD, _encoded(directory), ctypes.c_uint(flags))
        try:
            try:
                _set_attributes(fd, _READ_ONLY | _NO_ATIME, _ATIME)
            except PermissionError:
                _set_attributes(fd, _READ_ONLY, 0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
            return None
        raise _error(error.errno or 0, directory) from None
    return fd


def rename(src_dir_fd: int, src: str, dst_dir_fd: int, dst: str, flags: int = 0) -> None:
    """renameat2(2): `flags` is 0 or of RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT."""
    try:
        _call(
            "renameat2",
            src_dir_fd,
            _encoded(src),
            dst_dir_fd,
            _encoded(dst),
            ctypes.c_uint(flags),
        )
    except OSError as error:
        number = error.errno or 0
        raise OSError(number, os.strerror(number), src, None, dst) from None


@contextlib.contextmanager
def _magic(dir_fd: int, path: str) -> Iterator[tuple[str, bool]]:
    """A path below /proc for the *xattr calls, which take no O_PATH descriptor; and: follow it?

    The link of the descriptor itself is followed, a symlink that it leads to is not. Errors of the
    block tell of the path as given.
    """
    try:
        if not path:
            yield f"/proc/self/fd/{dir_fd}", True
        elif len(os.fsencode(path)) <= _BELOW_PROC:
            yield f"/proc/self/fd/{dir_fd}/{path}", False
        else:
            directory, _, name = path.rpartition("/")
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                yield f"/proc/self/fd/{fd}/{name}", False
            finally:
                os.close(fd)
    except OSError as error:
        raise _error(error.errno or 0, path) from None


def get_xattr(dir_fd: int, path: str, name: str, /) -> bytes | None:
    """The value, of a symlink itself too; None where it has none or the filesystem cannot."""
    try:
        return read_xattr(dir_fd, path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def read_xattr(dir_fd: int, path: str, name: str) -> bytes:
    """The value; ENODATA where it has none, EOPNOTSUPP where the filesystem cannot."""
    with _magic(dir_fd, path) as (target, follow):
        return os.getxattr(target, name, follow_symlinks=follow)


def set_xattr(dir_fd: int, path: str, name: str, value: bytes, flags: int = 0) -> None:
    """`flags` is 0, os.XATTR_CREATE or os.XATTR_REPLACE."""
    with _magic(dir_fd, path) as (target, follow):
        os.setxattr(target, name, value, flags, follow_symlinks=follow)


def remove_xattr(dir_fd: int, path: str, name: str) -> None:
    """ENODATA where there is none."""
    with _magic(dir_fd, path) as (target, follow):
        os.removexattr(target, name, follow_symlinks=follow)


def list_xattr(dir_fd: int, path: str, /) -> list[str]:
    """The names; none where the filesystem cannot."""
    try:
        with _magic(dir_fd, path) as (target, follow):
            return os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def exists(dir_fd: int, path: str, /) -> bool:
    """Whether a path leads to anything, as far as this process can tell."""
    try:
        _lstat(dir_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES):
            return False
        raise
    return True


def _lstat(dir_fd: int, path: str) -> os.stat_result:
    try:
        if not path:
            return os.fstat(dir_fd)
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        raise _error(error.errno or 0, path) from None


def guards(dir_fd: int, path: str) -> int:
    """Of a file's flags immutable (0x10) and append-only (0x20), as `get_flags` has them too."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _call("statx", dir_fd, _encoded(path), _AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW, 0, buffer)
    attributes: int = _STATX_ATTRIBUTES.unpack_from(buffer)[0]
    return attributes & _STATX_GUARDS


def write_error(dir_fd: int, path: str) -> int:
    """The errno with which the kernel refuses us to write to it, 0 where it does not."""
    flags = _AT_EACCESS | _AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW
    try:
        return _call("syscall", _SYS_FACCESSAT2, dir_fd, _encoded(path), os.W_OK, flags)
    except OSError as error:
        return error.errno or 0


def get_flags(fd: int) -> int:
    """The flags of a file or directory, FS_…_FL; ENOTTY or EOPNOTSUPP where it can have none."""
    flags: int = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))[0]
    return flags


def set_flags(fd: int, flags: int) -> None:
    """Set all of them; EPERM, EOPNOTSUPP."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags))


def inode_and_change(dir_fd: int, path: str, /) -> tuple[int, int] | None:
    """st_ino and st_ctime in nanoseconds; None where the path leads to nothing."""
    try:
        status = _lstat(dir_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_ctime_ns


def renumbered(status: os.stat_result, inode: int, device: int, links: int, /) -> os.stat_result:
    """A status with another st_ino, st_dev and st_nlink."""
    fields = [status[0], inode, device, links, *status[4:10]]
    return os.stat_result(fields, precise(status))


def precise(status: os.stat_result) -> dict[str, int | float]:
    """What a status has beside the ten fields of a tuple, to make another one with."""
    return {name: getattr(status, name) for name in _PRECISE}


def clone(src_fd: int, dst_fd: int) -> bool:
    """Make `dst_fd` share all data of `src_fd` (FICLONE); False where the filesystem cannot."""
    try:
        fcntl.ioctl(dst_fd, _FICLONE, src_fd)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def copy_data(src_fd: int, dst_fd: int, size: int, *, synced: bool = False) -> None:
    """Copy the first `size` bytes into the empty file `dst_fd`, which then is `size` long.

    Holes stay holes. A source that is or becomes shorter reads as zeros from its end on.
    Both file offsets are undefined afterwards. synced: the caller will sync the copy, so that its
    writing begins meanwhile.
    """
    offset = 0
    while offset < size:
        try:
            start = os.lseek(src_fd, offset, os.SEEK_DATA)
            end = min(os.lseek(src_fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # nothing but a hole up to the end
            if error.errno != errno.EINVAL:
                raise
            start, end = offset, size
        if not _copy_range(src_fd, dst_fd, start, end, synced):
            break
        offset = end
    os.ftruncate(dst_fd, size)


def _copy_range(src_fd: int, dst_fd: int, offset: int, end: int, synced: bool) -> bool:
    """Copy the bytes from `offset` to `end`; False where the source ends before."""
    while offset < end:
        try:
            wanted = min(end - offset, _WRITTEN_CHUNK) if synced else end - offset
            copied = os.copy_file_range(src_fd, dst_fd, wanted, offset, offset)
        except OSError as error:
            if error.errno not in _CANNOT_COPY_RANGE:
                raise
            copied = 0
        # 0 is also the answer of some special filesystems for files that have data
        if not copied:
            data = os.pread(src_fd, min(end - offset, _COPY_CHUNK), offset)
            if not data:
                return False
            copied = os.pwrite(dst_fd, data, offset)
        if synced and copied == _WRITTEN_CHUNK:
            _begin_writing(dst_fd, offset, copied)
        offset += copied
    return True


def _begin_writing(fd: int, offset: int, size: int) -> None:
    """Let the kernel write a range to disk; an error is for fsync(2) to tell."""
    with contextlib.suppress(OSError):
        place = ctypes.c_int64(offset), ctypes.c_int64(size)
        _call("sync_file_range", fd, *place, _SYNC_FILE_RANGE_WRITE)


def list_dir(dir_fd: int, path: str, /) -> list[tuple[str, int, int]]:
    """Name, type (DT_* of dirent.h, never DT_UNKNOWN) and inode number of each entry but . and ..

    In the filesystem's order. Opens as `open_beneath` does.
    """
    entries: list[tuple[str, int, int]] = []
    buffer = ctypes.create_string_buffer(_DIRENT_BUFFER)
    fd = open_beneath(dir_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while length := _call("getdents64", fd, buffer, ctypes.c_size_t(_DIRENT_BUFFER)):
            records = buffer.raw[:length]
            offset = 0
            while offset < length:
                inode, _, size, kind = _DIRENT.unpack_from(records, offset)
                start = offset + _DIRENT.size
                offset += size
                name = os.fsdecode(records[start : records.index(0, start)])
                if name in (".", ".."):
                    continue
                if kind == _DT_UNKNOWN:
                    try:
                        kind = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode >> 12
                    except FileNotFoundError:
                        continue  # removed since it was listed
                entries.append((name, kind, inode))
    except OSError as error:
        raise _error(error.errno or 0, path) from None
    finally:
        os.close(fd)
    return entries


def file_handle(dir_fd: int, path: str) -> tuple[int, bytes] | None:
    """Type and bytes of the name_to_handle_at(2) handle; None where the filesystem has none."""
    handle = _FileHandle(_MAX_HANDLE_SIZE)
    mount_id = ctypes.c_int()
    try:
        _call(
            "name_to_handle_at",
            dir_fd,
            _encoded(path),
            ctypes.byref(handle),
            ctypes.byref(mount_id),
            0 if path else _AT_EMPTY_PATH,
        )
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            return None
        raise _error(error.errno or 0, path) from None
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def stat_handle(root_fd: int, kind: int, handle: bytes) -> os.stat_result:
    """The status of what `file_handle` gave a handle of, on the filesystem of `root_fd`.

    ESTALE where it is gone, EPERM without CAP_DAC_READ_SEARCH.
    """
    record = _FileHandle(len(handle), kind)
    ctypes.memmove(record.f_handle, handle, len(handle))
    # open_by_handle_at(2) takes no O_PATH descriptor.
    mount_fd = os.open(f"/proc/self/fd/{root_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _call("open_by_handle_at", mount_fd, ctypes.byref(record), os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(mount_fd)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def filesystem_uuid(root_fd: int) -> bytes | None:
    """The 16 bytes that tell the filesystem of a directory; None before Linux 6.9, or without."""
    fd = os.open(f"/proc/self/fd/{root_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(17))
            return answer[1:17] if answer[0] == 16 else None
        with contextlib.suppress(OSError):  # btrfs answers this alone
            return fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, bytes(1024))[16:32]
        return None
    finally:
        os.close(fd)


def write_out(fd: int) -> None:
    """Have all data of a file written, without what tells where it lies: sync_file_range(2)."""
    everything = ctypes.c_int64(0), ctypes.c_int64(0)
    _call("sync_file_range", fd, *everything, _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT)


def sync_filesystem(fd: int) -> None:
    """Have all that was written to the filesystem of fd outlive a loss of power, as syncfs(2)."""
    _call("syncfs", fd)


def capable(capability: int, process: int | str = "self") -> bool:
    """Whether a process has a capability, by its number, in the first user namespace."""
    if os.stat(f"/proc/{process}/ns/user").st_ino != _INITIAL_USER_NAMESPACE:
        return False
    return bool(capabilities("CapEff", process) >> capability & 1)


def capabilities(name: str, process: int | str = "self") -> int:
    """One of a process' sets of capabilities, a bit each; name: as proc_pid_status(5) has it."""
    with open(f"/proc/{process}/status", encoding="ascii", errors="surrogateescape") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields[name], 16)


def keep_capabilities() -> bool:
    """Let `set_fs_ids` of this thread change IDs alone, not capabilities; False without privilege.

    Files are then made for others with our own rights, as the kernel does for overlayfs
    (capabilities(7), SECBIT_NO_SETUID_FIXUP).
    """
    try:
        _call("prctl", _PR_SET_SECUREBITS, ctypes.c_ulong(_NO_SETUID_FIXUP), 0, 0, 0)
    except PermissionError:
        return False
    return True


def set_fs_ids(uid: int, gid: int) -> None:
    """Let this thread alone use files as `uid` and `gid`; EPERM where that is not permitted.

    Supplementary groups stay. A `uid` other than 0 also takes the capabilities that override
    file permissions out of the thread's effective set, and 0 brings them back (capabilities(7)).
    """
    # These report no failure but the ID in force before; -1 is no ID, so it only asks.
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    if _libc.setfsgid(-1) != gid or _libc.setfsuid(-1) != uid:
        raise _error(errno.EPERM)


def write_sparsely(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write data into a file that has none there; whole pages of zeros become holes.

    Where the last write ended, or would have begun: a hole at a file's end needs ftruncate(2).
    """
    view = memoryview(data)
    starts = range(0, len(view) - _PAGE + 1, _PAGE)
    holes = [at for at in starts if view[at : at + _PAGE] == _ZEROS]
    end = start = 0
    for at in (*holes, len(view)):
        if start < at:
            _write(fd, view[start:at], offset + start)
            end = at
        start = at + _PAGE
    return offset + end


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def complete_files(files: Sequence[NewFile]) -> None:
    """Give new, empty files their content, by `write_sparsely`, and the rest; and close them.

    All are closed, whatever happens. Raises OSError with the name of the first file that failed;
    those behind it stay as they are.
    """
    failed: OSError | None = None
    for fd, name, data, seconds, nanoseconds, uid, gid, mode in files:
        try:
            try:
                if failed is None:
                    if write_sparsely(fd, data, 0) < len(data):
                        os.ftruncate(fd, len(data))
                    if uid != -1:
                        os.fchown(fd, uid, gid)
                    if mode != -1:
                        os.fchmod(fd, mode)
                    time = seconds * _SECOND + nanoseconds
                    os.utime(fd, ns=(time, time))
            finally:
                os.close(fd)
        except OSError as error:
            failed = failed or OSError(error.errno, error.strerror, name)
    if failed is not None:
        raise failed
