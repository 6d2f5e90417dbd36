"""A socket to a broker that is asked one question, without that broker's client library."""

import socket
import ssl
from urllib.parse import SplitResult, parse_qs

_SECONDS = 5.0


def connect(url: SplitResult, *, port: int, tls: bool) -> socket.socket:
    """Connect to the URL's host, `port` where it names none, with TLS as its options `ca`, `cert`
    and `key` say; every wait ends after 5 s.

    Raises OSError when nobody answers.
    """
    host = url.hostname or "127.0.0.1"
    plain = socket.create_connection((host, url.port or port), timeout=_SECONDS)
    if not tls:
        return plain
    options = parse_qs(url.query)
    try:
        context = ssl.create_default_context(cafile=options.get("ca", [None])[0])
        if "cert" in options:
            context.load_cert_chain(options["cert"][0], options.get("key", [None])[0])
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises OSError when the connection ends before that."""
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise OSError("the broker closed the connection")
        data += chunk
    return data
