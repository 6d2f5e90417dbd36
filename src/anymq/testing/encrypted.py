"""TLS in front of any broker, with authorities made for the occasion.

What stands here is the server's side of TLS as OpenSSL speaks it; behind it is the broker itself,
unencrypted. So every adapter can be tried against certificates that are right, and wrong in each
way, whatever broker is at hand.
"""

from __future__ import annotations

import contextlib
import datetime
import select
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anymq import registry
from anymq.errors import ConfigError
from anymq.local import Relay, relay_to
from anymq.tls import TLS_OPTIONS, tls_context
from anymq.url import Url

HOST = "127.0.0.1"
HANDSHAKE = 10.0  # seconds
TLS = tuple(TLS_OPTIONS)
_CLEAR, _SECURE = "endpoint=http://", "endpoint=https://"  # where the place is an option


class Authorities:
    """Our own authority and a strange one, as files that a URL can name. A context manager."""

    def __init__(self) -> None:
        import trustme

        self._folder = tempfile.TemporaryDirectory(prefix="anymq-tls-")
        self.ours, self.strange = trustme.CA(), trustme.CA()
        self.ca, self.strange_ca = self._write(self.ours), self._write(self.strange)

    def __enter__(self) -> Authorities:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _write(self, ca: Any) -> str:
        return self._file(ca.cert_pem)

    def _file(self, blob: Any) -> str:
        path = Path(self._folder.name) / f"{len(list(Path(self._folder.name).iterdir()))}.pem"
        path.touch(mode=0o600)
        blob.write_to_path(str(path))
        return str(path)

    def certificate(self, ca: Any, *names: str, expired: bool = False) -> tuple[str, str]:
        """A certificate of this authority and its key: two files."""
        now = datetime.datetime.now(datetime.UTC)
        days = datetime.timedelta(days=1)
        until = {"not_before": now - 2 * days, "not_after": now - days} if expired else {}
        issued = ca.issue_cert(*(names or (HOST,)), **until)
        return self._file(issued.cert_chain_pems[0]), self._file(issued.private_key_pem)

    def server(self, cert: str, key: str, *, mutual: bool = False) -> ssl.SSLContext:
        """How a server speaks that has this certificate; `mutual`: it wants one of ours."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(cert, key)
        context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
        return context


class Front:
    """Listens with TLS and passes on to a server, which may have `its_own`. `relay` stands before
    it and sees what really travels; connect to its port."""

    def __init__(
        self, host: str, port: int, at: int, context: ssl.SSLContext, its_own: ssl.SSLContext | None
    ) -> None:
        self._target, self._context, self._its_own = (host, port), context, its_own
        self._listener = socket.create_server((HOST, 0))
        threading.Thread(target=self._accept, name="tls", daemon=True).start()
        self.relay = Relay(HOST, self._listener.getsockname()[1], at)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.relay.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), name="tls", daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        near.settimeout(HANDSHAKE)
        with contextlib.suppress(OSError):  # one side went
            tls = self._context.wrap_socket(near, server_side=True, do_handshake_on_connect=False)
            try:
                tls.do_handshake()
            except ssl.SSLError:
                _let_it_be_read(tls)
                return
            with tls, self._connect() as far:
                tls.settimeout(None)
                _pass_on(tls, far)

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._target)
        if self._its_own is None:
            return plain
        return self._its_own.wrap_socket(plain, server_hostname=self._target[0])


def _let_it_be_read(tls: ssl.SSLSocket) -> None:
    """It has said why it refuses; to close at once, with something unread, would take that back."""
    with socket.socket(fileno=tls.detach()) as plain:
        plain.settimeout(HANDSHAKE)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(1 << 16):
            pass


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    """Both ways in one thread: a TLS connection is not for two."""
    both = (near, far)
    while True:
        read = [one for one in both if isinstance(one, ssl.SSLSocket) and one.pending()]
        for source in read or select.select(both, [], [])[0]:
            data = source.recv(1 << 16)
            if not data:
                return
            (far if source is near else near).sendall(data)


def front(url: str, context: ssl.SSLContext, **options: str) -> tuple[Front, str]:
    """TLS before the broker that a URL names, and the URL that leads there with these options.
    Raises ConfigError where its adapter has no scheme with TLS."""
    return _front(url, context, options, passes=True)


def refusing_front(url: str, context: ssl.SSLContext, **options: str) -> tuple[Front, str]:
    """The same for who is refused here, see relay_to()."""
    return _front(url, context, options, passes=False)


def _front(
    url: str, context: ssl.SSLContext, options: dict[str, str], *, passes: bool
) -> tuple[Front, str]:
    parsed, made = Url.parse(url), list[Front]()
    known = registry.backend(parsed.scheme).options
    given = {name: known[name].read(parsed.options[name]) for name in TLS if name in parsed.options}
    secure = _SECURE in url or _in_clear(url)[0] != parsed.scheme
    wanted = {**dict.fromkeys(TLS), **given}
    its_own = tls_context(parsed, wanted, True) if secure else None

    def make(host: str, port: int, at: int) -> Relay:
        made.append(Front(host, port, at, context, its_own))
        return made[0].relay

    _, through = relay_to(url, make, passes=passes)
    return made[0], encrypted(through, **options)


def encrypted(url: str, **options: str) -> str:
    """The same URL with TLS, and with these options in place of those for TLS."""
    scheme, rest = _in_clear(url)
    if _CLEAR in rest:
        return with_options(f"{scheme}://{rest.replace(_CLEAR, _SECURE)}", **options)
    if f"{scheme}s" not in registry.backend(scheme).schemes:
        raise ConfigError(f"{Url.parse(url)} has no way to encrypt: there is no {scheme}s://")
    return with_options(f"{scheme}s://{rest}", **options)


def in_clear(url: str, **options: str) -> str:
    """The same URL without TLS."""
    return with_options("://".join(_in_clear(url)), **options)


def _in_clear(url: str) -> tuple[str, str]:
    """Its scheme without TLS, and the rest without the options of TLS."""
    scheme, _, rest = url.partition("://")
    if scheme.endswith("s") and scheme[:-1] in registry.backend(scheme).schemes:
        scheme = scheme[:-1]
    place, _, query = rest.replace(_SECURE, _CLEAR).partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] not in TLS]
    return scheme, f"{place}{'?' * bool(kept)}{'&'.join(kept)}"


def with_options(url: str, **options: str) -> str:
    more = "&".join(f"{name}={quote(value, safe='/')}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url
