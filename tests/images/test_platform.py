"""The image for a platform is the one that containerd would take."""

import subprocess

import pytest

from unionfs.images.platform import Platform, best, runs
from unionfs.images.reference import InvalidReference


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_a_platform_has_one_name(text: str, normal: str) -> None:
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/amd64/v1/x", "linux/a b"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="OS/ARCH"):
        Platform.parse(text)


def test_this_machine_is_what_debian_calls_it() -> None:
    said = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    )
    assert Platform.of_this_machine() == Platform.parse(f"linux/{said.stdout.strip()}")


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64", "linux/386"], "linux/amd64"),
        ("linux/amd64", ["linux/arm64", "linux/386"], "linux/386"),
        ("linux/amd64", ["linux/arm64", "windows/amd64", "linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/386", ["linux/amd64"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v6"),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64"], "linux/arm64"),
        ("linux/arm64", ["linux/arm/v5", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm64", ["linux/arm64/v8.1"], None),
        ("linux/arm64/v8.2", ["linux/arm64", "linux/arm64/v8.1"], "linux/arm64/v8.1"),
        ("linux/arm64/v9", ["linux/arm64/v8.5", "linux/arm64/v8.6"], "linux/arm64/v8.5"),
        ("linux/arm64/v9.1", ["linux/arm64/v8.6", "linux/arm64/v9"], "linux/arm64/v9"),
        ("linux/riscv64", ["linux/amd64", "linux/riscv64"], "linux/riscv64"),
    ],
)
def test_the_best_image_is_taken(wanted: str, offered: list[str], taken: str | None) -> None:
    position = best(Platform.parse(wanted), map(Platform.parse, offered))
    assert (None if position is None else offered[position]) == taken


def test_arm64_runs_what_containerd_lists_for_it() -> None:
    assert [str(platform) for platform in runs(Platform.parse("linux/arm64"))] == [
        *("linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5")
    ]
