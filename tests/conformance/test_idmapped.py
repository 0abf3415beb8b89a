"""Lower layers on idmapped mounts: owners, copies of them and what is made beside are the kernel's.

Files whose owner has no number there can be read, and neither changed nor removed.

A bind mount of each lower layer shows owners from 0 on as others from 100,000 on, as runtimes lend
one image to containers with user namespaces of their own. Rules: mount_setattr(2), "ID-mapped
mounts"; linux/mount.h.
"""

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.doors import DOORS, RENAME_EXCHANGE, Door, Layers
from tests.conformance.doors import Folder as Place
from tests.privilege import NO_IDMAPPING, machine_only
from tests.tree import (
    Snapshot,
    acl,
    build,
    differences,
    directory,
    error_name,
    file,
    hard_link,
    snapshot,
    symlink,
)
from unionfs import LayerStack, MountOptions, UnionFS, mount_api

_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_CLONE, _EMPTY_PATH, _IDMAP = 1, 0x1000, 0x100000
_AT_FDCWD = -100
_ACCESS = "system.posix_acl_access"
_UNMAPPED = 70000  # beyond the 65,536 owners that the mount maps

LOWER = {
    "file": file(b"root's"),
    "theirs": file(b"theirs", mode=0o640, uid=1000, gid=1001),
    "linked": file(b"linked", uid=7),
    "link": hard_link("linked"),
    "program": file(b"#!", mode=0o6755, uid=1000, gid=1000),
    "shared": file(
        xattrs={
            _ACCESS: acl(
                ("user_obj", 0, 6),
                ("user", 1000, 4),
                ("group_obj", 0, 4),
                ("mask", 0, 6),
                ("other", 0, 4),
            )
        }
    ),
    "symlink": symlink("file", uid=1000, gid=1000),
    "directory/inner": file(b"inner", uid=3),
    "group": directory(mode=0o2775, uid=1000, gid=1001),
    "moved/inner": file(b"inner", uid=4),
    "unmapped": file(b"nobody's", mode=0o666, uid=_UNMAPPED, gid=_UNMAPPED),
    "other": file(b"nobody's", uid=_UNMAPPED, gid=_UNMAPPED),
    "unmapped group": file(b"nobody's", uid=3, gid=_UNMAPPED),
    "unmapped link": symlink("file", uid=_UNMAPPED, gid=_UNMAPPED),
    "unmapped directory": directory(mode=0o777, uid=_UNMAPPED, gid=_UNMAPPED),
    "unmapped directory/inner": file(b"inner", uid=3, gid=3),
    "unmapped empty": directory(uid=_UNMAPPED, gid=_UNMAPPED),
    "overflow user's": file(b"", uid=65534, gid=65534),
}

STORY: list[tuple[str, Callable[[Door], object]]] = [
    ("chmod", lambda union: union.chmod("file", 0o600)),
    ("truncate", lambda union: union.truncate("theirs", 3)),
    ("link", lambda union: union.link("linked", "another")),
    ("change a program", lambda union: union.truncate("program", 1)),
    ("change what has an ACL", lambda union: union.setxattr("shared", "user.x", b"x")),
    ("chown a symlink", lambda union: union.chown("symlink", 5, -1, follow_symlinks=False)),
    ("create beside", lambda union: union.mkdir("directory/new")),
    ("create with the group", lambda union: union.mkdir("group/new")),
    ("rename a directory", lambda union: union.rename("moved", "directory/moved")),
    ("chmod, of nobody", lambda union: union.chmod("unmapped", 0o600)),
    ("chmod, of no group", lambda union: union.chmod("unmapped group", 0o600)),
    ("chown", lambda union: union.chown("unmapped", 5, -1)),
    ("chown wholly", lambda union: union.chown("unmapped", 5, 5)),
    ("chown a directory wholly", lambda union: union.chown("unmapped empty", 5, 5)),
    ("chown a link", lambda union: union.chown("unmapped link", 5, 5, follow_symlinks=False)),
    ("set times", lambda union: union.utime("unmapped", ns=(1, 1))),
    ("set times to now", lambda union: union.utime("unmapped")),
    ("truncate, of nobody", lambda union: union.truncate("unmapped", 1)),
    ("open to read", lambda union: os.close(union.os_open("unmapped", os.O_RDONLY))),
    ("open to write", lambda union: os.close(union.os_open("unmapped", os.O_WRONLY))),
    ("may it be written", lambda union: _if(union.access("unmapped", os.W_OK))),
    ("link, of nobody", lambda union: union.link("unmapped", "second")),
    ("link a link", lambda union: union.link("unmapped link", "second")),
    ("set an attribute", lambda union: union.setxattr("unmapped", "user.x", b"x")),
    ("remove an attribute", lambda union: union.removexattr("unmapped", "user.x")),
    ("create in a directory", lambda union: union.mkdir("unmapped directory/new")),
    ("remove from a directory", lambda union: union.unlink("unmapped directory/inner")),
    ("chmod in a directory", lambda union: union.chmod("unmapped directory/inner", 0o600)),
    ("rename out", lambda union: union.rename("unmapped directory/inner", "inner")),
    ("rename into", lambda union: union.rename("file", "unmapped directory/file")),
    ("rename, of nobody", lambda union: union.rename("unmapped", "renamed")),
    ("rename a link", lambda union: union.rename("unmapped link", "renamed")),
    ("rename a directory of nobody", lambda union: union.rename("unmapped empty", "renamed")),
    ("rename over", lambda union: union.rename("file", "other")),
    ("exchange", lambda union: union.rename("file", "other", RENAME_EXCHANGE)),
    ("unlink", lambda union: union.unlink("unmapped")),
    ("unlink, of no group", lambda union: union.unlink("unmapped group")),
    ("unlink a link", lambda union: union.unlink("unmapped link")),
    ("rmdir", lambda union: union.rmdir("unmapped empty")),
    ("rmdir a full one", lambda union: union.rmdir("unmapped directory")),
    ("chmod, of the overflow user", lambda union: union.chmod("overflow user's", 0o600)),
]


def _if(answer: bool) -> None:
    """Tell an answer as the failures of other steps are told."""
    if not answer:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def _namespace() -> int:
    """A descriptor of a user namespace that shows 0 as 100,000 and so on."""
    command = ["unshare", "--user", "sh", "-c", "echo; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for ids in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{ids}").write_text("0 100000 65536")
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
        holder.communicate(b"\n")
    return namespace


@contextmanager
def _idmapped(place: str) -> Iterator[None]:
    """Mount place over itself, with other owners."""
    namespace = _namespace()
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(place), _CLONE | os.O_CLOEXEC)
    target = os.open(place, os.O_PATH)
    try:
        attributes = struct.pack("QQQQ", _IDMAP, 0, 0, namespace)
        _call(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH, attributes, len(attributes))
        mount_api.move_mount(tree, target)
    finally:
        for descriptor in (namespace, tree, target):
            os.close(descriptor)
    try:
        yield
    finally:
        mount_api.umount(place, lazy=True)


def _tell(door: str, folder: Path) -> dict[str, object]:
    """What the story says through a door, what the union shows before and after, and its upper."""
    layers = Layers(folder / door)
    layers.make()
    build(layers.lower[0], LOWER)
    told: dict[str, object] = {}

    def keep(when: str, seen: Snapshot) -> None:
        told.update({f"{when} {path}": node for path, node in seen.items()})

    with ExitStack() as held:
        for lower in layers.lower:
            held.enter_context(_idmapped(lower))
        union = held.enter_context(DOORS[door](layers))
        keep("before", snapshot(union))
        for name, step in STORY:
            try:
                step(union)
                told[name] = "done"
            except OSError as error:
                told[name] = error_name(error)
        keep("after", snapshot(union))
    told |= {
        f"upper {path}": (status.st_uid, status.st_gid, status.st_mode)
        for path in snapshot(Place(layers.upper))
        for status in [os.lstat(f"{layers.upper}/{path}")]
    }
    return told


@machine_only(NO_IDMAPPING)
def test_an_index_of_other_owners_is_not_used(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    build(str(layer), LOWER)
    options = MountOptions(layer_index=f"{tmp_path}/indexes")

    def owner() -> int:
        with LayerStack([layer], options=options) as stack:
            return UnionFS(stack).lstat("theirs").st_uid

    assert owner() == 1000
    with _idmapped(str(layer)):
        assert owner() == 101000
    assert owner() == 1000


@machine_only(NO_IDMAPPING)
@pytest.mark.parametrize("door", [door for door in DOORS if door != "kernel"])
def test_owners_are_those_that_the_mount_shows(door: str, tmp_path: Path) -> None:
    kernel = _tell("kernel", tmp_path)
    assert "100000" in str(kernel["before file"])
    assert kernel["unlink"] == "EOVERFLOW"
    assert not differences(kernel, _tell(door, tmp_path))
