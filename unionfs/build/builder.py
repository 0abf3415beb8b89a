"""Builds an image: runs a Dockerfile's instructions, each over the image so far.

An instruction that changes files works in a container of the image so far: COPY and ADD in its
layers, without a mount; RUN and the unpacking of archives in its mount. What it changes becomes one
layer in the store, which is unpacked again for the next step, as everybody unpacks it. A step whose
layer is known from an earlier build is not done again (`cache`). Stages that the wanted one does
not need are not built.

Rules: Dockerfile reference. The base images must be in the store. Cost: a container a step, and for
its layer a write, a read and a write of what it changed.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal, final

from unionfs.build import dockerfile
from unionfs.build.cache import Cache, Made, key_of
from unionfs.build.copying import Owner, Source, Target
from unionfs.build.dockerfile import BuildError, Instruction, expanded
from unionfs.build.ignore import Ignore
from unionfs.build.settings import CHANGES, command, environment, working_directory
from unionfs.containers import Containers
from unionfs.containers.bundle import RunOptions, find_account
from unionfs.containers.container import IMAGE
from unionfs.containers.runtime import Runtime
from unionfs.images import library
from unionfs.images.documents import Config, Descriptor, History, RootFs
from unionfs.images.library import Image
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.layers import apply_onto, is_archive
from unionfs.stack import LayerStack
from unionfs.store import NotFound, Store
from unionfs.store.collect import GC_REFERENCE
from unionfs.union import UnionFS

SCRATCH: Final = "scratch"
"""The name of the image that has nothing."""
_STANDARD_ERROR: Final = 2
_CONTAINER: Final = "build"
_URLS: Final = ("http://", "https://", "ftp://", "git://", "git@")
_NOTHING: Final = Ignore(())
_FREE_ARGUMENTS: Final = frozenset(
    name
    for each in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (each, each.lower())
)
"""Build arguments that RUN has without an ARG."""


@final
@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. arguments: values for ARG. target: the stage that is wanted; None: the last.

    cached: whether steps are taken from earlier builds. network: of RUN. runtime: its program.
    clamp: no file's time, and not the image's, is later than that; seconds since 1970.
    output: the descriptor that what RUN prints goes to.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    cached: bool = True
    network: Literal["none", "host"] = "none"
    runtime: str | None = None
    clamp: int | None = None
    output: int = _STANDARD_ERROR


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One instruction that is carried out. number: from 1. cached: known once it is `done`."""

    number: int
    count: int
    text: str
    done: bool = False
    cached: bool = False


Watch = Callable[[Step], object]


def build(
    store: Store,
    context: str | os.PathLike[str],
    text: str,
    tags: Sequence[Reference] = (),
    *,
    name: str = "Dockerfile",
    options: BuildOptions = BuildOptions(),
    watch: Watch = lambda step: None,
) -> Image:
    """Build the image of a Dockerfile, and have names stand for it.

    context: the directory that COPY and ADD read; its `.dockerignore` leaves files out. text: of
    the Dockerfile; name: what its errors call it.

    Raises BuildError that names the line, NotFound for an image, and what the library raises. No
    name changes then.
    """
    before, stages = dockerfile.stages(dockerfile.parse(text, name))
    with store.leases.hold(), ExitStack() as stack:
        files = UnionFS(stack.enter_context(LayerStack([context])))
        source = Source(files, _ignored(files))
        builder = _Builder(store, source, before, stages, options, watch)
        image = builder.image(builder.wanted())
        for tag in tags:
            library.tag(store, image.target, tag)
    return image


def _ignored(files: UnionFS) -> Ignore:
    try:
        return Ignore(os.fsdecode(files.read_bytes(".dockerignore")).splitlines())
    except FileNotFoundError:
        return _NOTHING


@dataclass(slots=True)
class _State:
    """A stage so far. commanded: whether it has a CMD of its own."""

    config: Config
    layers: tuple[Descriptor, ...]
    arguments: dict[str, str]
    commanded: bool = False

    @property
    def variables(self) -> dict[str, str]:
        return self.arguments | environment(self.config.settings)


@final
class _Builder:
    """Builds the stages of one Dockerfile, each once."""

    def __init__(
        self,
        store: Store,
        context: Source,
        before: Sequence[Instruction],
        stages: Sequence[Sequence[Instruction]],
        options: BuildOptions,
        watch: Watch,
    ) -> None:
        self._store = store
        self._containers = Containers(store)
        self._cache = Cache(store)
        self._context = context
        self._options = options
        self._watch = watch
        self._stages = stages
        self._images: dict[int, Image] = {}
        self._global = self._platforms()
        for one in before:
            self._declare(self._global, one, self._global)
        self._names = [self._stage_name(stage[0]) for stage in stages]
        self._check_arguments([*before, *(one for stage in stages for one in stage)])
        self._count = 0
        self._number = 0

    def _platforms(self) -> dict[str, str]:
        """The arguments that every Dockerfile may declare."""
        here = Platform.of_this_machine()
        parts = {
            "PLATFORM": str(here),
            "OS": here.os,
            "ARCH": here.architecture,
            "VARIANT": here.variant,
        }
        return {f"{of}{part}": text for of in ("BUILD", "TARGET") for part, text in parts.items()}

    def _check_arguments(self, instructions: Sequence[Instruction]) -> None:
        declared = {
            word.partition("=")[0]
            for one in instructions
            if one.name == "ARG"
            for word in dockerfile.split(one.text, {})
        }
        unknown = sorted({*self._options.arguments} - declared - _FREE_ARGUMENTS)
        if unknown:
            message = f"no ARG declares the build argument {unknown[0]}; check its name"
            raise BuildError(message, instructions[0].where.rpartition(":")[0])

    def _declare(
        self, arguments: dict[str, str], one: Instruction, variables: Mapping[str, str]
    ) -> None:
        """ARG: a value given to the build, else its default, else the one before any FROM."""
        for word in dockerfile.split(one.text, variables):
            name, equals, default = word.partition("=")
            if name in self._options.arguments:
                arguments[name] = self._options.arguments[name]
            elif equals:
                arguments[name] = default
            elif name in self._global:
                arguments[name] = self._global[name]

    def _from(self, one: Instruction) -> list[str]:
        words = one.words(self._global)
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise one.error("write FROM IMAGE [AS NAME]")
        return words

    def _stage_name(self, one: Instruction) -> str:
        return self._from(one)[-1].lower() if len(self._from(one)) == 3 else ""

    def wanted(self) -> int:
        """The stage to build; counts the instructions that lead to it."""
        target = self._options.target
        last = len(self._stages) - 1
        found = last if target is None else self._stage(target, last + 1)
        if found is None:
            known = ", ".join(filter(None, self._names)) or "none has a name"
            first = self._stages[0][0]
            raise BuildError(f"no stage {target!r}; there are: {known}", first.where)
        needed = {found}
        pending = [found]
        while pending:
            number = pending.pop()
            for one in self._stages[number]:
                text = self._from(one)[0] if one.name == "FROM" else one.flags.get("from")
                other = None if text is None else self._stage(text, number)
                if other is not None and other not in needed:
                    needed.add(other)
                    pending.append(other)
        self._count = sum(len(self._stages[number]) for number in needed)
        return found

    def _stage(self, text: str, before: int) -> int | None:
        """The stage that a name or number means, of those before one."""
        for number in reversed(range(before)):
            if self._names[number] == text.lower() or text == str(number):
                return number
        return None

    def image(self, number: int) -> Image:
        """The image of a stage."""
        if number not in self._images:
            self._images[number] = self._build(number)
        return self._images[number]

    def _build(self, number: int) -> Image:
        first, *rest = self._stages[number]
        for one in self._stages[number]:  # what it needs comes first, so that steps are in order
            text = one.flags.get("from")
            if text is not None and (other := self._stage(text, number)) is not None:
                self.image(other)
        base = self._base(first, number)
        self._begin(first)
        state = _State(base.config, base.manifest.layers, {}) if base else self._scratch()
        self._done(first, cached=False)
        settings = state.config.settings
        triggers = [dockerfile.instruction(text, first.where) for text in settings.on_build]
        state.config = replace(state.config, settings=replace(settings, on_build=()))
        self._count += len(triggers)
        for one in (*triggers, *rest):
            self._begin(one)
            try:
                cached = self._carry_out(state, one, number)
            except BuildError:
                raise
            except OSError as error:
                about = f"{error.filename}: " if error.filename else ""
                message = f"{about}{error.strerror or error}"
                raise BuildError(message, one.where) from error
            self._done(one, cached=cached)
        return library.add(self._store, state.config, state.layers)

    def _begin(self, one: Instruction) -> None:
        self._number += 1
        self._watch(Step(self._number, self._count, str(one)))

    def _done(self, one: Instruction, *, cached: bool) -> None:
        self._watch(Step(self._number, self._count, str(one), done=True, cached=cached))

    def _scratch(self) -> _State:
        here = Platform.of_this_machine()
        config = Config(
            architecture=here.architecture, os=here.os, variant=here.variant, rootfs=RootFs(())
        )
        return _State(config, (), {})

    def _base(self, one: Instruction, number: int) -> Image | None:
        """The image that a stage begins with; None: from nothing."""
        text = self._from(one)[0]
        other = self._stage(text, number)
        if other is not None:
            return self.image(other)
        if text == SCRATCH:
            return None
        platform = expanded(one.flags.get("platform", ""), self._global)
        return self._stored(one, text, Platform.parse(platform) if platform else None)

    def _stored(self, one: Instruction, text: str, platform: Platform | None = None) -> Image:
        """An image of the store."""
        try:
            return library.find(self._store, text).image(platform)
        except NotFound:
            message = f"{text} is not in the store; run: unionmount pull {text}"
            raise one.error(message) from None

    def _carry_out(self, state: _State, one: Instruction, number: int) -> bool:
        """Carry out an instruction; whether its layer was known."""
        made: Made | None = None
        cached = False
        if one.name == "ARG":
            self._declare(state.arguments, one, state.variables)
        elif one.name == "MAINTAINER":
            state.config = replace(state.config, author=one.text)
        elif one.name in CHANGES:
            settings = CHANGES[one.name](state.config.settings, one, state.variables)
            if one.name == "ENTRYPOINT" and not state.commanded:
                settings = replace(settings, cmd=())  # that of the base belongs to another
            state.commanded = state.commanded or one.name == "CMD"
            state.config = replace(state.config, settings=settings)
            if one.name == "WORKDIR":
                made, cached = self._make_workdir(state)
        elif one.name == "RUN":
            made, cached = self._run(state, one)
        else:
            made, cached = self._copy(state, one, number)
        # what makes no layer is as old as the layer below: so the same build gives the same image
        created = made.created if made else state.config.created
        step = History(created=created, created_by=str(one), author=state.config.author)
        state.config = state.config.after(step, made.diff_id if made else None)
        state.layers = (*state.layers, *((made.layer,) if made else ()))
        return cached

    def _now(self) -> str:
        moment = time.time() if self._options.clamp is None else self._options.clamp
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))

    def _layer(
        self, state: _State, key: Sequence[object], work: Callable[[str], object]
    ) -> tuple[Made, bool]:
        """The layer that some work in a container makes, and whether it was known.

        key: what the layer depends on beside the layers below.
        """
        name = key_of(state.config.rootfs.diff_ids, self._options.clamp, *key)
        found = self._cache.get(name) if self._options.cached else None
        if found:
            return found, True
        with self._container(state) as container:
            work(container)
            layer, diff_id = self._containers.layer(container, self._options.clamp)
        made = Made(layer, diff_id, self._now())
        self._cache.put(name, made)
        return made, False

    @contextmanager
    def _container(self, state: _State) -> Iterator[str]:
        """A container of the image so far, which is removed at the end."""
        image = library.add(self._store, state.config, state.layers)
        name = f"{_CONTAINER}-{uuid.uuid4().hex[:12]}"
        labels = {IMAGE: _CONTAINER, GC_REFERENCE: image.target.digest}
        self._store.snapshots.prepare(name, library.unpack(self._store, image), labels)
        try:
            yield name
        finally:
            self._containers.remove(name, force=True)

    @contextmanager
    def _files(self, container: str) -> Iterator[UnionFS]:
        """A container's files, to write without a mount."""
        with self._store.snapshots.directories(container).open() as stack:
            yield UnionFS(stack)

    @contextmanager
    def _image_files(self, state: _State) -> Iterator[UnionFS | None]:
        """The files of the image so far, to read; None of an image without layers."""
        image = library.add(self._store, state.config, state.layers)
        chain = library.unpack(self._store, image)
        if not chain:
            yield None
            return
        with LayerStack(self._store.layers.stack(chain), options=self._store.options) as stack:
            yield UnionFS(stack)

    def _make_workdir(self, state: _State) -> tuple[Made | None, bool]:
        path = state.config.settings.working_dir
        with self._image_files(state) as files:
            if files is not None and files.exists(path):
                return None, False

        def work(container: str) -> None:
            with self._files(container) as union:
                Target(union, (0, 0)).make_directories(path)

        return self._layer(state, ("WORKDIR", path), work)

    def _run(self, state: _State, one: Instruction) -> tuple[Made, bool]:
        settings = state.config.settings
        words = command(settings, one)
        known = environment(settings)
        given = {name: self._options.arguments.get(name) for name in _FREE_ARGUMENTS}
        free = {name: value for name, value in given.items() if value is not None}
        extra = {
            name: value for name, value in (free | state.arguments).items() if name not in known
        }
        options = RunOptions(
            command=words,
            entrypoint=(),
            env=tuple(f"{name}={value}" for name, value in sorted(extra.items())),
            network=self._options.network,
        )

        def work(container: str) -> None:
            runtime = Runtime.find(self._store, self._options.runtime)
            status = runtime.run(container, options, output=self._options.output)
            if status:
                raise one.error(f"the command ended with {status}: {one.text}")

        # proxies make no difference to what a command makes, so they are not part of the key
        declared = sorted((name, extra[name]) for name in extra if name in state.arguments)
        key = ("RUN", words, known, declared, settings.user, settings.working_dir)
        return self._layer(state, key, work)

    def _copy(self, state: _State, one: Instruction, number: int) -> tuple[Made, bool]:
        """COPY and ADD."""
        variables = state.variables
        *texts, end = words = one.words(variables)
        if len(words) < 2:
            raise one.error(f"write {one.name} SOURCE… DESTINATION")
        urls = [text for text in texts if one.name == "ADD" and text.startswith(_URLS)]
        if urls:
            raise one.error(f"{urls[0]} is not fetched; download it, and ADD the file")
        place = working_directory(state.config.settings, end)
        if len(texts) > 1 and not place.endswith("/"):
            raise one.error("several sources go into a directory; end the destination with /")
        mode = self._mode(one, variables)
        owner = self._owner(state, one, expanded(one.flags.get("chown", ""), variables))
        with self._source(one, number) as source:
            paths = [path for text in texts for path in source.named(text)]
            if len(paths) > 1 and not place.endswith("/"):
                raise one.error("several sources go into a directory; end the destination with /")
            archives = [path for path in paths if one.name == "ADD" and _unpacks(source, path)]
            files = [path for path in paths if path not in archives]

            def work(container: str) -> None:
                if files:
                    with self._files(container) as union:
                        Target(union, owner, mode).copy(source, files, place)
                for path in archives:
                    self._unpack(container, source, path, place)

            key = (one.name, source.fingerprint(paths), place, owner, mode)
            return self._layer(state, key, work)

    def _unpack(self, container: str, source: Source, path: str, place: str) -> None:
        mount = self._containers.mount(container)
        try:
            with open(source.union.os_open(f"/{path}", os.O_RDONLY), "rb") as blob:
                apply_onto(blob, mount.target, under=place)
        finally:
            mount.unmount()

    @contextmanager
    def _source(self, one: Instruction, number: int) -> Iterator[Source]:
        text = one.flags.get("from")
        if text is None:
            yield self._context
            return
        other = self._stage(text, number)
        image = self._stored(one, text) if other is None else self.image(other)
        chain = library.unpack(self._store, image)
        if not chain:
            raise one.error(f"{text} has no files to copy")
        with LayerStack(self._store.layers.stack(chain), options=self._store.options) as stack:
            yield Source(UnionFS(stack), _NOTHING)

    def _mode(self, one: Instruction, variables: Mapping[str, str]) -> int | None:
        text = expanded(one.flags.get("chmod", ""), variables)
        if not text:
            return None
        try:
            return int(text, 8) & 0o7777
        except ValueError:
            raise one.error(f"--chmod={text} is no mode; write it in octal, as 755") from None

    def _owner(self, state: _State, one: Instruction, text: str) -> Owner:
        """USER[:GROUP] in the image so far; a user alone means the group of that number."""
        if not text:
            return 0, 0
        with self._image_files(state) as files:
            if files is None:
                user, _, group = text.partition(":")
                if not user.isdecimal() or not (group or "0").isdecimal():
                    raise one.error(f"--chown={text}: the image has no names; write numbers")
                return int(user), int(group or user)
            account = find_account(files, text)
        return account.uid, account.gid if ":" in text else account.uid


def _unpacks(source: Source, path: str) -> bool:
    """Whether ADD unpacks a file: where it is a tar, compressed or not."""
    if not stat.S_ISREG(source.union.stat(f"/{path}").st_mode):
        return False
    with open(source.union.os_open(f"/{path}", os.O_RDONLY), "rb") as blob:
        return is_archive(blob)
