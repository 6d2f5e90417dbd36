"""The files that a URL names for TLS, before anybody connects."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from anymq.errors import AuthenticationError, ConfigError
from anymq.testing.encrypted import Authorities
from anymq.tls import TLS_OPTIONS, tls_context, tls_failure
from anymq.url import Url, read_options


@pytest.fixture(scope="module")
def made() -> Iterator[Authorities]:
    with Authorities() as found:
        yield found


def context(**options: str) -> Any:
    url = Url("rediss", (("host", None),), options=options)
    return tls_context(url, read_options(url, TLS_OPTIONS), True)


def without_tls(**options: str) -> Any:
    url = Url("redis", (("host", None),), options=options)
    return tls_context(url, read_options(url, TLS_OPTIONS), False)


def test_without_options_the_system_is_trusted_and_names_are_checked() -> None:
    found = context()
    assert found.check_hostname
    assert found.verify_mode is ssl.CERT_REQUIRED
    assert without_tls() is None


def test_with_ca_nobody_else_is_trusted(made: Authorities) -> None:
    assert len(context(ca=made.ca).get_ca_certs()) == 1


def test_certificate_and_key_may_be_one_file(made: Authorities, tmp_path: Path) -> None:
    cert, key = made.certificate(made.ours)
    both = tmp_path / "both.pem"
    both.write_bytes(Path(cert).read_bytes() + Path(key).read_bytes())
    assert context(cert=str(both))
    assert context(cert=cert, key=key)


def test_an_encrypted_key_asks_nobody(made: Authorities, tmp_path: Path) -> None:
    cert, key = made.certificate(made.ours)
    secret = tmp_path / "secret.pem"
    private = load_pem_private_key(Path(key).read_bytes(), None)
    encryption = BestAvailableEncryption(b"passphrase")
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(ConfigError, match=r"secret\.pem is encrypted"):
        context(cert=cert, key=str(secret))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ca": "/no/such.pem"}, "cannot be read"),
        ({"ca": "/"}, "cannot be read"),
        ({"ca": __file__}, "no certificate"),
        ({"cert": __file__}, "not a certificate and its key"),
        ({"key": __file__}, "without cert"),
    ],
)
def test_what_is_no_such_file(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        context(**options)


def test_without_tls_they_are_an_error(made: Authorities) -> None:
    with pytest.raises(ConfigError, match="rediss://"):
        without_tls(ca=made.ca)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] required", AuthenticationError),
        ("[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] failure", AuthenticationError),
        ("[SSL: WRONG_VERSION_NUMBER] wrong", ConfigError),
        ("[SSL: UNSUPPORTED_PROTOCOL] unsupported", ConfigError),
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] eof", None),
        ("connection reset", None),
    ],
)
def test_a_client_that_keeps_only_the_text(text: str, kind: type[Exception] | None) -> None:
    found = tls_failure(OSError(f"Stream connection lost: SSLError(1, '{text}')"), "it at host:1")
    if kind is None:
        assert found is None
    else:
        assert type(found) is kind
        assert "it at host:1" in str(found)
