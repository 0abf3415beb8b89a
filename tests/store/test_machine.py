"""Any order of calls: the store says and keeps what a few dicts say."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from unionfs.store import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Store

NAMES = st.sampled_from(["a", "b", "c", "d"])
PARENTS = st.sampled_from(["", "a", "b", "c", "d"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"]))
CONTENT = st.sampled_from([b"", b"one", b"two", b"three"])


@dataclass
class Model:
    """A snapshot as the contract has it. content: what was written into it."""

    kind: str
    parent: str
    labels: dict[str, str]
    content: str


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store(self.folder)
        self.snapshots: dict[str, Model] = {}
        self.blobs: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.references: dict[str, set[str]] = {}
        self.count = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def expected(self, name: str, parent: str) -> type[OSError] | None:
        """What `prepare` and `view` raise, in containerd's order."""
        if parent and parent not in self.snapshots:
            return NotFound
        if parent and self.snapshots[parent].kind != "committed":
            return InvalidArgument
        return AlreadyExists if name in self.snapshots else None

    @rule(name=NAMES, parent=PARENTS, labels=LABELS, view=st.booleans())
    def make(self, name: str, parent: str, labels: dict[str, str], view: bool) -> None:
        act = self.store.snapshots.view if view else self.store.snapshots.prepare
        if error := self.expected(name, parent):
            with pytest.raises(error):
                act(name, parent, labels)
            return
        act(name, parent, labels)
        self.count += 1
        content = "" if view else str(self.count)
        if content:
            upper = self.store.snapshots.directories(name).upper
            with open(f"{upper}/{content}", "w"):
                pass
        self.snapshots[name] = Model("view" if view else "active", parent, labels, content)

    @rule(name=NAMES, key=NAMES, labels=LABELS)
    def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        found = self.snapshots.get(key)
        error: type[OSError] | None = None
        if name != key and name in self.snapshots:
            error = AlreadyExists
        elif found is None:
            error = NotFound
        elif found.kind != "active":
            error = FailedPrecondition
        if error:
            with pytest.raises(error):
                self.store.snapshots.commit(name, key, labels)
            return
        assert found is not None
        self.store.snapshots.commit(name, key, labels)
        del self.snapshots[key]
        self.snapshots[name] = Model("committed", found.parent, labels, found.content)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name not in self.snapshots:
            with pytest.raises(NotFound):
                self.store.snapshots.remove(name)
        elif any(other.parent == name for other in self.snapshots.values()):
            with pytest.raises(FailedPrecondition):
                self.store.snapshots.remove(name)
        else:
            self.store.snapshots.remove(name)
            del self.snapshots[name]

    @rule(content=CONTENT, needs=CONTENT)
    def add(self, content: bytes, needs: bytes) -> None:
        digest = self.store.blobs.add(content).digest
        self.blobs[digest] = content
        needed = {other for other, data in self.blobs.items() if data == needs}
        self.store.blobs.refer(digest, needed)
        self.references[digest] = needed

    @rule(name=NAMES, data=st.data())
    @precondition(lambda self: self.blobs)
    def call(self, name: str, data: Any) -> None:
        digest = data.draw(st.sampled_from(sorted(self.blobs)))
        self.store.names.set(name, digest, "type", 0)
        self.names[name] = digest

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        if name in self.names:
            self.store.names.remove(name)
            del self.names[name]
        else:
            with pytest.raises(NotFound):
                self.store.names.remove(name)

    @rule()
    def collect(self) -> None:
        live: set[str] = set()
        pending = {*self.names.values()}
        while pending:
            digest = pending.pop()
            if digest not in live:
                live.add(digest)
                pending |= self.references[digest] & set(self.blobs)
        assert self.store.gc().blobs == len(self.blobs) - len(live)
        self.blobs = {digest: self.blobs[digest] for digest in live}

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store(self.folder)

    @invariant()
    def says_what_the_model_says(self) -> None:
        walked = {
            info.name: (info.kind, info.parent, dict(info.labels))
            for info in self.store.snapshots.walk()
        }
        assert walked == {
            name: (model.kind, model.parent, model.labels) for name, model in self.snapshots.items()
        }
        assert {blob.digest for blob in self.store.blobs} == set(self.blobs)
        assert {name.name: name.digest for name in self.store.names} == self.names

    @invariant()
    def keeps_what_the_model_says(self) -> None:
        for name in self.snapshots:
            line = []
            above = name
            while above:
                line.append(self.snapshots[above].content)
                above = self.snapshots[above].parent
            found = self.store.snapshots.directories(name)
            directories = [*([found.upper] if found.upper else []), *found.lower]
            files = [entry for directory in directories for entry in os.listdir(directory)]
            assert files == [content for content in line if content]
        for digest, content in self.blobs.items():
            with self.store.blobs.open(digest) as file:
                assert file.read() == content


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
