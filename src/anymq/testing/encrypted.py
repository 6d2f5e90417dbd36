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

from anymq.errors import ConfigError
from anymq.testing.link import Relay, relay_to
from anymq.url import Url

HOST = "127.0.0.1"
HANDSHAKE = 10.0  # seconds


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
    """Listens with TLS and passes on to a server without. `relay` stands before it and sees what
    really travels; connect to its port."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._target, self._context = (host, port), context
        self._listener = socket.create_server((HOST, 0))
        threading.Thread(target=self._accept, name="tls", daemon=True).start()
        self.relay = Relay(HOST, self._listener.getsockname()[1])

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
            with tls, socket.create_connection(self._target) as far:
                tls.settimeout(None)
                _pass_on(tls, far)


def _let_it_be_read(tls: ssl.SSLSocket) -> None:
    """It has said why it refuses; to close at once, with something unread, would take that back."""
    with socket.socket(fileno=tls.detach()) as plain:
        plain.settimeout(HANDSHAKE)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(1 << 16):
            pass


def _pass_on(tls: ssl.SSLSocket, far: socket.socket) -> None:
    """Both ways in one thread: a TLS connection is not for two."""
    while True:
        ready = [tls] if tls.pending() else select.select([tls, far], [], [])[0]
        for source in ready:
            data = source.recv(1 << 16)
            if not data:
                return
            (far if source is tls else tls).sendall(data)


def front(url: str, context: ssl.SSLContext, **options: str) -> tuple[Front, str]:
    """TLS before the broker that a URL names, and the URL that leads there with these options.
    Raises ConfigError where its adapter has no scheme with TLS."""
    made: list[Front] = []

    def make(host: str, port: int) -> Relay:
        made.append(Front(host, port, context))
        return made[0].relay

    _, through = relay_to(url, make)
    return made[0], encrypted(through, **options)


def encrypted(url: str, **options: str) -> str:
    """The same URL with TLS, and with these options."""
    from anymq import registry

    scheme, _, rest = url.partition("://")
    if f"{scheme}s" not in registry.backend(scheme).schemes:
        raise ConfigError(f"{Url.parse(url)} has no way to encrypt: there is no {scheme}s://")
    return with_options(f"{scheme}s://{rest}", **options)


def with_options(url: str, **options: str) -> str:
    more = "&".join(f"{name}={quote(value, safe='/')}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url
