"""TLS as a URL asks for it, the same for every adapter: whom to trust, and who we are.

    rabbitmqs://host?ca=company.pem                          this authority, and no other
    rediss://host?ca=company.pem&cert=me.pem&key=me-key.pem  and we have a certificate too

Without `ca=` the system's authorities are trusted, or those in the file that SSL_CERT_FILE names.
The host name of the URL must stand in the server's certificate.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn

from anymq.errors import AnymqError, AuthenticationError, ConfigError
from anymq.url import Option, Url


def _file(text: str) -> str:
    """The name of a file that can be read."""
    try:
        with open(text, "rb"):
            return text
    except (OSError, ValueError) as error:
        raise ValueError(f"it names a file, which cannot be read: {error}") from error


TLS_OPTIONS: Mapping[str, Option] = {
    "ca": Option(
        _file, None, "a file of authorities (PEM) that are trusted in place of the system's"
    ),
    "cert": Option(_file, None, "a file with our own certificate (PEM), where the server asks"),
    "key": Option(_file, None, "a file with its key (PEM, not encrypted); else it is in `cert`"),
}


def tls_context(url: Url, options: Mapping[str, Any], secure: bool) -> ssl.SSLContext | None:
    """How to encrypt; None where the scheme of the URL is not `secure`. Raises ConfigError for
    files that hold something else, and for options that would be without effect."""
    given = [name for name in TLS_OPTIONS if options[name] is not None]
    if not secure:
        if given:
            raise ConfigError(
                f"{url}: option {given[0]} is for TLS, and {url.scheme}:// is not encrypted: write"
                f" {url.scheme}s://"
            )
        return None
    ca, cert, key = (options[name] for name in TLS_OPTIONS)
    if key and not cert:
        raise ConfigError(f"{url}: option key is of no use without cert")
    context = _trusting(url, ca)
    context.sslsocket_class = _Listening
    if cert:
        try:
            context.load_cert_chain(cert, key, password=_refuse)
        except ssl.SSLError as error:
            raise ConfigError(
                f"{url}: {cert} and {key or 'its key'} are not a certificate and its key, in PEM:"
                f" {error.reason or error}"
            ) from error
        except _EncryptedError as error:
            raise ConfigError(
                f"{url}: the key in {key or cert} is encrypted: write it without a passphrase, and"
                " let only its user read the file"
            ) from error
    return context


def _trusting(url: Url, ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{url}: {ca} holds no certificate of an authority, in PEM: {error.reason or error}"
        ) from error


class _Listening(ssl.SSLSocket):
    """A server that does not accept our certificate says so when for us the handshake is over, and
    we may be writing already. What it said is the reason, not that the writing failed."""

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            raise self._said() or error from None

    def _said(self) -> ssl.SSLError | None:
        try:
            self.recv(1)
        except ssl.SSLError as said:
            return said if said.reason and said.reason != _CUT else None
        except (OSError, ValueError):
            pass
        return None


class _EncryptedError(Exception):
    pass


def _refuse() -> NoReturn:
    """In place of a question at the terminal, where nobody may be."""
    raise _EncryptedError


def tls_failure(error: BaseException, server: str) -> AnymqError | None:
    """Why no encrypted connection to `server` ("RabbitMQ at host:port") could be made; None where
    that is not the reason. ConfigError, but AuthenticationError where the server wants another
    certificate of ours. Some clients keep only the text of what happened."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _ADVICE.get(error.verify_code, _TRUST)
        found: AnymqError = ConfigError(
            f"the certificate of {server} is not trusted: {error.verify_message.rstrip('.')}:"
            f" {advice}"
        )
    elif not (reason := _reason(error)) or reason == _CUT:
        return None
    elif reason in _NO_TLS:
        found = ConfigError(
            f"{server} does not speak TLS there: check the port, and whether it is encrypted"
        )
    elif "CERTIFICATE" in reason or reason in _OUR_CERTIFICATE:
        found = AuthenticationError(
            f"{server} wants a certificate of ours that it trusts: {_words(reason)}: name it"
            " with ?cert=...&key=... in the URL"
        )
    else:
        found = ConfigError(f"{server} and we find no way to encrypt: {_words(reason)}")
    found.__cause__ = error
    return found


_TRUST = "name its authority with ?ca=... in the URL, or in the file of SSL_CERT_FILE"
_ADVICE = {  # X509_V_ERR_..., as in openssl/x509_vfy.h
    9: "it becomes valid later, or the clock here is wrong",
    10: "its owner must renew it, or the clock here is wrong",
    62: "write the URL with a name that stands in it",
    64: "write the URL with an address or name that stands in it",
}
_CUT = "UNEXPECTED_EOF_WHILE_READING"  # the connection ended, which may pass
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}
_OUR_CERTIFICATE = {"SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_UNKNOWN_CA"}


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or ""
    found = re.search(r"\[SSL: (\w+)\]", str(error))
    return found[1] if found else ""


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
