"""Logins are found where podman and Docker leave them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from unionfs.images.credentials import Login, find_login
from unionfs.images.reference import Reference


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, and no login of the machine's."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def login(text: str) -> Login | None:
    return find_login(Reference.parse(text))


def test_nobody_has_logged_in(home: Path) -> None:
    assert login("host.com/app") is None


def test_the_first_file_that_knows_the_registry(home: Path) -> None:
    write(home / ".docker/config.json", {"auths": {"host.com": entry("docker", "d")}})
    assert login("host.com/app") == Login("docker", "d")
    write(home / ".config/containers/auth.json", {"auths": {"host.com": entry("podman", "p")}})
    assert login("host.com/app") == Login("podman", "p")
    write(home / "run/containers/auth.json", {"auths": {"other.com": entry("run", "r")}})
    assert login("host.com/app") == Login("podman", "p")
    assert login("other.com/app") == Login("run", "r")


def test_a_file_that_is_named_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"auths": {"host.com": entry("docker", "d")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "mine.json"))
    assert login("host.com/app") is None
    write(home / "mine.json", {"auths": {"host.com": entry("me", "a:b")}})
    assert login("host.com/app") == Login("me", "a:b")


def test_the_longest_match_wins(home: Path) -> None:
    auths = {
        "host.com:5000": entry("all", "1"),
        "host.com:5000/team": entry("team", "2"),
        "host.com:5000/team/app": entry("app", "3"),
    }
    write(home / ".config/containers/auth.json", {"auths": auths})
    assert login("host.com:5000/other") == Login("all", "1")
    assert login("host.com:5000/team/other:v1") == Login("team", "2")
    assert login("host.com:5000/team/app:v1") == Login("app", "3")
    assert login("host.com/team/app") is None


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io"])
def test_the_default_registry_by_each_of_its_names(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: entry("me", "pw")}})
    assert login("ubuntu") == Login("me", "pw")


def test_other_forms_of_an_entry(home: Path) -> None:
    auths = {
        "token.com": {"identitytoken": "t"},
        "https://old.com/v2/": entry("old", "o"),
        "plain.com": {"username": "u", "password": "p"},
        "empty.com": {},
    }
    write(home / ".docker/config.json", {"auths": auths})
    assert login("token.com/app") == Login(identity_token="t")
    assert login("old.com/app") == Login("old", "o")
    assert login("plain.com/app") == Login("u", "p")
    assert login("empty.com/app") is None


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("{", "no JSON"),
        ({"auths": ["a"]}, "not an object"),
        ({"credsStore": 1}, "not a string"),
        ({"auths": {"host.com": {"auth": "!"}}}, "no USER:PASSWORD"),
        ({"auths": {"host.com": {"auth": "YQ=="}}}, "no USER:PASSWORD"),
    ],
)
def test_a_broken_file_is_named(home: Path, content: Any, wrong: str) -> None:
    path = home / ".docker/config.json"
    write(path, content)
    with pytest.raises(OSError, match=wrong) as caught:
        login("host.com/app")
    assert caught.value.filename == str(path)


HELPER = """#!/bin/sh
read -r server
echo "$1 $server" >> "$HOME/asked"
case $server in
    host.com) echo '{"Username": "helped", "Secret": "s"}' ;;
    token.com) echo '{"Username": "<token>", "Secret": "t"}' ;;
    broken.com) echo nonsense ;;
    locked.com) echo "the keyring is locked"; exit 1 ;;
    *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"""


def test_a_credential_helper_is_asked(home: Path) -> None:
    write(home / "bin/docker-credential-test", HELPER)
    (home / "bin/docker-credential-test").chmod(0o755)
    config = {"credsStore": "test", "auths": {"host.com": {}, "kept.com": entry("k", "p")}}
    write(home / ".docker/config.json", config)
    assert login("host.com/app") == Login("helped", "s")
    assert login("token.com/app") == Login(identity_token="t")
    assert login("kept.com/app") == Login("k", "p")
    assert login("ubuntu") is None
    asked = (home / "asked").read_text().splitlines()
    assert asked[:2] == ["get host.com", "get token.com"]
    assert asked[-1] == "get https://index.docker.io/v1/"
    for name, wrong in (("locked", "the keyring is locked"), ("broken", "no login")):
        with pytest.raises(OSError, match=wrong):
            login(f"{name}.com/app")


def test_a_credential_helper_for_one_registry(home: Path) -> None:
    config = {"credHelpers": {"host.com": "absent"}, "auths": {"other.com": entry("o", "p")}}
    write(home / ".docker/config.json", config)
    assert login("other.com/app") == Login("o", "p")
    with pytest.raises(FileNotFoundError, match="not installed"):
        login("host.com/app")
