"""Images are pushed and pulled whole or not at all, and only what is missing is moved."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images.conftest import MakeImage
from tests.images.server import PASSWORD, USER, Proxy, TokenServer, registry
from tests.images.test_exchange import BASE, TOP, index_of
from tests.tree import file
from unionfs.images.bring import How, Moved
from unionfs.images.connection import Patience, RegistryError
from unionfs.images.documents import Descriptor
from unionfs.images.library import find
from unionfs.images.platform import Platform
from unionfs.images.reference import Reference
from unionfs.images.remote import Access, pull, push
from unionfs.store import Corrupt, NotFound, Store

EAGER = Access(patience=Patience(tries=3, pause=0))
MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Proxy]:
    """A proxy before an empty registry."""
    with registry(tmp_path / "registry") as running:
        yield Proxy(running)


def at(host: str, name: str) -> Reference:
    return Reference.parse(f"{host}/{name}")


def how(moved: tuple[Moved, ...]) -> list[str]:
    return sorted(each.how for each in moved)


def test_a_pushed_image_is_pulled(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    made = make_image(store, "app:v1", BASE, TOP)
    with server.running() as host:
        pushed = push(store, "app:v1", at(host, "app:v1"), access=EAGER)
        assert (pushed.target, how(pushed.moved)) == (made.target, ["sent"] * 3)
        brought = pull(other, at(host, "app:v1"), access=EAGER)
        found = find(other, f"{host}/app:v1")
        by_digest = at(host, f"app@{made.target.digest}")
        assert pull(other, by_digest, access=EAGER).names == (by_digest,)
    assert how(brought.moved) == ["fetched"] * 3
    assert (found.target, found.images) == (made.target, made.images)


def test_a_new_version_moves_its_changed_layer_alone(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    base = BASE | {"lib/large": file(os.urandom(3 * MIB))}
    make_image(store, "app:v1", base, {"app": file(b"one")})
    make_image(store, "app:v2", base, {"app": file(b"two")})
    with server.running() as host:
        push(store, "app:v1", at(host, "app:v1"), access=EAGER)
        pull(other, at(host, "app:v1"), access=EAGER)
        pushed = push(store, "app:v2", at(host, "app:v2"), access=EAGER)
        server.exchanges.clear()
        brought = pull(other, at(host, "app:v2"), access=EAGER)
    assert how(pushed.moved) == ["sent", "sent", "there"]
    assert how(brought.moved) == ["fetched", "fetched", "here"]
    fetched = sum(each.bytes for each in brought.moved)
    assert fetched == sum(each.sent for each in server.of("GET", "blobs"))
    assert fetched < 2000
    assert sum(each.size for each in brought.moved) > 3 * MIB


def test_layers_of_a_base_on_the_registry_are_mounted(
    server: Proxy, store: Store, make_image: MakeImage
) -> None:
    with server.running() as host:
        make_image(store, f"{host}/team/base:v1", BASE)
        make_image(store, f"{host}/app:v1", BASE, TOP)
        push(store, f"{host}/team/base:v1", access=EAGER)
        pushed = push(store, f"{host}/app:v1", access=EAGER)
    assert how(pushed.moved) == ["mounted", "sent", "sent"]


def test_a_broken_image_does_not_keep_others_from_being_pushed(
    server: Proxy, store: Store, make_image: MakeImage
) -> None:
    with server.running() as host:
        broken = make_image(store, f"{host}/base", BASE)
        os.unlink(store.blobs.path(broken.target.digest))
        make_image(store, f"{host}/app", TOP)
        push(store, f"{host}/app", access=EAGER)


def test_all_platforms_or_one(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    mine, theirs = Platform.of_this_machine(), Platform("linux", "s390x")
    both = [
        make_image(store, "one", BASE),
        make_image(store, "two", TOP, platform=theirs),
    ]
    index_of(store, "many", *both)
    with server.running() as host:
        name = at(host, "many")
        push(store, "many", name, access=EAGER)
        pull(other, name, access=EAGER)
        found = find(other, str(name.chosen()))
        assert ([image.platform for image in found.images], found.whole) == ([mine], False)
        pull(other, name, platform=theirs, access=EAGER)
        assert find(other, str(name.chosen())).whole
        with pytest.raises(FileNotFoundError, match="no image for linux/arm64; there are: "):
            pull(other, name, platform=Platform("linux", "arm64"), access=EAGER)
    with Store(Path(other.root).parent / "third") as third, server.running() as host:
        pull(third, at(host, "many"), every=True, access=EAGER)
        assert find(third, f"{host}/many").whole


def big(make_image: MakeImage, store: Store) -> tuple[Descriptor, str]:
    """An image with a layer of some MiB; that layer."""
    made = make_image(store, "big:v1", {"data": file(os.urandom(4 * MIB))})
    [layer] = made.images[0].manifest.layers
    return layer, layer.digest


def test_a_cut_download_goes_on_within_a_pull_and_in_the_next(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    layer, digest = big(make_image, store)
    watched: list[int] = []

    def watch(blob: Descriptor, size: int, _: How | None) -> None:
        if blob.digest == digest:
            watched.append(size)

    with server.running() as host:
        name = at(host, "big:v1")
        push(store, "big:v1", name, access=EAGER)
        server.fault("GET", digest, after=MIB)
        server.fault("GET", digest, after=MIB)
        server.fault("GET", digest, status=500, times=3)  # after the cut, as often as it is tried
        with pytest.raises(RegistryError, match="gave up"):
            pull(other, name, access=EAGER)
        assert [row.name for row in other.names] == []
        assert digest not in other.blobs

        server.exchanges.clear()
        brought = pull(other, name, access=EAGER, watch=watch)
    [moved] = [each for each in brought.moved if each.digest == digest]
    assert moved == Moved(digest, layer.size, "fetched", layer.size - 2 * MIB)
    [exchange] = server.of("GET", digest)
    assert (exchange.headers["Range"], exchange.sent) == (f"bytes={2 * MIB}-", moved.bytes)
    assert sum(watched) == layer.size


def test_a_wrong_layer_is_not_kept(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    _, digest = big(make_image, store)
    with server.running() as host:
        name = at(host, "big:v1")
        push(store, "big:v1", name, access=EAGER)
        server.fault("GET", digest, flip=True)
        with pytest.raises(Corrupt, match="get them anew") as caught:
            pull(other, name, access=EAGER)
        assert caught.value.filename == digest
        assert [row.name for row in other.names] == []
        other.gc()
        assert [*other.blobs] == []
        pull(other, name, access=EAGER)


def test_a_wrong_beginning_is_fetched_anew(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    layer, digest = big(make_image, store)
    with server.running() as host:
        name = at(host, "big:v1")
        push(store, "big:v1", name, access=EAGER)
        with pytest.raises(RuntimeError), other.blobs.writer(digest, layer.size) as writer:
            writer.write(bytes(MIB))
            raise RuntimeError
        pull(other, name, access=EAGER)
    assert digest in other.blobs


def test_what_fails_leaves_the_name_as_it_was(
    server: Proxy, store: Store, other: Store, make_image: MakeImage
) -> None:
    first = make_image(store, "app:v1", BASE)
    second = make_image(store, "app:v2", BASE, TOP)
    with server.running() as host:
        name = at(host, "app:latest")
        push(store, "app:v1", name, access=EAGER)
        pull(other, name, access=EAGER)
        server.fault("PUT", "manifests", status=503, times=9)
        with pytest.raises(RegistryError, match="gave up"):
            push(store, "app:v2", name, access=EAGER)
        server.faults.clear()
        assert pull(other, name, access=EAGER).target == first.target
        push(store, "app:v2", name, access=EAGER)
        server.fault("GET", second.images[0].manifest.layers[1].digest, status=404)
        with pytest.raises(FileNotFoundError, match="not on the registry"):
            pull(other, name, access=EAGER)
        assert find(other, str(name)).target == first.target


def test_a_login_is_found(
    store: Store,
    other: Store,
    make_image: MakeImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_image(store, "app", BASE)
    with registry(tmp_path / "registry", login=True, tls=True) as host:
        access = replace(EAGER, certificates=tmp_path / "registry/authority")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        with pytest.raises(RegistryError, match="log in: podman login localhost"):
            push(store, "app", at(host, "app"), access=access)
        plain = {"username": USER, "password": PASSWORD}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {host: plain}}))
        push(store, "app", at(host, "app"), access=access)
        pull(other, at(host, "app"), access=access)


def test_a_registry_that_wants_tokens(
    store: Store,
    other: Store,
    make_image: MakeImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Docker's registry itself checks the tokens: whose they are, and what they allow."""
    authfile = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(authfile))
    server = TokenServer(tmp_path / "registry")
    with server.running() as page, registry(tmp_path / "registry", tokens=page) as host:
        make_image(store, f"{host}/base", BASE)
        make_image(store, f"{host}/app", BASE, TOP)
        with pytest.raises(RegistryError, match="log in: podman login localhost"):
            push(store, f"{host}/base", access=EAGER)
        wrong = {"username": USER, "password": "guessed"}
        authfile.write_text(json.dumps({"auths": {host: wrong}}))
        with pytest.raises(RegistryError, match="the login that is kept for it may not do that"):
            push(store, f"{host}/base", access=EAGER)

        authfile.write_text(json.dumps({"auths": {host: wrong | {"password": PASSWORD}}}))
        push(store, f"{host}/base", access=EAGER)
        server.scopes.clear()
        pushed = push(store, f"{host}/app", access=EAGER)
        assert how(pushed.moved) == ["mounted", "sent", "sent"]
        asked = {scope for scopes in server.scopes for scope in scopes}
        assert asked == {"repository:app:pull", "repository:app:pull,push", "repository:base:pull"}

        authfile.unlink()
        pull(other, at(host, "app"), access=EAGER)


def test_what_is_nowhere(server: Proxy, store: Store) -> None:
    with pytest.raises(NotFound):
        push(store, "none")
    with server.running() as host, pytest.raises(FileNotFoundError, match="not on the registry"):
        pull(store, at(host, "none"), access=EAGER)
