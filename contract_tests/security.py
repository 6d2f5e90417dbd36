"""Security: what must never be seen, and never be run."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import threading
import traceback
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import anymq
from anymq import Message
from anymq.errors import AnymqError, AuthenticationError, ConfigError, DecodeError
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.scenario import Scenario
from anymq.url import Url

MOST_CONNECTIONS = 3  # one for each kind of greeting that a client library may try


@contract("SEC-03", UNIVERSAL)
def bad_credentials(s: Scenario) -> None:
    """A wrong user or password is refused at once, and told as such; nobody tries it for ever."""
    secret = f"S3cr3t{uuid.uuid4().hex}"
    for what in ("wrong password", "own user"):
        url = _urls(s.url, secret)[what]
        relay = None
        if not s.column.in_process:
            relay, url = s.relay(url, passes=False)
        trying = s.begin(lambda url=url: _error(url))  # type: ignore[misc]
        s.wait_for(trying.done, f"{what}: connect() gives up", within=s.patience + 30)
        error = trying.result()
        if what == "own user" and error is None and Url.parse(s.url).password is None:
            s.note("the server takes any password of this user, who has none")
            continue
        s.expect(isinstance(error, _REFUSED), f"{what}: refused, not {error!r}")
        if isinstance(error, AuthenticationError):
            s.expect(not error.retryable, f"{what}: trying again cannot help")
        count = relay.accepted if relay else 0
        s.expect(count <= MOST_CONNECTIONS, f"{what}: tried {count} times")
        if relay and not isinstance(error, ConfigError):  # else nobody had to be asked
            s.exercised("connections that were refused", count)
            s.until(lambda before=count, r=relay: r.accepted > before, 0.3)  # type: ignore[misc]
            s.expect(relay.accepted == count, f"{what}: tried again afterwards")
    consumer = s.consumer()
    sent = s.producer().send(1)
    s.expect(consumer.drain(sent), "the session that was open goes on", sent)


@contract("SEC-05", UNIVERSAL)
def secrets_stay_secret(s: Scenario) -> None:
    """No password is shown by a repr, log record, error or traceback; nothing in a body is run."""
    secret = f"S3cr3t{uuid.uuid4().hex}"
    shown: dict[str, str] = {}
    with _logged(s) as records:
        for what, url in _urls(s.url, secret).items():
            shown |= _all_that_shows(what, url)
        for what, kind in (("wrong password", _REFUSED), ("bad option", ConfigError)):
            s.expect(isinstance(_error(_urls(s.url, secret)[what]), kind), f"{what}: refused")
    shown |= {f"log record {n}": text for n, text in enumerate(records)}
    told = [f"{what}: {text}" for what, text in shown.items() if secret in text]
    s.always(not told, f"the password shows in {len(told)} places, e.g. {told[:1]}")
    s.exercised("texts that might show it", len(shown), 12)
    _nothing_is_run(s)


_REFUSED = (AuthenticationError, ConfigError)


def _urls(url: str, secret: str) -> dict[str, str]:
    """The column's URL with a password: as it could be written, rightly and wrongly."""
    parsed = Url.parse(url)
    places, known = parsed.places() or "somewhere", ""
    if endpoint := parsed.options.get("endpoint"):  # then that is the place, and no host
        known = f"?endpoint={endpoint}"
    start, login = f"{parsed.scheme}://", f"nobody:{secret}@"
    path = f"/{quote(parsed.path, safe='')}" if parsed.path else ""
    path += known
    more = "&" if known else "?"
    return {
        "wrong password": f"{start}{login}{places}{path}",
        "own user": f"{start}{quote(parsed.username or 'default')}:{secret}@{places}{path}",
        "broker down": f"{start}{login}{_at_port(places, path, _free_port())}",
        "bad option": f"{start}{login}{places}{path}{more}no-such-option=1",
        "secret option": f"{start}{places}{path}{more}password={secret}&api-key={secret}",
        "bad scheme": f"x{start}{login}{places}",
        "no scheme": f"{login}{places}",
        "bad port": f"{start}{login}{_at_port(places, path, 99999)}",
        **{
            f"raw {mark}": f"{start}nobody:{secret}{mark}x{secret}@{places}{path}"
            for mark in "@/#?:%["
        },
    }


def _at_port(places: str, path: str, port: int) -> str:
    """A place of this machine, as host or as endpoint."""
    if "endpoint=" in path:
        scheme = "http://" if "endpoint=http" in path else ""
        return f"{places}?endpoint={scheme}127.0.0.1:{port}"
    return f"127.0.0.1:{port}{path}"


def _all_that_shows(what: str, url: str) -> dict[str, str]:
    """Every text that anymq makes of this URL: of the URL itself, the session, and its error."""
    shown = {}
    with contextlib.suppress(AnymqError):
        parsed = Url.parse(url)
        shown[f"{what}, the URL"] = f"{parsed} {parsed!r} {parsed.places()}"
    try:
        with anymq.connect(url) as broker:
            shown[f"{what}, the session"] = f"{broker!r} {broker.url} {broker.server} {broker}"
            producer = broker.producer("some-topic")
            shown[f"{what}, the producer"] = f"{producer!r} {producer}"
        broker.check()  # closed: an error
    except AnymqError as error:
        shown[f"{what}, the error"] = f"{error} {error!r}"
        shown[f"{what}, its traceback"] = "".join(traceback.format_exception(error))
    return shown


def _error(url: str) -> AnymqError | None:
    try:
        anymq.connect(url).close()
    except AnymqError as error:
        return error
    return None


_capturing = threading.Lock()  # levels of loggers are the whole process's


@contextlib.contextmanager
def _logged(s: Scenario) -> Iterator[list[str]]:
    """All log records of anymq and of the client library, at every level."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(self.format(record))

    client = type(s.broker.native).__module__.partition(".")[0]
    loggers = [logging.getLogger(name) for name in dict.fromkeys(("anymq", client))]
    keep = Keep()
    with _capturing:
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(keep)
            logger.setLevel(logging.DEBUG)
        try:
            yield records
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(keep)
                logger.setLevel(level)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


RUN: set[str] = set()


def run(text: str) -> None:
    """What must not be called."""
    RUN.add(text)


class _Bomb:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return run, (self.text,)


def _nothing_is_run(s: Scenario) -> None:
    trap, where = uuid.uuid4().hex, f"{run.__module__}.run"
    bodies = [
        *(pickle.dumps(_Bomb(trap), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        f"__import__('sys').modules['{run.__module__}'].run('{trap}')".encode(),
        f"!!python/object/apply:{where} ['{trap}']".encode(),
        f'{{"py/reduce": [{{"py/function": "{where}"}}, ["{trap}"]]}}'.encode(),
    ]
    kinds = [None, "application/x-python-serialize", "application/x-python", "application/x-yaml"]
    messages = [Message(body, content_type=kind) for body in bodies for kind in kinds]
    consumer = s.consumer()
    producer = s.producer()
    for number, message in enumerate(messages):
        message.id = f"{producer.name}-{number}"
        producer.send_one(message)
    consumer.drain(messages)
    for taken in consumer.taken:
        with contextlib.suppress(DecodeError):
            value = taken.message.json()
            s.expect(isinstance(value, dict | list), f"JSON is data, not {type(value)}", taken)
    s.expect(trap not in RUN, "nothing in a body is run")
    s.judge("lost", at_least=len(messages))
    pickle.loads(bodies[0])
    s.expect(trap in RUN, "the trap would have shown it")
