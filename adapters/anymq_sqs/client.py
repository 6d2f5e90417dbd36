"""boto3's clients for SQS and SNS, and how a request is made through them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader
from botocore.session import get_session

from anymq.spi import (
    TLS_OPTIONS,
    AnymqError,
    ConfigError,
    ConnectionLostError,
    OneProcess,
    Url,
    tls_context,
    tls_failure,
)
from anymq_sqs import errors
from anymq_sqs.capabilities import ANSWER, LONGEST_POLL

AT_ONCE = 8  # requests of one kind
ATTEMPTS = 3  # at what may be asked twice, with botocore's pauses of a second or two between them
CONNECT = 5.0  # seconds for a connection
BATCH = 10  # entries of a request, the most that SQS takes
Answer = TypeVar("Answer")
Failure = tuple[int, Mapping[str, Any] | BaseException]  # which entry, and what became of it


class Client(OneProcess):
    """Everything asked of one region. Safe to share between threads, as boto3's clients are
    (boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html)."""

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        """Raises ConfigError. No request is made, and no connection."""
        if len(url.hosts) != 1 or url.hosts[0][1] is not None or url.path:
            raise ConfigError(
                f"{url}: write sqs://region, e.g. sqs://eu-central-1; another place is"
                " ?endpoint=http://host:port"
            )
        region = url.hosts[0][0]
        _check_endpoint(url, options["endpoint"])
        keyed = url.password is not None
        self.account = None if keyed else url.username
        self.place = options["endpoint"] or region
        super().__init__(f"SQS at {self.place}")
        verify, certificate, self._context = _tls(url, options)
        core: Any = get_session()
        session: Any = boto3.Session(
            botocore_session=core,
            aws_access_key_id=url.username if keyed else None,
            aws_secret_access_key=url.password,
            region_name=region,
        )
        core.register_component("data_loader", _models(core.get_config_variable("data_path")))

        def make(service: str, attempts: int, waits: float = 0.0) -> Any:
            config = Config(
                connect_timeout=CONNECT,
                read_timeout=waits + ANSWER,
                max_pool_connections=4 * AT_ONCE,
                retries={"mode": "standard", "total_max_attempts": attempts},
                tcp_keepalive=True,
                client_cert=certificate,
            )
            place = options["endpoint"]
            try:
                return session.client(service, endpoint_url=place, config=config, verify=verify)
            except (BotoCoreError, ValueError) as error:
                raise ConfigError(f"{url}: {error}") from error

        # What may be asked twice: botocore tries again by itself. A send may not.
        self.sqs = make("sqs", ATTEMPTS)
        self.once = make("sqs", 1)
        self.polls = make("sqs", 1, LONGEST_POLL)  # who receives decides when to give up
        self.sns: Any = make("sns", 1) if options["fanout"] == "sns" else None
        self.lost: AnymqError | None = None  # what ended the session
        self._answered = False
        self._pool = ThreadPoolExecutor(AT_ONCE, "anymq-sqs")

    def ask(self, method: Callable[..., Any], what: str, **arguments: Any) -> Any:
        """One request. Raises what translate() makes of a failure."""
        self.check_process()
        try:
            answer = method(**arguments)
        except errors.NATIVE as error:
            raise self.translate(error, what) from error
        self._answered = True
        return answer

    def translate(self, error: BaseException, what: str) -> AnymqError:
        """Credentials that worked and have expired end the session: the next one looks for others,
        where boto3 finds them."""
        found = errors.translate(error, what, self.place)
        if isinstance(found, ConnectionLostError):
            self._drop_idle()
            if why := self._tls_refusal():
                return why
        if self._answered and errors.is_expired(error):
            found = ConnectionLostError(f"{found} (credentials are looked for again)")
            found.__cause__ = error
            self.lost = self.lost or found
        return found

    def _drop_idle(self) -> None:
        """Connections that wait to be used again went the same way as the one that failed: where
        that was silence, each of them would be waited for."""
        for client in self._clients():
            client.close()

    def _clients(self) -> list[Any]:
        return [one for one in (self.sqs, self.once, self.polls, self.sns) if one is not None]

    def _tls_refusal(self) -> AnymqError | None:
        """Why the other side has ended an encrypted connection: it says so, but botocore may be
        writing at that moment and not hear it."""
        if self._context is None or self._answered:
            return None
        host, port = urlsplit(self.place).hostname or "", urlsplit(self.place).port or 443
        try:
            with (
                socket.create_connection((host, port), CONNECT) as plain,
                self._context.wrap_socket(plain, server_hostname=host) as encrypted,
            ):
                encrypted.sendall(b"GET / HTTP/1.0\r\n\r\n")
                encrypted.recv(1)
        except OSError as error:
            return tls_failure(error, f"SQS at {self.place}")
        return None

    def ask_each(
        self, method: Callable[..., Any], entries: Sequence[dict[str, Any]], **arguments: Any
    ) -> list[Failure]:
        """A batch request for any number of entries, ten at a time and several at once. Returns
        those that failed; their `Id` is set here."""
        self.check_process()
        starts = range(0, len(entries), BATCH)
        if len(starts) == 1:
            return _ask_ten(method, 0, entries, arguments)
        parts = self.each(
            lambda start: _ask_ten(method, start, entries[start : start + BATCH], arguments), starts
        )
        return [failure for part in parts for failure in part]

    def each(self, request: Callable[[int], Answer], numbers: Iterable[int]) -> list[Answer]:
        """Several requests at once."""
        return list(self._pool.map(request, numbers))

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        for client in self._clients():
            client.close()


def _check_endpoint(url: Url, endpoint: str | None) -> None:
    try:
        found = urlsplit(endpoint or "https://aws")
        right = found.scheme in ("http", "https") and found.hostname and found.port != 0
    except ValueError:  # of the port
        right = False
    if not right:
        raise ConfigError(f"{url}: endpoint: write http://host:port or https://host:port")


@cache
def _models(path: str | None) -> Any:
    """What botocore knows of each service. Read once for all sessions: it is most of what opening
    one costs."""
    return create_loader(path)


def _tls(url: Url, options: Mapping[str, Any]) -> tuple[str | None, Any, ssl.SSLContext | None]:
    """What boto3 is told: whom to trust, and who we are; the same as a context. Raises
    ConfigError."""
    if not any(options[name] for name in TLS_OPTIONS):
        return None, None, None
    if (options["endpoint"] or "https:").startswith("http:"):
        raise ConfigError(
            f"{url}: ca, cert and key are for TLS, and this endpoint has none: write https://"
        )
    context = tls_context(url, options, True)
    cert, key = options["cert"], options["key"]
    return options["ca"], (cert, key) if key else cert, context


def _ask_ten(
    method: Callable[..., Any],
    start: int,
    entries: Sequence[dict[str, Any]],
    arguments: Mapping[str, Any],
) -> list[Failure]:
    """SQS answers 200 although entries failed, and names them."""
    try:
        answer = method(
            Entries=[{"Id": str(number), **entry} for number, entry in enumerate(entries)],
            **arguments,
        )
    except errors.NATIVE as error:
        return [(start + number, error) for number in range(len(entries))]
    return [(start + int(failed["Id"]), failed) for failed in answer.get("Failed", ())]
