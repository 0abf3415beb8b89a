"""Union of directory layers, in the on-disk format of Linux overlayfs.

What is used is imported when it is first asked for: a program that only mounts starts sooner.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.explanation import Explanation as Explanation
    from unionfs.explanation import explain as explain
    from unionfs.mounting import ActiveMount as ActiveMount
    from unionfs.mounting import Mount as Mount
    from unionfs.mounting import list_mounts as list_mounts
    from unionfs.mounting import mount as mount
    from unionfs.mounting import unmount as unmount
    from unionfs.options import MountOptions as MountOptions
    from unionfs.options import OptionError as OptionError
    from unionfs.overlayfs import MountError as MountError
    from unionfs.place import Layer as Layer
    from unionfs.place import Place as Place
    from unionfs.resolve import Node as Node
    from unionfs.stack import LayerStack as LayerStack
    from unionfs.stack import StackError as StackError
    from unionfs.system import RENAME_EXCHANGE as RENAME_EXCHANGE
    from unionfs.system import RENAME_NOREPLACE as RENAME_NOREPLACE
    from unionfs.union import DirEntry as DirEntry
    from unionfs.union import UnionFS as UnionFS

_HOMES = {
    "explanation": ("Explanation", "explain"),
    "mounting": ("ActiveMount", "Mount", "list_mounts", "mount", "unmount"),
    "options": ("MountOptions", "OptionError"),
    "overlayfs": ("MountError",),
    "place": ("Layer", "Place"),
    "resolve": ("Node",),
    "stack": ("LayerStack", "StackError"),
    "system": ("RENAME_EXCHANGE", "RENAME_NOREPLACE"),
    "union": ("DirEntry", "UnionFS"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


if not TYPE_CHECKING:  # which knows the names from above, and no others

    def __getattr__(name: str) -> object:
        """Import what is asked for, once."""
        for module, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"unionfs.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module 'unionfs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
