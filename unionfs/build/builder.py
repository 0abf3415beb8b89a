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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Final, Literal, final

from unionfs.build import dockerfile
from unionfs.build.cache import Cache, Made, key_of
from unionfs.build.copying import Owner, Source, Target
from unionfs.build.dockerfile import BuildError, Instruction, expanded
from unionfs.build.ignore import Ignore
from unionfs.build.mounts import Mount, mounts, origins
from unionfs.build.running import Lender, container, script_place, without_mount_points
from unionfs.build.settings import CHANGES, command, environment, working_directory
from unionfs.containers import Containers, bundle
from unionfs.containers.bundle import RunOptions, find_account
from unionfs.containers.runtime import Runtime
from unionfs.images import library
from unionfs.images.documents import Config, Descriptor, History, RootFs
from unionfs.images.library import Image
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.layers import apply_onto, is_archive
from unionfs.stack import LayerStack
from unionfs.store import NotFound, Store
from unionfs.union import UnionFS

SCRATCH: Final = "scratch"
"""The name of the image that has nothing."""
_STANDARD_ERROR: Final = 2
_URLS: Final = ("http://", "https://", "ftp://", "git://", "git@")
_NOTHING: Final = Ignore(())
_FREE_ARGUMENTS: Final = frozenset(
    name
    for each in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (each, each.lower())
)
"""Build arguments that RUN has without an ARG."""

Network = Literal["none", "host"]


@final
@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. arguments: values for ARG. target: the stage that is wanted; None: the last.

    cached: whether steps are taken from earlier builds. network: of RUN. runtime: its program.
    clamp: no file's time, and not the image's, is later than that; seconds since 1970.
    output: the descriptor that what RUN prints goes to. platform: for which the image is; None:
    this machine's. labels: more than the Dockerfile gives. secrets: content by ID, for RUN.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    cached: bool = True
    network: Network = "none"
    runtime: str | None = None
    clamp: int | None = None
    output: int = _STANDARD_ERROR
    platform: Platform | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


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
        source = os.fspath(context), Source(files, _ignored(files))
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
        context: tuple[str, Source],
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
        self._target = options.platform or Platform.of_this_machine()
        self._global = self._platforms()
        for one in before:
            self._declare(self._global, one, self._global)
        self._names = [self._stage_name(stage[0]) for stage in stages]
        self._check_arguments([*before, *(one for stage in stages for one in stage)])
        self._count = 0
        self._number = 0
        self._wanted = -1

    def _platforms(self) -> dict[str, str]:
        """The arguments that every Dockerfile may declare."""
        return {
            f"{of}{part}": text
            for of, platform in (("BUILD", Platform.of_this_machine()), ("TARGET", self._target))
            for part, text in (
                ("PLATFORM", str(platform)),
                ("OS", platform.os),
                ("ARCH", platform.architecture),
                ("VARIANT", platform.variant),
            )
        }

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
                texts = self._from(one)[:1] if one.name == "FROM" else origins(one)
                others = [self._stage(text, number) for text in texts]
                new = {other for other in others if other is not None} - needed
                needed |= new
                pending += new
        self._count = sum(len(self._stages[number]) for number in needed)
        self._wanted = found
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
            for text in origins(one):
                if (other := self._stage(text, number)) is not None:
                    self.image(other)
        base = self._base(first, number)
        self._begin(first)
        state = _State(base.config, base.manifest.layers, {}) if base else self._scratch()
        self._done(first, cached=False)
        settings = state.config.settings
        triggers = [dockerfile.trigger(text, first.where) for text in settings.on_build]
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
        if number == self._wanted:
            settings = state.config.settings
            labels = {**settings.labels, **self._options.labels}
            state.config = replace(state.config, settings=replace(settings, labels=labels))
        return library.add(self._store, state.config, state.layers)

    def _begin(self, one: Instruction) -> None:
        self._number += 1
        self._watch(Step(self._number, self._count, str(one)))

    def _done(self, one: Instruction, *, cached: bool) -> None:
        self._watch(Step(self._number, self._count, str(one), done=True, cached=cached))

    def _scratch(self) -> _State:
        of = self._target
        config = Config(
            architecture=of.architecture, os=of.os, variant=of.variant, rootfs=RootFs(())
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
            return library.find(self._store, text).image(platform or self._options.platform)
        except NotFound:
            message = f"{text} is not in the store; run: unionmount pull {text}"
            raise one.error(message) from None
        except FileNotFoundError as error:
            raise one.error(f"{text}: {error.strerror}") from None

    def _origin(self, one: Instruction, text: str, number: int) -> Image:
        """The image of a stage before one, or of the store."""
        other = self._stage(text, number)
        return self._stored(one, text) if other is None else self.image(other)

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
            made, cached = self._run(state, one, number)
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
        known_as = key_of(state.config.rootfs.diff_ids, self._options.clamp, *key)
        found = self._cache.get(known_as) if self._options.cached else None
        if found:
            return found, True
        with self._container(state) as name:
            work(name)
            layer, diff_id = self._containers.layer(name, self._options.clamp)
        made = Made(layer, diff_id, self._now())
        self._cache.put(known_as, made)
        return made, False

    @contextmanager
    def _container(self, state: _State) -> Iterator[str]:
        """A container of the image so far, which is removed at the end."""
        image = self._so_far(state)
        with container(self._store, image, library.unpack(self._store, image)) as name:
            yield name

    def _so_far(self, state: _State) -> Image:
        """A stage so far, as an image."""
        return library.add(self._store, state.config, state.layers)

    @contextmanager
    def _files(self, name: str) -> Iterator[UnionFS]:
        """A container's files, to write without a mount."""
        with self._store.snapshots.directories(name).open() as stack:
            yield UnionFS(stack)

    @contextmanager
    def _image_files(self, state: _State) -> Iterator[UnionFS | None]:
        """The files of the image so far, to read; None of an image without layers."""
        chain = library.unpack(self._store, self._so_far(state))
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

        def work(name: str) -> None:
            with self._files(name) as union:
                Target(union, (0, 0)).make_directories(path)

        return self._layer(state, ("WORKDIR", path), work)

    def _run(self, state: _State, one: Instruction, number: int) -> tuple[Made, bool]:
        settings = state.config.settings
        words = command(settings, one)
        if one.names_interpreter:
            words = (script_place(one),)
        asked = mounts(one, state.variables)
        known = environment(settings)
        given = {name: self._options.arguments.get(name) for name in _FREE_ARGUMENTS}
        free = {name: value for name, value in given.items() if value is not None}
        extra = {
            name: value for name, value in (free | state.arguments).items() if name not in known
        }
        env = tuple(f"{name}={value}" for name, value in sorted(extra.items()))
        network = self._network(one)

        def work(name: str) -> None:
            lender = Lender(
                self._store,
                self._context,
                self._so_far(state),
                lambda text: self._origin(one, text, number),
                self._options.secrets,
            )
            with lender.lent(one, asked, settings) as lent:
                options = RunOptions(
                    command=words,
                    entrypoint=(),
                    env=(*env, *lent.env),
                    volumes=tuple(lent.volumes),
                    tmpfs=tuple(lent.tmpfs),
                    network=network,
                )
                targets = [mount["destination"] for mount in bundle.mounts(settings, options)]
                runtime = Runtime.find(self._store, self._options.runtime)
                with without_mount_points(lambda: self._files(name), targets):
                    status = runtime.run(name, options, output=self._options.output)
            if status:
                raise one.error(f"the command ended with {status}: {one.text}")

        # proxies make no difference to what a command makes, so they are not part of the key
        declared = sorted((name, extra[name]) for name in extra if name in state.arguments)
        key = ("RUN", words, one.script, known, declared, settings.user, settings.working_dir)
        return self._layer(state, (*key, *self._lent(one, asked, number)), work)

    def _network(self, one: Instruction) -> Network:
        asked = one.flags.get("network", "default")
        if asked == "none":
            return "none"
        if asked not in ("default", self._options.network):
            raise one.error(f"--network={asked} is not allowed here; see build --network")
        return self._options.network

    def _lent(self, one: Instruction, asked: Sequence[Mount], number: int) -> Iterator[object]:
        """What a command's layer depends on of its mounts: neither caches' content nor secrets."""
        for mount in asked:
            yield astuple(mount)
            if mount.kind == "bind":
                with self._source(one, mount.origin, number) as source:
                    yield source.fingerprint(source.named(mount.source))

    def _copy(self, state: _State, one: Instruction, number: int) -> tuple[Made, bool]:
        """COPY and ADD."""
        variables = state.variables
        words = one.sources(variables)
        if not words or len(words) + len(one.documents) < 2:
            raise one.error(f"write {one.name} SOURCE… DESTINATION")
        *texts, end = words
        if "checksum" in one.flags:
            raise one.error("--checksum is for addresses, which are not fetched; leave it out")
        urls = [text for text in texts if one.name == "ADD" and text.startswith(_URLS)]
        if urls:
            raise one.error(f"{urls[0]} is not fetched; download it, and ADD the file")
        place = working_directory(state.config.settings, end)
        mode = self._mode(one, variables)
        owner = self._owner(state, one, expanded(one.flags.get("chown", ""), variables))
        documents = [
            (each.name, each.text if each.plain else expanded(each.text, variables))
            for each in one.documents
        ]
        with self._source(one, one.flags.get("from", ""), number) as source:
            paths = [path for text in texts for path in source.named(text)]
            count = max(len(texts), len(paths)) + len(documents)
            if count > 1 and not place.endswith("/"):
                raise one.error("several sources go into a directory; end the destination with /")
            archives = [path for path in paths if one.name == "ADD" and _unpacks(source, path)]
            files = [path for path in paths if path not in archives]

            def work(name: str) -> None:
                if files or documents:
                    with self._files(name) as union:
                        target = Target(union, owner, mode)
                        target.copy(source, files, place)
                        for called, text in documents:
                            target.write(called, os.fsencode(text), place)
                for path in archives:
                    self._unpack(name, source, path, place)

            key = (one.name, source.fingerprint(paths), documents, place, owner, mode)
            return self._layer(state, key, work)

    def _unpack(self, name: str, source: Source, path: str, place: str) -> None:
        mount = self._containers.mount(name)
        try:
            with open(source.union.os_open(f"/{path}", os.O_RDONLY), "rb") as blob:
                apply_onto(blob, mount.target, under=place)
        finally:
            mount.unmount()

    @contextmanager
    def _source(self, one: Instruction, text: str, number: int) -> Iterator[Source]:
        """Where files are taken from: a stage, an image of the store, or "", the context."""
        if not text:
            yield self._context[1]
            return
        image = self._origin(one, text, number)
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
