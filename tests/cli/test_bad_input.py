"""What cannot be mounted: one clear line, an exit code, nothing mounted, no file touched.

The same through the command for people, by each backend, and through the mount program's command
line.
"""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import UNPRIVILEGED, WITHOUT_FUSE, Call, complaint, output
from tests.conformance.doors import Folder
from tests.privilege import NO_DEVICES, machine_only
from tests.tree import Snapshot, snapshot
from unionfs import mount_api

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

Attempt = Callable[..., str]
"""Try to mount: the complaint of a call that must fail and leave everything as it was."""


@pytest.fixture(params=["auto", "overlayfs", "fuse", "mount program"])
def attempt(request: pytest.FixtureRequest, call: Call, folder: Path) -> Attempt:
    """Mount with the directories of `folder` unless others are named, by one way to call."""
    way = request.param

    def run(
        lower: tuple[str, ...] = ("app", "base"),
        upper: str = "upper",
        work: str = "work",
        target: str = "target",
        before: tuple[str, ...] = (),
    ) -> str:
        if way == "mount program":
            options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
            arguments = ["-o", options, target]
        else:
            layers = [word for path in lower for word in ("--lower", path)]
            arguments = ["mount", *layers, "--upper", upper, "--work", work, "--backend", way]
            arguments.append(target)
        mounts, files = mounted(folder), seen(folder)
        message = complaint(call(*arguments, before=before))
        assert mounted(folder) == mounts
        assert seen(folder) == files
        return message

    return run


def mounted(folder: Path) -> list[str]:
    """What is mounted in the folder, or of its layers."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if str(folder) in line]


def seen(folder: Path) -> Snapshot:
    """Everything in the folder, less the mounts and what lies in a work directory."""
    found = snapshot(Folder(str(folder)))
    return {path: file for path, file in found.items() if not path.startswith(("target", "work/"))}


def test_a_missing_layer(attempt: Attempt, folder: Path) -> None:
    message = attempt(lower=("app", "none"))
    assert message == f"{folder}/none: lower layer: No such file or directory; check the path"


def test_a_file_in_place_of_a_directory(attempt: Attempt, folder: Path) -> None:
    (folder / "file").touch()
    assert "file: lower layer is not a directory" in attempt(lower=("file",))
    assert "file: upper layer is not a directory" in attempt(upper="file")
    assert "file: work directory is not a directory" in attempt(work="file")
    assert "file: target is not a directory" in attempt(target="file")


def test_an_upper_that_is_a_lower_or_lies_in_one(attempt: Attempt, folder: Path) -> None:
    (folder / "base/upper").mkdir()
    assert "overlaps upper" in attempt(upper="base")
    assert "overlaps upper" in attempt(upper="base/upper")
    assert "overlaps upper" in attempt(work="upper")


def test_work_on_another_filesystem(attempt: Attempt, folder: Path) -> None:
    mount_api.mount("none", str(folder / "other"), "tmpfs", set(), b"")
    try:
        message = attempt(work="other")
    finally:
        mount_api.umount(str(folder / "other"), lazy=True)
    assert "other: work is on another filesystem than upper" in message


def test_work_that_holds_something(attempt: Attempt, folder: Path) -> None:
    (folder / "other/thesis").touch()
    assert "other: work holds 'thesis'" in attempt(work="other")


@pytest.mark.parametrize("first", ["overlayfs", "fuse"])
@pytest.mark.parametrize("shared", ["upper", "work"])
def test_an_upper_or_work_that_is_in_use(
    call: Call, attempt: Attempt, folder: Path, first: str, shared: str
) -> None:
    output(
        call(
            *("mount", "--lower", "base", "--upper", "upper", "--work", "work"),
            *("--backend", first, "target"),
        )
    )
    if shared == "upper":
        message = attempt(work="other", target="target2")
    else:
        message = attempt(upper="other", target="target2")
    assert shared in message
    assert "unmount that first" in message


def test_an_unreadable_layer(attempt: Attempt, folder: Path) -> None:
    os.chmod(folder / "base", 0o000)
    message = attempt(before=UNPRIVILEGED)
    assert message == f"{folder}/base: lower layer is not readable; check its permissions"


def test_an_upper_that_keeps_no_attributes(attempt: Attempt, folder: Path) -> None:
    """ramfs has none, so there is no way to mark an opaque directory."""
    mount_api.mount("none", str(folder / "other"), "ramfs", set(), b"")
    (folder / "other/upper").mkdir()
    (folder / "other/work").mkdir()
    try:
        message = attempt(upper="other/upper", work="other/work")
    finally:
        mount_api.umount(str(folder / "other"), lazy=True)
    assert "attributes" in message


def test_a_missing_target(attempt: Attempt) -> None:
    assert "none: target does not exist; make the directory" in attempt(target="none")


def test_a_target_that_has_a_union(call: Call, attempt: Attempt) -> None:
    output(call("mount", "--lower", "base", "target"))
    assert "target: a union is mounted on target; unmount it first" in attempt()


def test_the_kernel_alone_is_not_permitted(call: Call, folder: Path) -> None:
    arguments = ("mount", "--lower", "base", "--backend", "overlayfs", "target")
    message = complaint(call(*arguments, before=UNPRIVILEGED))
    assert "mount as root, or in a user namespace" in message


@machine_only(NO_DEVICES)
@pytest.mark.parametrize("way", ["auto", "fuse", "mount program"])
def test_no_fuse_device(call: Call, folder: Path, way: str) -> None:
    """Where the kernel cannot be asked either, as the option timeout is FUSE's alone."""
    line = ["-o", "timeout=1,lowerdir=app:base", "target"]
    arguments = line if way == "mount program" else ["mount", "--backend", way, *line]
    message = complaint(call(*arguments, before=WITHOUT_FUSE))
    assert "/dev/fuse" in message
    assert "modprobe fuse" in message
    assert not os.path.ismount(folder / "target")


@machine_only(NO_DEVICES)
@pytest.mark.parametrize("way", ["auto", "fuse", "mount program"])
def test_a_fuse_device_that_is_not_permitted(
    call: Call, folder: Path, tmp_path: Path, way: str
) -> None:
    line = ["-o", "timeout=1,lowerdir=app:base", "target"]
    arguments = line if way == "mount program" else ["mount", "--backend", way, *line]
    device = tmp_path / "device"
    os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
    device.chmod(0o000)
    hide = f'mount --bind {device} /dev/fuse && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", hide, "sh", *UNPRIVILEGED)
    assert "chmod 666 /dev/fuse" in complaint(call(*arguments, before=before))
    assert not os.path.ismount(folder / "target")


@pytest.mark.parametrize("way", ["auto", "overlayfs", "fuse", "mount program"])
def test_more_layers_than_there_can_be(call: Call, folder: Path, way: str) -> None:
    names = [f"l{number}" for number in range(501)]
    for name in names:
        (folder / name).mkdir()
    line = ["-o", f"lowerdir={':'.join(names)}", "target"]
    arguments = line if way == "mount program" else ["mount", "--backend", way, *line]
    message = complaint(call(*arguments))
    assert "501 lower layers; overlayfs takes 500" in message
    assert not os.path.ismount(folder / "target")
    for name in names:
        shutil.rmtree(folder / name)


def test_options_that_are_wrong(call: Call, folder: Path) -> None:
    for option, part in (
        ("volatil", "did you mean volatile?"),
        ("index=maybe", "option index takes on|off, not 'maybe'"),
        ("remount", "cannot be remounted"),
    ):
        for arguments in (["-o", option, "target"], ["mount", "-o", option, "target"]):
            assert part in complaint(call(*arguments))
    assert "choose one" in complaint(
        call("mount", "--lower", "app", "-o", "lowerdir=base", "target")
    )
    assert "name both" in complaint(call("mount", "--lower", "app", "--upper", "upper", "target"))
    assert "at least one lower layer" in complaint(call("mount", "target"))
    assert not os.path.ismount(folder / "target")
