"""HTTP with one registry: TLS, logins, redirects, and the patience that networks need.

The PyPI client for registries, `oras`, is not used: it can neither continue a download, nor tell
progress, nor mount blobs from other repositories, nor retry a request whose body is a file, and its
session is not for several threads. httpx has what one needs to do these well: streams, a pool of
connections that threads share, and a flow of requests that a login makes of one.

The rule: a registry is spoken to by TLS. Only one on a loopback address may be plain, and is asked
by TLS first; one elsewhere has to be allowed by the caller. A login goes to the registry alone, and
to the page that it names for tokens, if that is as safe.

Rule: OCI distribution specification 1.1; Docker's token authentication; RFC 7617 and RFC 6750;
containers-certs.d(5). Cost: one request more per repository for a token.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import os
import re
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar, final

import httpx

from unionfs.images import fields
from unionfs.images.credentials import Login
from unionfs.images.reference import DEFAULT_DOMAIN, Reference

_T = TypeVar("_T")

_DEFAULT_HOST: Final = "registry-1.docker.io"
"""Where the default registry's API is."""

_PASSING: Final = (429, 500, 502, 503, 504)
"""The answers that say: try again later."""

_LONGEST_PAUSE: Final = 60.0
_CERTIFICATES: Final = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_CHALLENGE: Final = re.compile(r'([a-z_]+)="?((?<=")[^"]*|[^",]+)')


class RegistryError(OSError):
    """A registry that cannot be used as asked; the message says why, and what helps."""


class Passing(Exception):
    """A failure that another try may not meet.

    about: what it is about. pause: seconds that the registry asks for.
    """

    def __init__(self, why: str, about: str, pause: float = 0) -> None:
        super().__init__(why)
        self.about = about
        self.pause = pause


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried again, and after how many seconds first; each time twice."""

    tries: int = 5
    pause: float = 0.5


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry answered, read to its end."""

    status: int
    headers: httpx.Headers
    content: bytes


@final
class Connection:
    """A repository on a registry; several threads may use it at once."""

    def __init__(
        self,
        reference: Reference,
        login: Login | None = None,
        *,
        plain: bool = False,
        certificates: Path | None = None,
        patience: Patience | None = None,
        timeout: float = 60,
    ) -> None:
        """Prepare one; nothing is asked before it is entered.

        plain: allow HTTP without TLS. certificates: a folder with the registry's own *.crt, and
        *.cert with *.key for the client; by default /etc/containers/certs.d/HOST and Docker's.
        timeout: seconds without a byte after which the connection counts as cut.
        """
        self._patience = patience or Patience()
        self._reference = reference
        self._host = _DEFAULT_HOST if reference.domain == DEFAULT_DOMAIN else reference.domain
        self._login = login
        self._plain = plain
        self._certificates = certificates
        self._timeout = timeout
        self._aborted = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Connect. Raises RegistryError."""
        loopback = _is_loopback(self._host)
        client = httpx.Client(
            verify=_trusted(self._host, self._certificates),
            timeout=self._timeout,
            follow_redirects=True,
            trust_env=not loopback,  # no proxy leads back to this machine
            headers={"User-Agent": "unionmount", "Accept-Encoding": "identity"},
        )
        self._client = self._exit.enter_context(client)
        scheme = "http" if self._plain else self._scheme_of_loopback() if loopback else "https"
        self._root = httpx.URL(f"{scheme}://{self._host}/v2/")
        self._client.auth = _Auth(self._root, self._login)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def name(self) -> str:
        """The repository with what was asked for, to tell in errors."""
        return str(self._reference)

    def _scheme_of_loopback(self) -> str:
        try:
            self._client.get(f"https://{self._host}/v2/")
        except httpx.TransportError as error:
            if not _is_distrust(error):
                return "http"
        return "https"

    def abort(self) -> None:
        """End what other threads do here, now and from now on: it raises InterruptedError."""
        self._aborted.set()
        for each in [*self._sockets]:
            with suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RDWR)

    def keep_trying(self, action: Callable[[], _T]) -> _T:
        """What an action returns once it does not fail in passing."""
        failures = 0
        while True:
            try:
                return action()
            except Passing as error:
                failures += 1
                self.wait(failures, error)

    def wait(self, failures: int, error: Passing) -> None:
        """Wait before another try. Raises RegistryError when there were enough."""
        if failures > self._patience.tries:
            message = f"{error}; gave up after {failures} tries"
            raise RegistryError(errno.EIO, message, error.about)
        pause = max(self._patience.pause * 2 ** (failures - 1), error.pause)
        if self._aborted.wait(min(pause, _LONGEST_PAUSE)):
            raise InterruptedError(errno.EINTR, "stopped", self.name)

    def request(
        self,
        method: str,
        path: str | httpx.URL,
        expected: Iterable[int],
        *,
        headers: Mapping[str, str] | None = None,
        content: Iterable[bytes] | bytes | None = None,
    ) -> Answer:
        """Send a request, and read the answer, which is no blob.

        path: below the repository, or whole. expected: the answers that are returned; the others
        raise RegistryError, or Passing.
        """
        with self.streamed(method, path, expected, headers=headers, content=content) as response:
            body = b""
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > fields.LARGEST:
                    message = f"the registry's answer is larger than {fields.LARGEST} bytes"
                    raise RegistryError(errno.EFBIG, message, self.name)
            return Answer(response.status_code, response.headers, body)

    @contextmanager
    def streamed(
        self,
        method: str,
        path: str | httpx.URL,
        expected: Iterable[int],
        *,
        headers: Mapping[str, str] | None = None,
        content: Iterable[bytes] | bytes | None = None,
    ) -> Iterator[httpx.Response]:
        """As `request`, but the body has still to be read; a cut in that raises Passing."""
        url = path if isinstance(path, httpx.URL) else self.url(path)
        told = {"trace": self._trace}
        try:
            with self._client.stream(
                method, url, headers=headers, content=content, extensions=told
            ) as response:
                if response.status_code not in expected:
                    response.read()
                    raise self._refusal(response)
                yield response
        except httpx.TransportError as error:
            if self._aborted.is_set():
                raise InterruptedError(errno.EINTR, "stopped", self.name) from None
            raise self._failure(error) from None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the sockets of connections, for `abort`."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(info["return_value"].get_extra_info("socket"))
            if self._aborted.is_set():
                self.abort()

    def url(self, path: str) -> httpx.URL:
        """The URL of a path below the repository; of one that an answer gave, also whole."""
        return self._root.join(f"{self._reference.path}/").join(path)

    def _refusal(self, response: httpx.Response) -> Exception:
        """What an answer means that was not hoped for."""
        status, said, about = response.status_code, _said(response), self.name
        if status in _PASSING:
            after = response.headers.get("Retry-After", "")
            pause = int(after) if after.isdigit() else 0
            return Passing(f"the registry answered {said}", about, pause)
        if status in (401, 403):
            if self._login is None:
                hint = f"log in: podman login {self._reference.domain}"
            else:
                hint = "the login that is kept for it may not do that"
            return RegistryError(errno.EACCES, f"the registry refuses ({said}); {hint}", about)
        if status == 404:
            return FileNotFoundError(errno.ENOENT, f"not on the registry ({said})", about)
        return RegistryError(errno.EIO, f"the registry answered {said}", about)

    def _failure(self, error: httpx.TransportError) -> Exception:
        """What a failed exchange means."""
        if _is_distrust(error):
            message = (
                f"the registry's certificate is not trusted ({error}); put its authority's into "
                f"{_CERTIFICATES[0]}/{self._reference.domain}/ca.crt"
            )
            return RegistryError(errno.EACCES, message, self._reference.domain)
        if isinstance(error, httpx.ConnectError):
            reason = str(error).partition("] ")[2] or str(error)
            message = f"cannot connect ({reason}); check the name, and that the registry runs"
            return RegistryError(errno.ECONNREFUSED, message, self._reference.domain)
        reason = str(error) or type(error).__name__
        return Passing(f"the connection was cut ({reason})", self.name)


@final
class _Auth(httpx.Auth):
    """Answers a registry's question who asks, by a login or a token, and remembers the answer."""

    def __init__(self, root: httpx.URL, login: Login | None) -> None:
        self._root = root
        self._login = login
        self._answer: str | None = None
        self._scopes: dict[str, None] = {}
        self._asking = threading.Lock()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request, and again with an answer when the registry asks for one."""
        if _origin(request.url) != _origin(self._root):
            yield request
            return
        used = self._answer
        if used:
            request.headers["Authorization"] = used
        response = yield request
        if response.status_code != 401:
            return
        with self._asking:  # one token for all threads, for what each of them needs
            if self._answer == used or not self._is_covered(response):
                self._answer = yield from self._ask(response)
            if self._answer is None or self._answer == used:
                return
            request.headers["Authorization"] = self._answer
        yield request

    def _is_covered(self, response: httpx.Response) -> bool:
        """Whether the answer of another thread is for what this challenge is about, too."""
        return all(
            scope in self._scopes
            for challenge in response.headers.get_list("WWW-Authenticate")
            for scope in _scopes(dict(_CHALLENGE.findall(challenge)))
        )

    def _ask(
        self, response: httpx.Response
    ) -> Generator[httpx.Request, httpx.Response, str | None]:
        """The answer to a challenge; None where there is none."""
        for challenge in response.headers.get_list("WWW-Authenticate"):
            scheme, _, rest = challenge.strip().partition(" ")
            if scheme.lower() == "bearer":
                return (yield from self._token(dict(_CHALLENGE.findall(rest))))
            if scheme.lower() == "basic" and self._login and self._login.username:
                return _basic(self._login)
        return None

    def _token(
        self, challenge: Mapping[str, str]
    ) -> Generator[httpx.Request, httpx.Response, str | None]:
        """A token for all that was asked for until now."""
        realm = httpx.URL(challenge.get("realm", ""))
        if realm.scheme != "https" and self._root.scheme == "https":
            message = f"the registry wants the login sent unencrypted, to {realm}"
            raise RegistryError(errno.EACCES, message, self._root.host)
        self._scopes |= dict.fromkeys(_scopes(challenge))
        service = challenge.get("service", "")
        login = self._login or Login()
        if login.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": "unionmount",
                "service": service,
                "scope": " ".join(self._scopes),
            }
            request = httpx.Request("POST", realm, data=form)
        else:
            headers = {"Authorization": _basic(login)} if login.username else {}
            asked = {"service": service, "scope": [*self._scopes]}
            request = httpx.Request("GET", realm, params=asked, headers=headers)
        response = yield request
        response.read()
        if response.status_code in (401, 403):
            return None
        try:
            response.raise_for_status()
            told = response.json()
            return f"Bearer {told.get('token') or told['access_token']}"
        except (httpx.HTTPStatusError, ValueError, KeyError, AttributeError):
            raise Passing(f"it gave no token ({_said(response)})", str(realm)) from None


def _scopes(challenge: Mapping[str, str]) -> list[str]:
    """What a token has to be for, as kind:name:actions; registries order the actions at random."""
    scopes = []
    for scope in challenge.get("scope", "").split():
        about, colon, actions = scope.rpartition(":")
        scopes.append(f"{about}{colon}{','.join(sorted(actions.split(',')))}")
    return scopes


def _basic(login: Login) -> str:
    coded = base64.b64encode(f"{login.username}:{login.password}".encode())
    return f"Basic {coded.decode()}"


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _said(response: httpx.Response) -> str:
    """An answer in one line: its number, and the registry's words for it."""
    words = response.reason_phrase
    try:
        errors = response.json()["errors"]
        words = "; ".join(str(error.get("message") or error["code"]) for error in errors) or words
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # not every answer is a registry's own
    return f"{response.status_code} {words}".rstrip()


def _is_loopback(host: str) -> bool:
    name = httpx.URL(f"https://{host}/").host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_distrust(error: BaseException | None) -> bool:
    """Whether an exchange failed since a certificate is not trusted."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _trusted(host: str, certificates: Path | None) -> ssl.SSLContext:
    """Whom to trust: the system's authorities, and those put down for this registry."""
    context = ssl.create_default_context()
    for folder in [certificates] if certificates else [Path(top, host) for top in _CERTIFICATES]:
        try:
            names = sorted(os.listdir(folder))
            for name in names:
                path = folder / name
                if path.suffix == ".crt":
                    context.load_verify_locations(path)
                elif path.suffix == ".cert":
                    context.load_cert_chain(path, path.with_suffix(".key"))
        except (FileNotFoundError, NotADirectoryError) as error:
            if certificates:
                raise OSError(error.errno, "no such folder of certificates", str(folder)) from None
        except ssl.SSLError as error:
            raise OSError(errno.EINVAL, f"no certificate ({error.reason})", str(folder)) from None
    return context
