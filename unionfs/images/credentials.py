"""What registries are told about who asks: the logins that podman and Docker keep.

Looked up, until one has the registry: the file named by REGISTRY_AUTH_FILE (alone, where it is
set); podman's auth.json in the runtime folder, then in the configuration folder; Docker's
config.json. A file names a login by registry, or by a repository on it, the longest match first;
or a program that knows it, `docker-credential-NAME`.

Rule: containers-auth.json(5); Docker's `docker login`, "Credential helper protocol". Cost: a few
small files; a process where a credential helper is set.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from unionfs.images import fields
from unionfs.images.fields import InvalidDocument
from unionfs.images.reference import DEFAULT_DOMAIN, Reference

_DOCKERS_KEY: Final = "https://index.docker.io/v1/"
"""By what `docker login` files the default registry's login."""

_TOKEN_USER: Final = "<token>"
"""The user name by which a credential helper says that the secret is an identity token."""


@final
@dataclass(frozen=True, slots=True)
class Login:
    """A user's name and password; or an identity token, which registries change for others."""

    username: str = ""
    password: str = ""
    identity_token: str = ""


def find_login(reference: Reference) -> Login | None:
    """The login for a repository; None where nobody has logged in.

    Raises OSError where a file cannot be read, or a credential helper fails.
    """
    for path in _files():
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        try:
            login = _in_file(fields.parse(raw), reference)
        except InvalidDocument as error:
            message = f"{error.strerror}; log in anew, or mend it"
            raise OSError(errno.EINVAL, message, str(path)) from None
        if login is not None:
            return login
    return None


def _files() -> Iterator[Path]:
    """The files that may hold logins, the first to be asked first."""
    environ = os.environ
    if chosen := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(chosen)
        return
    home = Path(environ.get("HOME", "/"))
    yield Path(environ.get("XDG_RUNTIME_DIR", "/run"), "containers/auth.json")
    yield Path(environ.get("XDG_CONFIG_HOME", home / ".config"), "containers/auth.json")
    yield Path(environ.get("DOCKER_CONFIG", home / ".docker"), "config.json")


def _in_file(config: fields.Data, reference: Reference) -> Login | None:
    """The login for a repository in one file. Raises InvalidDocument, and OSError of a helper."""
    domains = _names_of(reference.domain)
    helpers = fields.texts(config.get("credHelpers") or {})
    helper = next((helpers[name] for name in domains if name in helpers), config.get("credsStore"))
    if helper:
        server = _DOCKERS_KEY if reference.domain == DEFAULT_DOMAIN else reference.domain
        login = _from_helper(fields.text(helper), server)
        if login is not None:
            return login
    auths = fields.mapping(config.get("auths") or {})
    logins = {_key(name): entry for name, entry in auths.items()}
    for domain in domains:
        parts = f"{domain}/{reference.path}".split("/")
        for length in range(len(parts), 0, -1):
            entry = logins.get("/".join(parts[:length]))
            if entry:
                return _of_entry(entry)
    return None


def _names_of(domain: str) -> tuple[str, ...]:
    return (domain, "index.docker.io") if domain == DEFAULT_DOMAIN else (domain,)


def _key(name: str) -> str:
    """A registry or repository without what old versions of Docker put around it."""
    bare = name.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2")


def _of_entry(entry: Any) -> Login:
    try:
        known = fields.mapping(entry)
        token = fields.text(known.get("identitytoken") or "")
        coded = base64.b64decode(fields.text(known.get("auth") or ""), validate=True)
        username, colon, password = coded.decode().rstrip("\0").partition(":")
        if not token and not colon:
            username, password = fields.text(known["username"]), fields.text(known["password"])
    except (KeyError, binascii.Error, UnicodeDecodeError):
        raise InvalidDocument("a login in it is no USER:PASSWORD in base64") from None
    return Login(username, password, token)


def _from_helper(helper: str, server: str) -> Login | None:
    """What a credential helper knows about a server; None where it knows nothing."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, check=False
        )
    except FileNotFoundError:
        message = "the credential helper is not installed; install it, or log in without it"
        raise OSError(errno.ENOENT, message, program) from None
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        if "credentials not found" in said:
            return None
        reason = said or done.stderr.decode(errors="replace").strip() or "no reason given"
        raise OSError(errno.EACCES, f"the credential helper failed: {reason}", program)
    try:
        answer = json.loads(said)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise OSError(errno.EINVAL, "the credential helper's answer is no login", program) from None
    if username == _TOKEN_USER:
        return Login(identity_token=secret)
    return Login(username, secret)
