"""Which store a command works on, and as whom.

An ordinary user's commands run again in a user namespace, where the user is root: there layers keep
their owners, as far as /etc/subuid grants numbers for them, and unions can be mounted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

_F = TypeVar("_F", bound=Callable[..., Any])

_VARIABLE: Final = "UNIONMOUNT_STORE"

store_directory = click.option(
    "--store",
    "directory",
    envvar=_VARIABLE,
    metavar="DIR",
    help=f"The store's directory; also {_VARIABLE}.",
)
"""`--store`, given to the command as `directory`; None: the default."""


def default_store() -> str:
    """Where a user's store is unless another is named."""
    if os.geteuid() == 0:
        return "/var/lib/unionmount"
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{home}/unionmount"


def store_option(command: _F) -> _F:
    """`--store`, given to the command as `store`, open."""

    @store_directory
    @functools.wraps(command)
    def opened(directory: str | None, **rest: Any) -> Any:
        root = os.path.abspath(directory or default_store())
        if os.geteuid() != 0:
            _become_root(root)
        from unionfs.store import Store  # not for those who take the directory alone

        with Store(root) as store:
            return command(store=store, **rest)

    return cast(_F, opened)


def _become_root(store: str) -> None:
    """Run this command again as root of a user namespace; returns where there can be none."""
    owners = ["--map-auto"] if shutil.which("newuidmap") and _has_subordinates() else []
    enter = ["unshare", "--user", "--map-root-user", *owners, "--mount", "--"]
    try:
        if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
            return
    except FileNotFoundError:
        return
    os.environ[_VARIABLE] = store
    os.execvp(enter[0], [*enter, sys.executable, "-P", "-m", "unionfs.cli", *sys.argv[1:]])


def _has_subordinates() -> bool:
    """Whether other numbers are granted to this user (subuid(5))."""
    users = {str(os.getuid())}
    with contextlib.suppress(KeyError):
        users.add(pwd.getpwuid(os.getuid()).pw_name)
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return any(line.partition(":")[0] in users for line in lines)
