"""Kernel overlayfs takes every stack that it can: as root, and in a user namespace.

The last test runs all the others again in a user namespace of its own.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unionfs import markers, mount_api, overlayfs
from unionfs.mounting import list_mounts
from unionfs.options import MountOptions, parse
from unionfs.overlayfs import MountError, mount_overlay
from unionfs.stack import LayerStack, StackError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts, here or in unshare -r")

Mounter = Callable[[LayerStack, str], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with directories for a stack; whatever is mounted on its `target` is unmounted."""
    for name in ("top", "base", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    yield tmp_path
    while os.path.ismount(tmp_path / "target"):
        mount_api.umount(str(tmp_path / "target"), lazy=True)


def stack_of(folder: Path, *lower: Path, options: str = "") -> LayerStack:
    """A writable stack of the lower directories given, or of the folder's own."""
    layers = lower or (folder / "top", folder / "base")
    chosen = parse(options).options
    return LayerStack(layers, folder / "upper", folder / "work", options=chosen)


def by_page(stack: LayerStack, target: str) -> None:
    """As on a kernel without `lowerdir+`."""
    overlayfs._mount_by_page(stack, target)


@pytest.fixture(params=[mount_overlay, by_page], ids=["context", "page"])
def mount(request: pytest.FixtureRequest) -> Mounter:
    """Both ways to mount must do the same."""
    mounter: Mounter = request.param
    return mounter


def superblock(target: Path) -> list[str]:
    """The options that the kernel shows of the filesystem mounted on target."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        if line.split()[4] == str(target):
            return line.split()[-1].split(",")
    raise AssertionError(f"nothing is mounted on {target}")


def test_union_is_mounted_and_written_to_upper(folder: Path, mount: Mounter) -> None:
    (folder / "top/name").write_text("top")
    (folder / "base/name").write_text("base")
    (folder / "base/below").write_text("below")
    with stack_of(folder) as stack:
        mount(stack, str(folder / "target"))
    target = folder / "target"
    assert sorted(os.listdir(target)) == ["below", "name"]
    assert (target / "name").read_text() == "top"
    (target / "below").write_text("changed")
    assert (folder / "upper/below").read_text() == "changed"
    assert (folder / "base/below").read_text() == "below"


def test_marks_are_kept_in_the_attributes_that_are_permitted(folder: Path, mount: Mounter) -> None:
    (folder / "base/directory").mkdir()
    with stack_of(folder) as stack:
        mount(stack, str(folder / "target"))
    (folder / "target/directory").rmdir()
    (folder / "target/directory").mkdir()
    prefix = "trusted" if markers.trusted_permitted() else "user"
    assert os.getxattr(folder / "upper/directory", f"{prefix}.overlay.opaque") == b"y"


def test_without_upper_the_union_is_read_only(folder: Path, mount: Mounter) -> None:
    with LayerStack([folder / "top", folder / "base"]) as stack:
        mount(stack, str(folder / "target"))
    with pytest.raises(OSError, match="Read-only file system"):
        (folder / "target/new").touch()


@pytest.mark.parametrize(
    "name", ["a:b", "a,b", "a\\:b", 'a"b,c"', "a b", "a\nb", "\udcff", "lowerdir=a,ro"]
)
def test_paths_may_hold_any_byte(folder: Path, mount: Mounter, name: str) -> None:
    odd = folder / name
    odd.mkdir()
    for kind in ("lower", "upper", "work"):
        (odd / kind).mkdir()
    (odd / "lower/file").touch()
    with LayerStack([odd / "lower", folder / "base"], odd / "upper", odd / "work") as stack:
        mount(stack, str(folder / "target"))
    (folder / "target/new").touch()
    assert os.listdir(odd / "upper") == ["new"]
    assert "file" in os.listdir(folder / "target")


def test_500_layers_with_long_paths(folder: Path, mount: Mounter) -> None:
    layers = [folder / ("deep" * 50) / ("er" * 50) / str(number) for number in range(500)]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / layer.name).touch()
    with stack_of(folder, *layers) as stack:
        mount(stack, str(folder / "target"))
    assert sorted(os.listdir(folder / "target"), key=int) == [layer.name for layer in layers]


def test_the_current_directory_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    layers = [folder / ("deep" * 50) / str(number) for number in range(50)]
    for layer in layers:
        layer.mkdir(parents=True)
    with stack_of(folder, *layers) as stack:
        by_page(stack, "target")
    assert os.path.ismount(folder / "target")
    assert Path.cwd() == folder


def test_a_layer_is_mounted_that_was_moved_since(folder: Path) -> None:
    (folder / "base/mine").touch()
    with stack_of(folder) as stack:
        (folder / "base").rename(folder / "moved")
        (folder / "base").mkdir()
        (folder / "base/foreign").touch()
        mount_overlay(stack, str(folder / "target"))
    assert os.listdir(folder / "target") == ["mine"]


def test_flags_of_the_mount(folder: Path, mount: Mounter) -> None:
    names = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"]
    with stack_of(folder, options=",".join(names)) as stack:
        mount(stack, str(folder / "target"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(folder / "target"):
            # noatime includes nodiratime, so the kernel shows no more than that
            assert set(names) - set(line.split()[5].split(",")) <= {"nodiratime"}
    assert "ro" in superblock(folder / "target")


@pytest.mark.skipif(not markers.trusted_permitted(), reason="the kernel wants trusted. marks")
def test_layers_of_data_alone(folder: Path, mount: Mounter) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
    (folder / "two/blob").write_text("data")
    (folder / "base/file").touch()
    os.truncate(folder / "base/file", 4)
    os.setxattr(folder / "base/file", "trusted.overlay.metacopy", b"")
    os.setxattr(folder / "base/file", "trusted.overlay.redirect", b"/blob")
    data = [folder / "one", folder / "two"]
    options = parse("metacopy=on").options
    with LayerStack([folder / "top", folder / "base"], options=options, data=data) as stack:
        mount(stack, str(folder / "target"))
    assert (folder / "target/file").read_text() == "data"
    (active,) = [each for each in list_mounts() if each.target == str(folder / "target")]
    assert active.data == (str(folder / "one"), str(folder / "two"))


def test_options_of_overlayfs(folder: Path, mount: Mounter) -> None:
    with stack_of(folder, options="index=on,volatile,fsname=mine") as stack:
        mount(stack, str(folder / "target"))
    shown = superblock(folder / "target")
    # the kernel's index needs trusted attributes; without them it does without
    assert ("index=on" in shown) == markers.trusted_permitted()
    assert {"volatile", "fsync=volatile"} & set(shown)
    assert any(" mine " in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_strict_syncs_are_left_to_the_kernel_where_it_has_them(
    folder: Path, mount: Mounter
) -> None:
    with stack_of(folder, options="fsync=strict") as stack:
        try:
            mount(stack, str(folder / "target"))
        except MountError as error:
            assert "fsync" in str(error)
        else:
            assert "fsync=strict" in superblock(folder / "target")


def test_directories_are_renamed_by_redirect_where_the_kernel_follows_them(
    folder: Path, mount: Mounter
) -> None:
    (folder / "base/old").mkdir()
    with stack_of(folder) as stack:
        mount(stack, str(folder / "target"))
    if markers.trusted_permitted():
        (folder / "target/old").rename(folder / "target/new")
        assert os.getxattr(folder / "upper/new", "trusted.overlay.redirect") == b"old"
    else:
        with pytest.raises(OSError, match="cross-device"):
            (folder / "target/old").rename(folder / "target/new")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("userxattr,redirect_dir=on", "conflicting options: userxattr,redirect_dir=on"),
        ("userxattr,redirect_dir=follow", "conflicting options: userxattr,redirect_dir=follow"),
    ],
)
def test_the_kernel_says_why_it_refuses(folder: Path, options: str, words: str) -> None:
    with stack_of(folder, options=options) as stack, pytest.raises(MountError) as caught:
        mount_overlay(stack, str(folder / "target"))
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == str(folder / "target")
    # its log is for root alone
    expected = words if markers.trusted_permitted() else "dmesg(1) may say why"
    assert expected in str(caught.value)
    assert not os.path.ismount(folder / "target")


def test_more_layers_than_the_kernel_takes(folder: Path) -> None:
    layers = [folder / "layers" / str(number) for number in range(501)]
    for layer in layers:
        layer.mkdir(parents=True)
    with pytest.raises(StackError, match="501 lower layers; overlayfs takes 500"):
        stack_of(folder, *layers)
    with stack_of(folder, *layers[1:]) as stack:
        mount_overlay(stack, str(folder / "target"))
    assert os.path.ismount(folder / "target")


def test_switches_are_given_whether_on_or_off() -> None:
    given = dict(overlayfs.parameters(MountOptions()))
    assert given.items() >= {"index": "off", "metacopy": "off"}.items()
    assert "index" not in dict(overlayfs.parameters(MountOptions(nfs_export=True)))


def test_a_kernel_that_takes_layers_singly_is_known_by_asking() -> None:
    release = tuple(int(number) for number in os.uname().release.split(".")[:2])
    assert overlayfs.takes_layers_singly() == (release >= (6, 8))


@pytest.mark.skipif(not markers.trusted_permitted(), reason="this is the user namespace already")
def test_all_of_this_in_a_user_namespace() -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    inside = subprocess.run(command, capture_output=True, text=True, check=False)
    assert inside.returncode == 0, inside.stdout + inside.stderr
