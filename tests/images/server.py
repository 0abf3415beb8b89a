"""A real registry on a loopback port, and a proxy before it that makes trouble when told to.

The registry is Debian's docker-registry, with a configuration and a folder of the test's own; it
says on which port it listens. The proxy passes every exchange on and keeps a list of them, so that
a test can count what was sent; a `Fault` says which exchange goes wrong, how, and how often.

Cost: 30 ms a registry.
"""

import base64
import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "tester", "pass:word"
SERVICE, ISSUER = "the registry", "the token server"
_LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_CHUNK = 1 << 16


@contextmanager
def registry(
    folder: Path, *, login: bool = False, tls: bool = False, tokens: str = ""
) -> Iterator[str]:
    """Run a registry; gives its HOST:PORT. login: it wants USER and PASSWORD. tls: by a certificate
    of an authority that is in `folder/authority/ca.crt`. tokens: the page of a `TokenServer`, with
    the same folder, for whose tokens it asks."""
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "formatter": "json"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    if login:
        made = _printed("htpasswd", "-Bbn", USER, PASSWORD)
        (folder / "htpasswd").write_text(made)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    if tokens:
        config["auth"] = {
            "token": {
                "realm": tokens,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(folder / "authority/ca.crt"),
            }
        }
    if tls:
        certificate, key = _certificate(folder)
        config["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
    (folder / "config.yml").write_text(json.dumps(config))  # YAML is JSON, and more
    command = ("docker-registry", "serve", str(folder / "config.yml"))
    # it takes REGISTRY_AUTH_FILE, which tells clients of logins, for a setting of its own
    env = {name: text for name, text in os.environ.items() if not name.startswith("REGISTRY_")}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            yield f"localhost:{_port(process.stderr)}"
        finally:
            process.kill()


def _port(log: Any) -> str:
    said = []
    for line in log:
        said.append(line)
        if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
            # nobody reads on: whatever the registry logs must not fill the pipe and stop it
            threading.Thread(target=log.read, daemon=True).start()
            return found[1]
    raise AssertionError(f"the registry did not start: {''.join(said)}")


def _certificate(folder: Path) -> tuple[Path, Path]:
    authority = folder / "authority"
    authority.mkdir()
    certificate, key = authority / "ca.crt", folder / "server.key"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    subject = ("-subj", "/CN=localhost", "-addext", names)
    _printed(*request, *subject, "-keyout", str(key), "-out", str(certificate))
    return certificate, key


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve from another thread; gives HOST:PORT."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@final
class TokenServer:
    """Gives the tokens that a registry of the same folder believes: they are signed by the key of
    the authority there. Who does not log in may pull, and nothing else.

    scopes: what was asked for, request by request.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        certificate, self._key = _certificate(folder)
        text = certificate.read_text()
        self._chain = ["".join(text.split("-----")[2].split())]
        self.scopes: list[list[str]] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; gives the page for tokens."""
        handler = type("TokenHandler", (_TokenHandler,), {"server_of_tokens": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, _serving(server) as place:
            yield f"http://{place}/token"

    def token(self, scopes: list[str], *, known: bool) -> str:
        """A JSON web token for scopes such as repository:NAME:pull,push (RFC 7519, RFC 7515)."""
        self.scopes.append(scopes)
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [each for each in actions.split(",") if known or each == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": USER if known else "",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 300,
            "jti": secrets.token_hex(),
            "access": access,
        }
        head = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = ".".join(_coded(json.dumps(part).encode()) for part in (head, claims))
        command = ("openssl", "dgst", "-sha256", "-sign", str(self._key))
        done = subprocess.run(command, input=signed.encode(), capture_output=True, check=True)
        return f"{signed}.{_coded(done.stdout)}"


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class _TokenHandler(BaseHTTPRequestHandler):
    server_of_tokens: TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("Authorization")
        assert query["service"] == [SERVICE]
        if given not in (None, _LOGIN):
            self.send_error(401)
            return
        token = self.server_of_tokens.token(query.get("scope", []), known=given is not None)
        body = json.dumps({"token": token, "expires_in": 300}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@final
@dataclass(slots=True)
class Fault:
    """What goes wrong with the exchanges that match, as long as `times` is left.

    after: bytes of the answer, or of the request where it has a body, before the connection is cut;
    None for no cut. status: an answer in place of the registry's. flip: a byte of the answer is
    another one. whole: as from a server that knows no ranges. hold: the answer stops there until
    the event is set; `held` is set then.
    """

    method: str
    path: str
    times: int = 1
    after: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    flip: bool = False
    whole: bool = False
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method == method and bool(re.search(self.path, path))


@final
@dataclass(frozen=True, slots=True)
class Exchange:
    """What passed the proxy. received and sent: bytes of bodies, as the proxy sees it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    received: int
    sent: int


@final
class Proxy:
    """The proxy before one registry. tokens: it wants a token, which it gives for the login."""

    def __init__(self, target: str, *, tokens: bool = False) -> None:
        self.target = target
        self.tokens: set[str] | None = set() if tokens else None
        self.faults: list[Fault] = []
        self.exchanges: list[Exchange] = []
        self.asked: list[dict[str, list[str]]] = []
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()

    def fault(self, method: str, path: str, **what: Any) -> Fault:
        """Let an exchange go wrong."""
        made = Fault(method, path, **what)
        self.faults.append(made)
        return made

    def of(self, method: str, path: str = "") -> list[Exchange]:
        """The exchanges so far that match."""
        with self.lock:
            return [
                each
                for each in self.exchanges
                if each.method == method and re.search(path, each.path)
            ]

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; gives the proxy's HOST:PORT."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = False  # the end waits for them, and what they keep
            try:
                with _serving(server) as place:
                    yield place
            finally:
                self._end()

    def _end(self) -> None:
        """Let go of everything that a client holds open, and that a fault holds up."""
        for fault in self.faults:
            if fault.hold:
                fault.hold.set()
        with self.lock:
            for each in self.open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def setup(self) -> None:
        super().setup()
        with self.proxy.lock:
            self.proxy.open.add(self.connection)

    def finish(self) -> None:
        with self.proxy.lock:
            self.proxy.open.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionResetError):
            super().handle()

    def _serve(self) -> None:
        if self.path.startswith("/token"):
            self._give_token()
        elif self.proxy.tokens is not None and not self._has_token():
            host = self.headers["Host"]
            name = re.match(r"/v2/(.*?)/(?:blobs|manifests)/", self.path)
            scopes = [f"repository:{name[1]}:pull,push"] if name else []
            scopes += [
                f"repository:{source}:pull"
                for source in parse_qs(urlsplit(self.path).query).get("from", [])
            ]
            ask = f'Bearer realm="http://{host}/token",service="test",scope="{" ".join(scopes)}"'
            self._drop_body()
            self._answer(401, {"WWW-Authenticate": ask}, b"")
        else:
            self._pass_on()

    def _give_token(self) -> None:
        proxy = self.proxy
        query = parse_qs(urlsplit(self.path).query)
        if self.command == "POST":
            query = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        known = self.headers.get("Authorization") == _LOGIN or query.get("refresh_token") == ["id"]
        proxy.asked.append(query)
        if not known:
            self._answer(401, {}, b"{}")
            return
        token = secrets.token_hex()
        assert proxy.tokens is not None
        proxy.tokens.add(token)
        self._answer(200, {}, json.dumps({"token": token}).encode())

    def _has_token(self) -> bool:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        assert self.proxy.tokens is not None
        return kind == "Bearer" and token in self.proxy.tokens

    def _drop_body(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self) -> None:
        proxy = self.proxy
        with proxy.lock:
            fault = next((f for f in proxy.faults if f.fits(self.command, self.path)), None)
            if fault:
                fault.times -= 1
        if fault and fault.status:
            self._drop_body()
            self._keep(fault.status, 0, 0)
            self._answer(fault.status, fault.headers, b"")
            return
        with _connection(proxy.target) as upstream:
            received = self._send_up(upstream, fault)
            if fault and fault.after is not None and received:
                self._keep(0, received, 0)
                self._cut()
                return
            answer = upstream.getresponse()
            sent = self._send_down(answer, fault)
            self._keep(answer.status, received, sent)

    def _send_up(self, upstream: http.client.HTTPConnection, fault: Fault | None) -> int:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
        if self.proxy.tokens is None and "Authorization" in self.headers:
            headers["Authorization"] = self.headers["Authorization"]
        if fault and fault.whole:
            headers.pop("Range", None)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        limit = length if fault is None or fault.after is None else min(length, fault.after)
        return self._copy(self.rfile.read, upstream.send, limit)

    def _send_down(self, answer: http.client.HTTPResponse, fault: Fault | None) -> int:
        length = int(answer.headers.get("Content-Length") or 0)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name not in ("Date", "Server"):
                self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command == "HEAD":
            return 0
        limit = length if fault is None or fault.after is None else fault.after

        def write(chunk: bytes) -> None:
            if fault and fault.flip:
                chunk, fault.flip = bytes([chunk[0] ^ 1]) + chunk[1:], False
            self.wfile.write(chunk)

        sent = self._copy(answer.read, write, limit)
        if fault and fault.hold:
            fault.held.set()
            fault.hold.wait()
        if limit < length:
            self._cut()
        return sent

    def _copy(
        self, read: Callable[[int], bytes], write: Callable[[bytes], object], length: int
    ) -> int:
        done = 0
        while done < length and (chunk := read(min(_CHUNK, length - done))):
            write(chunk)
            done += len(chunk)
        return done

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _keep(self, status: int, received: int, sent: int) -> None:
        made = Exchange(self.command, self.path, dict(self.headers), status, received, sent)
        with self.proxy.lock:
            self.proxy.exchanges.append(made)


@contextmanager
def _connection(target: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(target)
    try:
        yield connection
    finally:
        connection.close()
