"""mount() takes the kernel where it can, says why, and leaves nothing behind when it cannot."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs import mount_api
from unionfs.mounting import Mount, check_target, list_mounts, mount, unmount
from unionfs.options import MountOptions
from unionfs.overlayfs import MountError
from unionfs.stack import LayerStack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with directories for a stack; whatever is mounted on its `target` is unmounted."""
    for name in ("top", "base", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    yield tmp_path
    while os.path.ismount(tmp_path / "target"):
        mount_api.umount(str(tmp_path / "target"), lazy=True)


@pytest.fixture
def stack(folder: Path) -> Iterator[LayerStack]:
    with LayerStack([folder / "top", folder / "base"], folder / "upper", folder / "work") as made:
        yield made


def test_the_kernel_mounts_where_it_can(folder: Path, stack: LayerStack) -> None:
    target = str(folder / "target")
    with mount(stack, folder / "target") as mounted:
        assert mounted == Mount(target, "overlayfs", "the kernel can mount this stack")
        assert os.path.ismount(target)
    assert not os.path.ismount(target)


def test_the_target_need_not_be_empty_and_may_be_a_symlink(folder: Path, stack: LayerStack) -> None:
    (folder / "target/hidden").touch()
    (folder / "link").symlink_to("target")
    with mount(stack, folder / "link") as mounted:
        assert mounted.target == str(folder / "target")
        assert os.listdir(folder / "target") == []
    assert os.listdir(folder / "target") == ["hidden"]


def test_after_a_failure_the_union_goes_though_it_is_in_use(
    folder: Path, stack: LayerStack
) -> None:
    with pytest.raises(KeyError), mount(stack, folder / "target") as mounted:
        file = open(f"{mounted.target}/file", "w")  # noqa: SIM115
        raise KeyError
    assert not os.path.ismount(folder / "target")
    with file:
        file.write("it lives on")
    assert (folder / "upper/file").read_text() == "it lives on"


def test_a_union_in_use_stays_unless_unmounted_lazily(folder: Path, stack: LayerStack) -> None:
    mounted = mount(stack, folder / "target")
    with open(f"{mounted.target}/file", "w"):
        with pytest.raises(MountError, match="it is in use") as caught:
            mounted.unmount()
        assert caught.value.errno == errno.EBUSY
        mounted.unmount(lazy=True)
    assert not os.path.ismount(folder / "target")


def test_only_unions_are_unmounted(folder: Path) -> None:
    target = folder / "target"
    mount_api.mount("none", str(target), "tmpfs", set(), b"")
    with pytest.raises(MountError, match="no union is mounted there"):
        unmount(target)
    assert os.path.ismount(target)


def test_targets_that_cannot_be(folder: Path, stack: LayerStack) -> None:
    (folder / "file").touch()
    with pytest.raises(MountError, match="target does not exist") as caught:
        mount(stack, folder / "absent")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(MountError, match="target is not a directory") as caught:
        mount(stack, folder / "file")
    assert caught.value.errno == errno.ENOTDIR
    with mount(stack, folder / "target"):
        with pytest.raises(MountError, match="a union is mounted on target") as caught:
            mount(stack, folder / "target")
        assert caught.value.errno == errno.EBUSY
    assert not os.path.ismount(folder / "target")
    assert check_target(folder / "target") == str(folder / "target")


def test_options_that_no_backend_has_together(folder: Path) -> None:
    options = MountOptions(squash_to_uid=0, verity="on")
    lower = [folder / "top", folder / "base"]
    with LayerStack(lower, options=options) as stack:
        with pytest.raises(MountError, match="kernel overlayfs has no option squash_to_uid"):
            mount(stack, folder / "target", backend="overlayfs")
        with pytest.raises(MountError, match="FUSE has no option verity"):
            mount(stack, folder / "target")
    assert not os.path.ismount(folder / "target")


def test_the_list_has_the_layers(folder: Path) -> None:
    odd = folder / 'a:b,c\\d "e"\nf'
    for name in ("lower", "upper", "work"):
        (odd / name).mkdir(parents=True)
    lower = (str(odd / "lower"), str(folder / "base"))
    with (
        LayerStack(lower, odd / "upper", odd / "work", options=MountOptions(ro=True)) as stack,
        mount(stack, folder / "target") as mounted,
    ):
        (active,) = [active for active in list_mounts() if active.target == mounted.target]
    assert (active.backend, active.type, active.source) == ("overlayfs", "overlay", "unionmount")
    assert (active.lower, active.upper, active.work) == (
        lower,
        str(odd / "upper"),
        str(odd / "work"),
    )
    assert active.ours
    assert active.read_only


def test_the_list_has_what_others_mounted(folder: Path) -> None:
    target = folder / "target"
    (folder / "a:b").mkdir()
    options = rf"lowerdir={folder}/a\:b:{folder}/base"
    subprocess.run(["mount", "-t", "overlay", "theirs", "-o", options, target], check=True)
    (active,) = [active for active in list_mounts() if active.target == str(target)]
    assert active.lower == (f"{folder}/a:b", f"{folder}/base")
    assert active.upper is None
    assert not active.ours
