"""The kernel's own overlayfs, mounted through fsopen(2), fsconfig(2), fsmount(2), move_mount(2).

Layers are handed over one by one, as descriptors where the kernel takes them (6.13), so any
number of them with paths of any length and any bytes can be mounted, and a layer that was
exchanged since the stack was built cannot slip in. A kernel without `lowerdir+` (before 6.8) gets
one mount(2). Nothing is attached before the kernel has accepted everything: a failure leaves no
mount behind.

Cost: a system call a layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import Final

from unionfs import mount_api
from unionfs.markers import trusted_permitted
from unionfs.options import OPTIONS, MountOptions, render
from unionfs.place import Layer
from unionfs.stack import LayerStack

SOURCE: Final = "unionmount"
"""What mount(8) shows as the source of our mounts, unless the option fsname says otherwise."""

# Set whether on or off: the defaults of the kernel's module depend on its build and parameters.
_SWITCHES: Final = ("index", "metacopy")
_FLAGS: Final = ("userxattr", "volatile")
_VALUES: Final = (
    "redirect_dir",
    "fsync",
    "nfs_export",
    "uuid",
    "xino",
    "verity",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
)

_REMEDIES: Final = {
    errno.EPERM: "mount as root, or in a user namespace with a mount namespace of its own",
    errno.ENODEV: "this kernel has no overlayfs; try: modprobe overlay",
    errno.ELOOP: "a layer lies inside another one; use separate directories",
    errno.EBUSY: "upper or work belongs to another mount; unmount that first",
}


class MountError(OSError):
    """A mount that failed; the message has the kernel's words where it gave any."""


@cache
def takes_layers_singly() -> bool:
    """Whether this kernel has the parameter `lowerdir+`.

    Before Linux 6.5 overlayfs had no parameters of its own here, and any name was let pass until
    the end; hence the first question.
    """
    try:
        context = mount_api.fsopen("overlay")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return False
        raise
    try:
        with contextlib.suppress(OSError):
            mount_api.set_flag(context, "no-such-parameter")
            return False
        mount_api.set_string(context, "lowerdir+", "/")
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(context)
    return True


def mount_overlay(stack: LayerStack, target: str) -> None:
    """Mount stack at the directory target by kernel overlayfs.

    Raises MountError with the kernel's errno and words.
    """
    with _explained(target) as said:
        if takes_layers_singly():
            _mount_by_context(stack, target, said)
        else:
            _mount_by_page(stack, target)


@contextlib.contextmanager
def _explained(target: str) -> Iterator[list[str]]:
    """Turn an OSError into a MountError with all that the kernel said.

    Gives the list for what it says to us; overlayfs says most of it to its log alone, which is
    read too, where that is permitted.
    """
    said: list[str] = []
    log = None
    with ExitStack() as opened:
        with contextlib.suppress(OSError):
            log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.callback(os.close, log)
            os.lseek(log, 0, os.SEEK_END)
        try:
            yield said
        except OSError as error:
            number = error.errno or errno.EIO
            if log is not None:
                said += _logged(log)
            words = "; ".join(dict.fromkeys(said)) or os.strerror(number)
            remedy = _REMEDIES.get(number) or (None if said else "dmesg(1) may say why")
            message = f"kernel overlayfs: {words}{f'; {remedy}' if remedy else ''}"
            raise MountError(number, message, target) from error


def _logged(log: int) -> Iterator[str]:
    """What overlayfs has written to the kernel's log since it was opened."""
    with contextlib.suppress(OSError):  # BlockingIOError at its end
        while record := os.read(log, 8192):
            text = os.fsdecode(record).partition(";")[2].partition("\n")[0]
            if text.startswith("overlayfs: "):
                yield text.removeprefix("overlayfs: ")


def _open_directory(path: str, opened: ExitStack) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _open_layer(layer: Layer, opened: ExitStack) -> int:
    """The layer by its path: overlayfs takes no private mounts before Linux 6.15.

    Where it was moved, or another directory has taken its place, by the descriptor all the same.
    """
    with contextlib.suppress(OSError):
        fd = _open_directory(layer.path, opened)
        if os.path.samestat(os.fstat(fd), os.fstat(layer.fd)):
            return fd
    return layer.fd


def _directories(stack: LayerStack, opened: ExitStack) -> list[tuple[str, str, int]]:
    """Parameter, path and descriptor of each directory, as the kernel wants them ordered."""
    found = [("lowerdir+", layer.path, _open_layer(layer, opened)) for layer in stack.lower]
    found += [("datadir+", layer.path, _open_layer(layer, opened)) for layer in stack.data]
    if stack.upper is not None and stack.work is not None:
        found.append(("upperdir", stack.upper.path, stack.upper.fd))
        found.append(("workdir", stack.work, _open_directory(stack.work, opened)))
    return found


def _mount_by_context(stack: LayerStack, target: str, said: list[str]) -> None:
    with ExitStack() as opened:
        place = _open_directory(target, opened)
        context = mount_api.fsopen("overlay")
        opened.callback(os.close, context)
        try:
            mount_api.set_string(context, "source", stack.options.fsname or SOURCE)
            for name, path, fd in _directories(stack, opened):
                _set_directory(context, name, path, fd)
            if stack.options.ro:
                mount_api.set_flag(context, "ro")
            mount_api.set_parameters(context, parameters(stack.options))
            mount_api.create(context)
            mount = mount_api.fsmount(context, attributes(stack.options))
            opened.callback(os.close, mount)
        finally:
            said += (text.removeprefix("overlay: ") for text in mount_api.messages(context))
        mount_api.move_mount(mount, place)


def _set_directory(context: int, name: str, path: str, fd: int) -> None:
    """Name a directory by descriptor, or by path where the kernel takes no descriptors."""
    try:
        mount_api.set_fd(context, name, fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Of upperdir and workdir the kernel drops backslashes, and keeps those of lowerdir+.
        plain = len(os.fsencode(path)) <= mount_api.STRING_MAX and "\\" not in path
        mount_api.set_string(context, name, path if plain else f"/proc/self/fd/{fd}")


def parameters(options: MountOptions) -> Iterator[tuple[str, str | None]]:
    """The names and values that overlayfs is given, layers apart; None for a flag."""
    options = options.decided(trusted=trusted_permitted())
    for name in (*_SWITCHES, *_VALUES):
        value = getattr(options, name)
        if value is None or (value is False and name not in _SWITCHES):
            continue
        # Kernels before the option know no other.
        if name == "fsync" and value == "auto":
            continue
        # nfs_export alone turns the index on.
        if name == "index" and options.nfs_export and not value:
            continue
        # With userxattr the kernel never follows redirects, and refuses a word that may mean it.
        if name == "redirect_dir" and value == "off" and options.userxattr:
            continue
        yield name, OPTIONS[name].kind.write(value)
    for name in _FLAGS:
        if getattr(options, name):
            yield name, None


def attributes(options: MountOptions) -> set[str]:
    """The attributes of the mount itself that the options ask for: names of `ATTRIBUTES`."""
    return {name for name in mount_api.ATTRIBUTES if getattr(options, name)}


def _mount_by_page(stack: LayerStack, target: str) -> None:
    """One mount(2), whose options must fit into a page.

    Where the paths are too long for that, a directory is named by the number of its descriptor,
    from /proc/self/fd as the current directory of a thread that shares it with no other.
    """
    with ExitStack() as opened:
        directories = _directories(stack, opened)
        data = _page(stack.options, [(name, path) for name, path, _ in directories])
        fits = len(data) < os.sysconf("SC_PAGESIZE")
        if not fits:
            data = _page(stack.options, [(name, str(fd)) for name, _, fd in directories])
        source = stack.options.fsname or SOURCE
        wanted = attributes(stack.options)
        arguments = (source, os.path.abspath(target), "overlay", wanted, data)
        if fits:
            mount_api.mount(*arguments)
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(1, initializer=_enter_descriptors) as thread:
                thread.submit(mount_api.mount, *arguments).result()


def _page(options: MountOptions, directories: list[tuple[str, str]]) -> bytes:
    """The option string of mount(2)."""
    lower, data, upper, work = (
        [path for name, path in directories if name == wanted]
        for wanted in ("lowerdir+", "datadir+", "upperdir", "workdir")
    )
    layers = lower, next(iter(upper), None), next(iter(work), None), data
    items = [render(MountOptions(), *layers)]
    for name, value in parameters(options):
        # The kernel's security modules know quotes, and nothing else holds a comma.
        text = f'"{value}"' if value and "," in value else value
        items.append(name if text is None else f"{name}={text}")
    return os.fsencode(",".join(items))


def _enter_descriptors() -> None:
    mount_api.own_directory()
    os.chdir("/proc/self/fd")
