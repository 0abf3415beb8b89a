"""Mount options: one table for overlayfs', fuse-overlayfs' and mount(8)'s names.

Each field of `MountOptions` is one row of the OPTIONS: its name is the option's, and it carries its
default, the values that it takes, the backends that honour it, and its line of documentation
(`docs/options.md` is printed from it: `python -m unionfs.options`). The layers themselves are no
options: `parse` gives them apart, for `LayerStack`.

The syntax is the one that the kernel, libfuse and mount(8) share: options separated by commas,
empty ones skipped; a backslash takes the next character literally; a value that begins with a
double quote ends at the next one. A later option overrides an earlier one.

Rules: Documentation/filesystems/overlayfs.rst and fs/overlayfs/params.c; fuse-overlayfs(1);
mount(8); mount.fuse3(8).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, final

_T = TypeVar("_T")

IdRange = tuple[int, int, int]
"""The first ID on disk, the first one in the union, how many."""


class OptionError(ValueError):
    """An option that is unknown, cannot be honoured, or has a wrong value; the message names it."""


@final
@dataclass(frozen=True, slots=True)
class _Kind:
    """How a value is written. `read` raises ValueError for a value that is none."""

    syntax: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


def _choice(values: dict[str, Any]) -> _Kind:
    texts = {value: text for text, value in values.items()}

    def read(text: str) -> Any:
        if text not in values:
            raise ValueError
        return values[text]

    return _Kind("|".join(values), read, texts.__getitem__)


def _words(*words: str) -> _Kind:
    return _choice({word: word for word in words})


def _read_id(text: str) -> int:
    if not re.fullmatch("[0-9]+", text) or int(text) >= 1 << 32:
        raise ValueError
    return int(text)


def _read_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError
    return seconds


def _read_mapping(text: str) -> tuple[IdRange, ...]:
    """Empty numbers are skipped, as fuse-overlayfs does: podman writes a leading colon."""
    numbers = [_read_id(number) for number in re.split("[:,]", text) if number]
    if not numbers or len(numbers) % 3:
        raise ValueError
    return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def _write_mapping(mapping: tuple[IdRange, ...]) -> str:
    return ":".join(str(number) for triple in mapping for number in triple)


_FLAG: Final = _choice({"": True})
_ON_OFF: Final = _choice({"on": True, "off": False})
_0_1: Final = _choice({"0": False, "1": True})
_AUTO: Final = "auto"
_FSYNC: Final = _choice(
    {"1": _AUTO, "0": "0", _AUTO: _AUTO, "strict": "strict", "volatile": "volatile"}
)
_TEXT: Final = _Kind("TEXT", str)
_ID: Final = _Kind("ID", _read_id)
_SECONDS: Final = _Kind("SECONDS", _read_seconds)
_MAPPING: Final = _Kind("ON-DISK:SHOWN:COUNT[:…]", _read_mapping, _write_mapping)


@final
@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one option beside its name and default.

    opposite: the flag that takes it back, as `rw` does `ro`.
    kernel, fuse: whether that backend can honour it. not_kernel: a value that the kernel cannot.
    by_fuse: values that FUSE can, of an option that it cannot honour otherwise.
    """

    kind: _Kind
    text: str
    opposite: str | None
    kernel: bool
    fuse: bool
    not_kernel: Any
    by_fuse: tuple[Any, ...]


def _option(
    default: _T,
    kind: _Kind,
    text: str,
    *,
    opposite: str | None = None,
    kernel: bool = True,
    fuse: bool = True,
    not_kernel: Any = None,
    by_fuse: tuple[Any, ...] = (),
) -> _T:
    row = Row(kind, text, opposite, kernel, fuse, not_kernel, by_fuse)
    field: _T = dataclasses.field(default=default, metadata={"row": row})
    return field


@final
@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of one mount, as docs/options.md describes them; None: not asked for."""

    redirect_dir: str | None = _option(
        None,
        _words("on", "follow", "nofollow", "off"),
        "Rename a lower directory by a redirect mark; with another word it stays (`EXDEV`). "
        "Not asked for: `on` with `trusted.` marks; with `user.` ones it is copied up whole.",
    )
    index: bool | None = _option(
        None,
        _ON_OFF,
        "Keep hard links of lower files linked when they are copied up. Not asked for: as the "
        "kernel's overlay module has it. `off` where layers have no file handles.",
    )
    metacopy: bool | None = _option(
        None,
        _ON_OFF,
        "Copy up a file's metadata alone where its data does not change; needs `redirect_dir=on` "
        "and no `userxattr`. Not asked for: as the kernel's overlay module has it.",
    )
    userxattr: bool | None = _option(
        None,
        _FLAG,
        "Keep marks in `user.overlay.` attributes, not `trusted.overlay.`. "
        "Not asked for: where `trusted.` is not permitted.",
        opposite="nouserxattr",
    )
    fsync: str = _option(
        _AUTO,
        _FSYNC,
        "What is on disk before it is shown, beside what programs sync: with `auto`, or `1`, the "
        "data of each file that is copied up; with `strict` files and directories are synced. "
        "`volatile`: as that option. `0`: an fsync of a file does nothing.",
        not_kernel="0",
    )
    volatile: bool = _option(
        False,
        _FLAG,
        "Never sync: faster, and the upper is lost if the machine crashes. No mount takes it again "
        "until `work/incompat/volatile` in the work directory is removed.",
    )
    nfs_export: bool = _option(
        False,
        _ON_OFF,
        "File handles that outlive the mount, for NFS; by FUSE they end with its program.",
        fuse=False,
    )
    uuid: str | None = _option(
        None,
        _words("null", "off", "on", "auto"),
        "The UUID that statfs gives. By FUSE there is none: `null`, `off` and `auto`.",
        fuse=False,
        by_fuse=("null", "off", "auto"),
    )
    xino: str | None = _option(
        None,
        _words("on", "auto", "off"),
        "Put the filesystem's number into the inode number, where layers lie on several; with "
        "`off` files keep the device and number of their layer. Always `on` by FUSE, which has one "
        "device.",
    )
    verity: str | None = _option(
        None,
        _words("off", "on", "require"),
        "fs-verity digests in metacopy files. FUSE checks none: `off`.",
        fuse=False,
        by_fuse=("off",),
    )

    layer_index: str | None = _option(
        None,
        _TEXT,
        "A directory, from each lower layer's root where it is relative, for an index of the "
        "layer, built when it is first read without the kernel's overlayfs. Only for layers that "
        "are never changed, as a store's: a change is not seen. See docs/memory.md.",
    )

    uidmapping: tuple[IdRange, ...] = _option(
        (), _MAPPING, "Show owners on disk as other ones.", kernel=False
    )
    gidmapping: tuple[IdRange, ...] = _option(
        (), _MAPPING, "Show groups on disk as other ones.", kernel=False
    )
    squash_to_root: bool = _option(
        False, _FLAG, "Everything is shown as root's and its group's.", kernel=False
    )
    squash_to_uid: int | None = _option(
        None,
        _ID,
        "Everything is shown as this user's; stronger than `squash_to_root`.",
        kernel=False,
    )
    squash_to_gid: int | None = _option(
        None,
        _ID,
        "Everything is shown as this group's; stronger than `squash_to_root`.",
        kernel=False,
    )
    static_nlink: bool = _option(False, _FLAG, "Every directory has one link.", kernel=False)
    noacl: bool = _option(False, _FLAG, "No POSIX access control lists.", kernel=False)
    noxattrs: bool = _option(False, _0_1, "No extended attributes.", kernel=False)
    xattr_permissions: int = _option(
        0,
        _choice({"0": 0, "1": 1, "2": 2}),
        "Keep owner, group and mode of files and directories in an attribute, for users who may "
        "not give files away: `1` in `security.fuseoverlayfs.override_stat`, which asks for root, "
        "`2` in `user.fuseoverlayfs.override_stat`, or `user.containers.override_stat` where "
        "upper's root has that. Lower layers are read so where their root has any of them; what "
        "an empty file there stands in for, by its type, is shown: a device, pipe or socket. No "
        "access control lists.",
        kernel=False,
    )
    writeback: bool = _option(
        True, _0_1, "`0`: no writes gathered in the kernel's cache.", kernel=False
    )
    passthrough: bool = _option(
        True,
        _0_1,
        "`0`: the kernel does not read and write layers' files without us, where it might.",
        kernel=False,
    )
    timeout: float | None = _option(
        None,
        _SECONDS,
        "How long the kernel may keep names and attributes. Not asked for: until they change.",
        kernel=False,
    )

    ro: bool = _option(False, _FLAG, "Read-only.", opposite="rw")
    nosuid: bool = _option(False, _FLAG, "Set-id bits have no effect.", opposite="suid")
    nodev: bool = _option(False, _FLAG, "Devices cannot be opened.", opposite="dev")
    noexec: bool = _option(False, _FLAG, "Nothing can be executed.", opposite="exec")
    noatime: bool = _option(False, _FLAG, "Access times stay.", opposite="atime")
    nodiratime: bool = _option(False, _FLAG, "Directories' access times stay.", opposite="diratime")
    nosymfollow: bool = _option(False, _FLAG, "Symlinks are not followed.", opposite="symfollow")

    context: str | None = _option(None, _TEXT, "SELinux context of every file.")
    fscontext: str | None = _option(None, _TEXT, "SELinux context of the filesystem.")
    defcontext: str | None = _option(None, _TEXT, "SELinux context of files without one.")
    rootcontext: str | None = _option(None, _TEXT, "SELinux context of the root directory.")

    allow_other: bool = _option(False, _FLAG, "Other users may enter the mount.", kernel=False)
    allow_root: bool = _option(False, _FLAG, "root may enter the mount.", kernel=False)
    auto_unmount: bool = _option(False, _FLAG, "Unmount when the program dies.", kernel=False)
    fsname: str | None = _option(None, _TEXT, "The source that mount(8) shows.")
    debug: bool = _option(False, _FLAG, "Log every request; implies `-f`.", kernel=False)

    def __post_init__(self) -> None:
        if self.volatile or self.fsync == "volatile":  # two names of one thing, as in the kernel
            object.__setattr__(self, "volatile", True)
            object.__setattr__(self, "fsync", _AUTO)

    @property
    def syncs(self) -> bool:
        """Whether an fsync(2) of a file does anything."""
        return not self.volatile and self.fsync != "0"

    @property
    def strict(self) -> bool:
        """Whether directories that are copied up are synced, as files are."""
        return self.fsync == "strict"

    def decided(self, *, trusted: bool) -> MountOptions:
        """With what depends on privilege, the kernel and other options settled.

        That is userxattr, redirect_dir, index and metacopy.

        trusted: whether `trusted.` attributes can be set where the upper layer lies.
        """
        userxattr = not trusted if self.userxattr is None else self.userxattr
        redirect_dir = self.redirect_dir or ("off" if userxattr else "on")
        index = _module_has("index") if self.index is None else self.index
        metacopy = self.metacopy
        if metacopy is None:
            metacopy = redirect_dir == "on" and not userxattr and _module_has("metacopy")
        return dataclasses.replace(
            self, userxattr=userxattr, redirect_dir=redirect_dir, index=index, metacopy=metacopy
        )

    def not_by(self, backend: Literal["overlayfs", "fuse"]) -> list[str]:
        """The names of options asked for that this backend cannot honour."""
        asked = ((name, value, OPTIONS[name]) for name, value in _asked_for(self))
        if backend == "fuse":
            return [name for name, value, row in asked if not row.fuse and value not in row.by_fuse]
        return [
            name if value != row.not_kernel else f"{name}={row.kind.write(value)}"
            for name, value, row in asked
            if not row.kernel or value == row.not_kernel
        ]


OPTIONS: Final[dict[str, Row]] = {
    field.name: field.metadata["row"] for field in dataclasses.fields(MountOptions)
}
"""By name: every option that has an effect."""

_OPPOSITES: Final = {row.opposite: name for name, row in OPTIONS.items() if row.opposite}

_NOT_FOR_US: Final = "for mount(8) and the system's boot"
_ONE_THREAD: Final = "there are no worker threads to count"
_OWN_BUFFERS: Final = "the buffers' size is negotiated with the kernel"
_OWN_CACHE: Final = "the kernel's cache is kept right without it"
WITHOUT_EFFECT: Final[dict[str, str]] = {
    "default_permissions": "always in force",
    "defaults": "the defaults are in force",
    "override_creds": "layers are read and written with the rights of who mounts",
    "nooverride_creds": "layers are read and written with the rights of who mounts",
    "nonempty": "a target need not be empty",
    "subtype": "always unionmount",
    "blkdev": "there is no block device",
    "fast_ino": "inode numbers are stable without it",
    "relatime": "the kernel's default",
    "norelatime": "the layers' own mount decides",
    "strictatime": "the layers' own mount decides",
    "nostrictatime": "the kernel's default",
    "lazytime": "the layers' own mount decides",
    "nolazytime": "the layers' own mount decides",
    "iversion": "the layers' own mount decides",
    "noiversion": "the layers' own mount decides",
    "sync": "the layers' own mount decides",
    "async": "the layers' own mount decides",
    "dirsync": "the layers' own mount decides",
    "mand": "no longer in the kernel",
    "nomand": "no longer in the kernel",
    "silent": "messages are not printed by the kernel",
    "loud": "messages are not printed by the kernel",
    "threaded": _ONE_THREAD,
    "clone_fd": _ONE_THREAD,
    "max_idle_threads": _ONE_THREAD,
    "max_threads": _ONE_THREAD,
    "max_read": _OWN_BUFFERS,
    "max_write": _OWN_BUFFERS,
    "max_readahead": _OWN_BUFFERS,
    "max_background": _OWN_BUFFERS,
    "congestion_threshold": _OWN_BUFFERS,
    "blksize": _OWN_BUFFERS,
    "async_read": _OWN_BUFFERS,
    "sync_read": _OWN_BUFFERS,
    "atomic_o_trunc": _OWN_BUFFERS,
    "big_writes": _OWN_BUFFERS,
    "large_read": _OWN_BUFFERS,
    "splice_read": _OWN_BUFFERS,
    "splice_write": _OWN_BUFFERS,
    "splice_move": _OWN_BUFFERS,
    "no_splice_read": _OWN_BUFFERS,
    "no_splice_write": _OWN_BUFFERS,
    "no_splice_move": _OWN_BUFFERS,
    "kernel_cache": _OWN_CACHE,
    "auto_cache": _OWN_CACHE,
    "noauto_cache": _OWN_CACHE,
    "direct_io": _OWN_CACHE,
    "entry_timeout": "the option timeout decides",
    "attr_timeout": "the option timeout decides",
    "negative_timeout": "the option timeout decides",
    "ac_attr_timeout": "the option timeout decides",
    "use_ino": "inode numbers are always ours",
    "readdir_ino": "inode numbers are always ours",
    "noforget": "always in force",
    "auto": _NOT_FOR_US,
    "noauto": _NOT_FOR_US,
    "nofail": _NOT_FOR_US,
    "_netdev": _NOT_FOR_US,
    "user": _NOT_FOR_US,
    "users": _NOT_FOR_US,
    "nouser": _NOT_FOR_US,
    "nousers": _NOT_FOR_US,
    "owner": _NOT_FOR_US,
    "noowner": _NOT_FOR_US,
    "group": _NOT_FOR_US,
    "nogroup": _NOT_FOR_US,
    "comment": _NOT_FOR_US,
    "helper": _NOT_FOR_US,
    "uhelper": _NOT_FOR_US,
}
"""By name: why an option that other programs know has no effect here."""

_IGNORED_PREFIXES: Final = ("x-", "X-")  # mount(8): userspace options, as systemd's

_REFUSED: Final = {
    "plugins": "fuse-overlayfs' plugins are not supported",
    "remount": "a union cannot be remounted; unmount and mount it again",
    "bind": "a union is not a bind mount",
}

_LAYERS: Final = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")


@final
@dataclass(frozen=True, slots=True)
class Parsed:
    """What an option string says.

    lower: lower directories, top first. upper, work: None where not named. All as written.
    ignored: the names of options without effect, as given; `WITHOUT_EFFECT` has the reasons.
    data: lower directories that are not merged, but hold data of files by redirects.
    """

    lower: list[str]
    upper: str | None
    work: str | None
    options: MountOptions
    ignored: list[str]
    data: list[str] = dataclasses.field(default_factory=list)


def parse(text: str) -> Parsed:
    """Read the argument of `-o`.

    Raises OptionError for an unknown option, a wrong value, and what cannot be honoured.
    """
    lower: list[str] = []
    data: list[str] = []
    directories: dict[str, str] = {}
    values: dict[str, Any] = {}
    without_effect: list[str] = []
    for item in _split(text, _ITEM):
        name, equals, raw = item.partition("=")
        raw = _unquoted(raw)
        value = _unescape(raw) if equals else None
        if name in _LAYERS and not value:
            raise OptionError(f"option {name} names no directory")
        if name == "lowerdir":
            lower, data = split_lowerdir(raw)
        elif name == "lowerdir+":
            lower.append(_unescape(raw))
        elif name == "datadir+":
            data.append(_unescape(raw))
        elif name in _LAYERS:
            directories[name] = _unescape(raw)
        elif name in OPTIONS:
            values[name] = _value(name, value)
            if name == "volatile" or (name == "fsync" and value not in ("0", "1")):
                # Names of one thing, of which the last counts; fuse-overlayfs' words are another.
                values.pop("fsync" if name == "volatile" else "volatile", None)
        elif name in _OPPOSITES:
            if value is not None:
                raise OptionError(f"option {name} takes no value, not {value!r}")
            values[_OPPOSITES[name]] = False
        elif name in WITHOUT_EFFECT or name.startswith(_IGNORED_PREFIXES):
            without_effect.append(name)
        elif name in _REFUSED:
            raise OptionError(f"option {name}: {_REFUSED[name]}")
        elif name or equals:
            raise OptionError(f"unknown option {name!r}{_nearest(name)}")
    upper, work = directories.get("upperdir"), directories.get("workdir")
    return Parsed(lower, upper, work, MountOptions(**values), without_effect, data)


@final
@dataclass(frozen=True, slots=True)
class Command:
    """The command line of a mount program, as fuse-overlayfs, mount(8) and mount.fuse3 have it.

    source: what mount(8) was told to mount; no directory. log: a file for the program's log.
    """

    target: str
    source: str | None
    parsed: Parsed
    foreground: bool
    log: str | None


def parse_command(arguments: Sequence[str]) -> Command:
    """Read `[-f] [-d|--debug] [-s] [--log FILE] [-o OPTIONS]… [SOURCE] TARGET`, in any order.

    Raises OptionError.
    """
    import getopt

    try:
        given, operands = getopt.gnu_getopt([*arguments], "fdso:", ["debug", "log="])
    except getopt.GetoptError as error:
        raise OptionError(str(error)) from None
    if len(operands) not in (1, 2):
        raise OptionError(f"one target is needed, and a source at most, not {operands}")
    flags = {flag for flag, _ in given}
    texts = [value for flag, value in given if flag == "-o"]
    if not flags.isdisjoint(("-d", "--debug")):
        texts.append("debug")
    parsed = parse(",".join(texts))
    source = operands[0] if len(operands) == 2 else None
    foreground = "-f" in flags or parsed.options.debug
    return Command(operands[-1], source, parsed, foreground, dict(given).get("--log"))


def render(
    options: MountOptions,
    lower: Sequence[str] = (),
    upper: str | None = None,
    work: str | None = None,
    data: Sequence[str] = (),
) -> str:
    """The argument of `-o` that `parse` reads back as these, defaults left out."""
    layers = ":".join(_escape(path, ":") for path in lower)
    layers += "".join(f"::{_escape(path, ':')}" for path in data)
    items = [f"lowerdir={layers}"] if lower else []
    for name, path in (("upperdir", upper), ("workdir", work)):
        if path is not None:
            items.append(f"{name}={_escape(path)}")
    for name, value in _asked_for(options):
        row = OPTIONS[name]
        if row.opposite and value is False:
            items.append(row.opposite)
        elif row.kind is _FLAG:
            items.append(name)
        else:
            items.append(f"{name}={_escape(row.kind.write(value))}")
    return ",".join(items)


def _asked_for(options: MountOptions) -> Iterator[tuple[str, Any]]:
    """Name and value of what is not at its default."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            yield field.name, value


def _module_has(parameter: str) -> bool:
    """Whether the kernel's overlay module has a feature on where no option asks for it."""
    try:
        with open(f"/sys/module/overlay/parameters/{parameter}", encoding="ascii") as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def _value(name: str, text: str | None) -> Any:
    kind = OPTIONS[name].kind
    if kind is _FLAG and text is not None:
        raise OptionError(f"option {name} takes no value, not {text!r}")
    if kind is not _FLAG and text is None:
        raise OptionError(f"option {name} needs a value: {name}={kind.syntax}")
    try:
        return kind.read(text or "")
    except ValueError:
        raise OptionError(f"option {name} takes {kind.syntax}, not {text!r}") from None


def _nearest(name: str) -> str:
    import difflib

    known = [*_LAYERS, *OPTIONS, *_OPPOSITES, *WITHOUT_EFFECT]
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else "; see docs/options.md for the known ones"


def split_lowerdir(raw: str) -> tuple[list[str], list[str]]:
    """The paths in a value of `lowerdir`, top first, and those after `::`, of data alone.

    Raises OptionError for an empty path, and for one of a layer after one of data.
    """
    parts = [*_split(raw, _PATH)]
    end = parts.index("") if "" in parts else len(parts)
    rest = parts[end:]
    data = rest[1::2]
    if not end or any(rest[::2]) or len(rest) % 2 or "" in data:
        raise OptionError(f"option lowerdir takes TOP:…:BASE or TOP:…:BASE::DATA, not {raw!r}")
    return [_unescape(path) for path in parts[:end]], [_unescape(path) for path in data]


_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ITEM: Final = re.compile(r'[^,=]*="(?:\\.|[^\\"])*"(?=,|\Z)|(?:\\.|[^,])*', re.DOTALL)
_PATH: Final = re.compile(r"(?:\\.|[^:])*", re.DOTALL)


def _escape(value: str, special: str = "") -> str:
    return re.sub(rf'[\\,"{special}]', r"\\\g<0>", value)


def _unescape(raw: str) -> str:
    return _ESCAPED.sub(r"\1", raw)


def _unquoted(raw: str) -> str:
    return raw[1:-1] if len(raw) > 1 and raw[0] == raw[-1] == '"' else raw


def _split(text: str, part: re.Pattern[str]) -> Iterator[str]:
    """The parts of text with one character between them, escapes and quotes left in them."""
    position = 0
    while position <= len(text) and (match := part.match(text, position)):
        yield match[0]
        position = match.end() + 1


def reference() -> str:
    """docs/options.md."""
    lines = [
        "# Mount options",
        "",
        "Printed by `python -m unionfs.options`; change the table there.",
        "",
        "`lowerdir=TOP:…:BASE` (or `lowerdir+=DIR`, once a layer), `upperdir=DIR` and",
        "`workdir=DIR` name the layers. Layers of data alone, which only the redirects of metadata",
        "copies lead into, follow as `…:BASE::DATA::DATA` or `datadir+=DIR`.",
        "",
        "In a value, `\\` takes the next character literally, and",
        "double quotes around it protect commas. Empty options are skipped, a later option",
        "overrides an earlier one, and an unknown one is an error.",
        "",
        "| option | default | kernel overlayfs | FUSE | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += _rows(dataclasses.fields(MountOptions))
    lines += ["", "Accepted, and without effect:", "", "| option | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in WITHOUT_EFFECT.items()]
    lines += [f"| `{prefix}…` | {_NOT_FOR_US} |" for prefix in _IGNORED_PREFIXES]
    lines += ["", "Refused:", "", "| option | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in _REFUSED.items()]
    return "\n".join(lines) + "\n"


def _rows(fields: Iterable[dataclasses.Field[Any]]) -> Iterator[str]:
    for field in fields:
        row = OPTIONS[field.name]
        syntax = field.name if row.kind is _FLAG else f"{field.name}={row.kind.syntax}"
        default = field.default
        shown = row.opposite if row.opposite and default is False else ""
        if row.kind is not _FLAG and default not in (None, ()):
            shown = row.kind.write(default)
        cells = [
            f"`{syntax}`".replace("|", "\\|"),
            f"`{shown}`" if shown else "",
            "yes" if row.kernel else "",
            "yes" if row.fuse else "",
            row.text,
        ]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
