"""Why a path of the union shows what it shows: what each layer has to say to it.

`resolve` says which layers answer. Here the others are asked too, component by component: whether
they hold the path at all, and if so what kept the search from them: a file above, a whiteout, an
opaque directory, a redirect that leads elsewhere. Nothing is decided here a second time.

Cost: a lookup a component, and an lstat(2) for each layer in it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Literal, final

from unionfs import markers, system
from unionfs.place import Layer, Place, join
from unionfs.resolve import Node, lookup, places, root, walk
from unionfs.stack import LayerStack

Verdict = Literal[
    "answers", "merged", "covered", "whited out", "whiteout", "opaque", "redirected", "absent"
]
"""What a layer is to a path.

answers: the topmost that holds it. merged: its directory adds to one above. covered: something
else lies above it. whited out: a whiteout above hides it. whiteout: it holds that whiteout.
opaque: an opaque directory above hides it. redirected: the search went on under another name.
absent: it does not hold the path.
"""


@final
@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer's part in an explanation.

    place: where the layer was asked, under another name than the union's after a redirect.
    by: what decided against it, if anything did. redirect: the directory whose redirect mark led
    to place.
    """

    place: Place
    verdict: Verdict
    by: Place | None = None
    redirect: Place | None = None

    @property
    def layer(self) -> Layer:
        return self.place.layer


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a path shows what it shows.

    path: from the union's root, symlinks among its parents followed. kind: its file type, of
    S_IFMT; None where the union has no such path. layers: every layer's part, top first.
    """

    path: str
    kind: int | None
    layers: tuple[LayerView, ...]

    @property
    def answer(self) -> LayerView | None:
        """The layer that answers; None where the union has no such path."""
        return next((view for view in self.layers if view.verdict == "answers"), None)


def explain(stack: LayerStack, path: str) -> Explanation:
    """Explain a path of the union, which need not exist; a symlink at its end is not followed.

    Raises OSError as `lookup` does, ELOOP and ENAMETOOLONG.
    """
    inside = _inside(stack, path)
    node: Node | None = root(stack)
    views = [LayerView(place, "answers") for place in places(stack, root(stack))]
    for name in inside.split("/") if inside else ():
        node = lookup(stack, node, name) if node and node.is_dir else None
        views = _next(stack, views, name, node)
    answers = [view for view in views if view.verdict == "answers"]
    views = [
        LayerView(view.place, "merged", redirect=view.redirect) if view in answers[1:] else view
        for view in views
    ]
    return Explanation(f"/{inside}", node.kind if node else None, tuple(views))


def _inside(stack: LayerStack, path: str) -> str:
    """The path without symlinks and dots, as far as the union has it."""
    try:
        directory, name, node = walk(stack, root(stack), f"/{path}", follow=False)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.normpath(f"/{path}").lstrip("/")
    return node.path if node else join(directory.path, name)


def _next(
    stack: LayerStack, views: list[LayerView], name: str, node: Node | None
) -> list[LayerView]:
    """What the layers are to name in the directory that views are about; node: its resolution."""
    answering = {place.layer: place for place in places(stack, node)} if node else {}
    if stack.index in answering:
        # The file has several names: upper has it under this one, or in the index alone.
        copy = answering.pop(stack.index)
        named = views[0].place.child(name)
        answering[views[0].layer] = named if views[0].layer.writable and _status(named) else copy
    found: list[LayerView] = []
    stop: tuple[Verdict, Place] | None = None  # what ends the search, once it was met
    redirect: Place | None = None
    for view in views:
        layer = view.layer
        place = answering.get(layer) or view.place.child(name)
        status = _status(place)
        if layer in answering and status:
            found.append(LayerView(place, "answers", redirect=redirect or view.redirect))
            if not stat.S_ISDIR(status.st_mode):
                stop = ("covered", place)
            else:
                marks = markers.of_directory(stack.prefix, layer.fd, place.path)
                stop = ("opaque", place) if marks.opaque else None
                redirect = place if marks.redirect is not None else redirect
        elif status is None:
            found.append(LayerView(place, "absent"))
        elif view.verdict != "answers":
            found.append(LayerView(place, view.verdict, view.by))
        elif stop:
            found.append(LayerView(place, *stop))
        elif redirect:
            found.append(LayerView(place, "redirected", redirect))
        elif _is_whiteout(stack, place, status):
            found.append(LayerView(place, "whiteout"))
            stop = ("whited out", place)
        else:  # no directory, so it cannot be merged with the one above
            found.append(LayerView(place, "covered", next(iter(answering.values()))))
            stop = ("covered", place)
        if stop is None and view.verdict == "answers" and _hidden_by_aufs(place):
            mark = Place(layer, join(os.path.dirname(place.path), markers.AUFS_PREFIX + name))
            stop = ("whited out", mark)
            if status is None:
                found[-1] = LayerView(mark, "whiteout")
    return found


def _status(place: Place) -> os.stat_result | None:
    """lstat(2) of what a layer may not hold; None too where a symlink is among its parents."""
    try:
        fd = system.open_beneath(place.layer.fd, place.path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _is_whiteout(stack: LayerStack, place: Place, status: os.stat_result) -> bool:
    name = os.path.basename(place.path)
    return name.startswith(markers.AUFS_PREFIX) or markers.is_whiteout(
        stack.prefix, place.layer.fd, place.path, status
    )


def _hidden_by_aufs(place: Place) -> bool:
    directory, _, name = place.path.rpartition("/")
    return markers.hidden_by_aufs(place.layer.fd, directory, name)
