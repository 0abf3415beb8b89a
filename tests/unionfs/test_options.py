"""The option string: what other programs write is read, and what is rendered is read back."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.options import (
    OPTIONS,
    WITHOUT_EFFECT,
    MountOptions,
    OptionError,
    Parsed,
    parse,
    parse_command,
    reference,
    render,
)


def read(text: str, **expected: Any) -> Parsed:
    """Parse text, which must give these options and no other."""
    parsed = parse(text)
    assert parsed.options == MountOptions(**expected)
    return parsed


def test_podman_and_buildah_command_lines() -> None:
    parsed = read(
        "lowerdir=G/l/A:G/l/B,upperdir=G/ID/diff,workdir=G/ID/work,,volatile", volatile=True
    )
    assert (parsed.lower, parsed.upper, parsed.work) == (
        ["G/l/A", "G/l/B"],
        "G/ID/diff",
        "G/ID/work",
    )
    assert parsed.ignored == []
    parsed = read("lowerdir=G/ID/diff:G/ID/empty")
    assert (parsed.lower, parsed.upper, parsed.work) == (["G/ID/diff", "G/ID/empty"], None, None)
    assert read("lowerdir=a,upperdir=b,workdir=c,").lower == ["a"]


def test_leading_colon_and_several_ranges_in_a_mapping() -> None:
    ranges = ((0, 1000, 1), (1, 110000, 65536))
    text = ":0:1000:1:1:110000:65536"
    read(f"uidmapping={text},gidmapping={text}", uidmapping=ranges, gidmapping=ranges)
    read('uidmapping="0:1000:1,1:110000:65536"', uidmapping=ranges)


@pytest.mark.parametrize(
    ("text", "lower"),
    [
        (r"lowerdir=a\:b:c", ["a:b", "c"]),
        (r"lowerdir=a\,b:c", ["a,b", "c"]),
        (r"lowerdir=a\\:b", ["a\\", "b"]),
        (r'lowerdir="a,b:c"', ["a,b", "c"]),
        (r'lowerdir=a"b:c"', ['a"b', 'c"']),
        ("lowerdir=a=b:c", ["a=b", "c"]),
        ("lowerdir=a:b,lowerdir=c", ["c"]),
        ("lowerdir+=a:b,lowerdir+=c", ["a:b", "c"]),
        ("lowerdir=a,lowerdir+=b", ["a", "b"]),
        ("lowerdir=a\nb", ["a\nb"]),
    ],
)
def test_special_characters_in_paths(text: str, lower: list[str]) -> None:
    assert read(text).lower == lower


def test_quoted_context() -> None:
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    assert read(f'lowerdir=a,context="{label}",ro', context=label, ro=True).lower == ["a"]


def test_a_later_option_overrides() -> None:
    read("ro,rw,nosuid,suid,index=on,index=off,userxattr,nouserxattr", index=False, userxattr=False)
    read("dev,suid,nodev", nodev=True)


def test_what_fstab_and_other_programs_add_is_told_as_without_effect() -> None:
    text = "lowerdir=a,_netdev,noauto,x-systemd.requires=/b,comment=c,max_write=131072,splice_read"
    parsed = read(text)
    assert parsed.lower == ["a"]
    assert parsed.ignored == [
        "_netdev",
        "noauto",
        "x-systemd.requires",
        "comment",
        "max_write",
        "splice_read",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("volatil", "unknown option 'volatil'; did you mean volatile?"),
        ("lowrdir=a", "unknown option 'lowrdir'; did you mean lowerdir?"),
        ("=a", "unknown option ''"),
        ("index", r"option index needs a value: index=on\|off"),
        ("index=1", r"option index takes on\|off, not '1'"),
        ("volatile=on", "option volatile takes no value, not 'on'"),
        ("rw=1", "option rw takes no value, not '1'"),
        ("timeout=soon", "option timeout takes SECONDS, not 'soon'"),
        ("timeout=-1", "option timeout takes SECONDS, not '-1'"),
        ("timeout=nan", "option timeout takes SECONDS, not 'nan'"),
        ("squash_to_uid=4294967296", "option squash_to_uid takes ID, not '4294967296'"),
        ("squash_to_gid=root", "option squash_to_gid takes ID, not 'root'"),
        ("uidmapping=0:1000", "option uidmapping takes ON-DISK:SHOWN:COUNT"),
        ("uidmapping=", "option uidmapping takes ON-DISK:SHOWN:COUNT"),
        ("xattr_permissions=3", r"option xattr_permissions takes 0\|1\|2, not '3'"),
        ("lowerdir=", "option lowerdir names no directory"),
        ("upperdir", "option upperdir names no directory"),
        ("lowerdir=a::", "option lowerdir takes TOP:…:BASE or TOP:…:BASE::DATA, not 'a::'"),
        ("lowerdir=a::b:c", "option lowerdir takes TOP:…:BASE or TOP:…:BASE::DATA, not 'a::b:c'"),
        ("lowerdir=:a", "option lowerdir takes"),
        ("datadir+", r"option datadir\+ names no directory"),
        ("plugins=a", "option plugins: fuse-overlayfs' plugins are not supported"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse(text)


def test_what_depends_on_privilege_is_decided_together() -> None:
    trusted, user = (MountOptions().decided(trusted=trusted) for trusted in (True, False))
    assert (trusted.userxattr, trusted.redirect_dir) == (False, "on")
    assert (user.userxattr, user.redirect_dir) == (True, "off")
    asked = MountOptions(userxattr=True, redirect_dir="on", index=True, metacopy=False)
    assert asked.decided(trusted=True) == asked


def test_options_that_a_backend_lacks_are_told() -> None:
    both = MountOptions(volatile=True, noatime=True, redirect_dir="on")
    assert (both.not_by("overlayfs"), both.not_by("fuse")) == ([], [])
    options = MountOptions(uidmapping=((0, 1, 1),), squash_to_uid=0, fsync="0", verity="on")
    assert options.not_by("overlayfs") == ["fsync=0", "uidmapping", "squash_to_uid"]
    assert options.not_by("fuse") == ["verity"]
    assert parse("verity=off,uuid=auto,nfs_export=off").options.not_by("fuse") == []


@pytest.mark.parametrize(
    ("text", "fsync", "volatile"),
    [
        ("fsync=1", "auto", False),
        ("fsync=auto", "auto", False),
        ("fsync=strict", "strict", False),
        ("fsync=0", "0", False),
        ("fsync=volatile", "auto", True),
        ("volatile", "auto", True),
        ("volatile,fsync=strict", "strict", False),
        ("fsync=strict,volatile", "auto", True),
        ("volatile,fsync=1", "auto", True),
        ("volatile,fsync=0", "auto", True),
    ],
)
def test_words_of_fsync(text: str, fsync: str, volatile: bool) -> None:
    """The kernel's two options are one, of which the last word counts."""
    options = parse(text).options
    assert (options.fsync, options.volatile) == (fsync, volatile)
    assert parse(render(options)).options == options
    assert options.syncs == (not volatile and fsync != "0")


def test_command_lines_of_other_programs() -> None:
    """podman's, then mount.fuse3's, then ones typed by hand."""
    command = parse_command(["-o", "lowerdir=a:b", "target"])
    assert (command.target, command.source, command.foreground) == ("target", None, False)
    assert command.parsed.lower == ["a", "b"]
    command = parse_command(["source", "target", "-o", "lowerdir=a,ro,dev,suid"])
    assert (command.target, command.source) == ("target", "source")
    assert command.parsed.options == MountOptions(ro=True)
    command = parse_command(["-f", "--log", "file", "-olowerdir=a", "-o", "ro", "target"])
    assert (command.foreground, command.log) == (True, "file")
    assert (command.parsed.lower, command.parsed.options) == (["a"], MountOptions(ro=True))
    assert parse_command(["--debug", "target"]).foreground


@pytest.mark.parametrize(
    "arguments", [[], ["-o", "ro"], ["a", "b", "c"], ["-x", "a"], ["a", "-o"], ["-oasdf", "a"]]
)
def test_bad_command_lines(arguments: list[str]) -> None:
    with pytest.raises(OptionError):
        parse_command(arguments)


def test_each_name_has_one_meaning() -> None:
    opposites = {row.opposite for row in OPTIONS.values() if row.opposite}
    assert len(OPTIONS.keys() | opposites | WITHOUT_EFFECT.keys()) == (
        len(OPTIONS) + len(opposites) + len(WITHOUT_EFFECT)
    )


# What a path may hold: any bytes but NUL and, as no directory is called so, none at all.
paths = st.binary(min_size=1).map(
    lambda path: path.replace(b"\0", b",").decode(errors="surrogateescape")
)
hostile = st.text(r'\\,:"= ab', min_size=1)
ids = st.integers(0, 2**32 - 1)
values: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bool | None": st.none() | st.booleans(),
    "str | None": st.none() | hostile,
    "int | None": st.none() | ids,
    "float | None": st.none() | st.floats(0, allow_infinity=False),
    "tuple[IdRange, ...]": st.lists(st.tuples(ids, ids, ids)).map(tuple),
}
words = {
    "redirect_dir": st.sampled_from([None, "on", "follow", "nofollow", "off"]),
    "fsync": st.sampled_from(["auto", "strict", "volatile", "0"]),
    "uuid": st.sampled_from([None, "null", "off", "on", "auto"]),
    "xino": st.sampled_from([None, "on", "auto", "off"]),
    "verity": st.sampled_from([None, "off", "on", "require"]),
    "xattr_permissions": st.integers(0, 2),
}
all_options = st.builds(
    MountOptions,
    **{
        field.name: words[field.name] if field.name in words else values[str(field.type)]
        for field in dataclasses.fields(MountOptions)
    },
)


@given(
    all_options,
    st.lists(paths | hostile),
    st.none() | paths | hostile,
    st.none() | paths | hostile,
    st.lists(paths | hostile),
)
def test_rendered_options_are_read_back(
    options: MountOptions, lower: list[str], upper: str | None, work: str | None, data: list[str]
) -> None:
    data = data if lower else []
    text = render(options, lower, upper, work, data)
    assert parse(text) == Parsed(lower, upper, work, options, [], data)


@given(st.sampled_from(["lowerdir", "upperdir", "context", "uidmapping"]), st.text('\\,:"=01'))
def test_any_value_is_read_or_refused(name: str, value: str) -> None:
    try:
        parsed = parse(f"{name}={value}")
    except OptionError:
        return
    layers = parsed.lower, parsed.upper, parsed.work, parsed.data
    assert parsed == parse(render(parsed.options, *layers))


def test_reference_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs/options.md"
    assert page.read_text() == reference(), "run: python -m unionfs.options > docs/options.md"
