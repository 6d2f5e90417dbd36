"""The one grammar of connection URLs, and the options that may follow a `?`.

    scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...]

User, password, path and values are percent-encoded; nothing else is. IPv6 addresses stand in
brackets. The path's first slash is not part of it:

>>> url = Url.parse("rabbitmq://me:p%40ss@[::1]:5673,other/%2Fjobs?heartbeat=30s")
>>> url.username, url.password, url.hosts
('me', 'p@ss', (('::1', 5673), ('other', None)))
>>> url.path, url.options
('/jobs', {'heartbeat': '30s'})

No path and an empty path are the same, an encoded slash is a name of its own:

>>> [Url.parse(f"rabbitmq://h{p}").path for p in ("", "/", "/%2F", "/%2Fx", "/a%2Fb")]
['', '', '/', '/x', 'a/b']

A URL never shows its password:

>>> url
Url('rabbitmq://me:***@[::1]:5673,other/%2Fjobs?heartbeat=30s')

Durations are seconds, or have a unit, the same for every option:

>>> [seconds(text) for text in ("2", "0.5", "500ms", "30s", "15m", "2h")]
[2.0, 0.5, 0.5, 30.0, 900.0, 7200.0]
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from anymq.errors import ConfigError

ENCODE = "write it percent-encoded, e.g. with urllib.parse.quote(text, safe='')"
SECRET = re.compile(r"pass|secret|token|key", re.IGNORECASE)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed URL. `str()` and `repr()` hide the password and secret options."""

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Url:
        """Raises ConfigError that says what is wrong and how to write it."""
        scheme, found, rest = text.partition("://")
        if not found or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise ConfigError(f"{_hide(text)!r} is not a URL: it begins with scheme://")
        if "#" in rest:
            raise ConfigError(f"{_hide(text)}: a '#' would cut the URL: write it as %23")
        authority = re.split("[/?]", rest, maxsplit=1)[0]
        if "@" in rest[len(authority) :]:
            raise ConfigError(
                f"{_hide(text)}: an '@' behind the first '/' or '?': if user or password hold such"
                f" a character, {ENCODE}; in a path or an option write %40"
            )
        rest, _, query = rest.partition("?")
        path = rest[len(authority) + 1 :]
        login, at, places = authority.rpartition("@")
        if "@" in login:
            raise ConfigError(f"{_hide(text)}: an '@' in user or password: {ENCODE}")
        username, colon, password = login.partition(":")
        if ":" in password:
            raise ConfigError(f"{_hide(text)}: a ':' in the password: {ENCODE}")
        return cls(
            scheme,
            tuple(_host(text, place) for place in places.split(",")) if places else (),
            _decode(text, "the path", path),
            _decode(text, "the user", username) if at else None,
            _decode(text, "the password", password) if colon else None,
            dict(_options(text, query)),
        )

    def __str__(self) -> str:
        login = ""
        if self.username is not None or self.password is not None:
            secret = "" if self.password is None else ":***"
            login = f"{quote(self.username or '', safe='')}{secret}@"
        path = f"/{quote(self.path, safe='')}" if self.path else ""
        shown = [
            f"{name}={'***' if SECRET.search(name) else quote(value, safe=':,/')}"
            for name, value in self.options.items()
        ]
        query = f"?{'&'.join(shown)}" if shown else ""
        return f"{self.scheme}://{login}{self.places()}{path}{query}"

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def places(self, default_port: int | None = None) -> str:
        """The hosts as people write them, for messages."""
        return ",".join(_place(host, port or default_port) for host, port in self.hosts)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an adapter's URL: how to read it, what it is when not given, what it does."""

    read: Callable[[str], Any]
    default: Any
    help: str


def read_options(url: Url, known: Mapping[str, Option]) -> dict[str, Any]:
    """The URL's options by their own readers, defaults for the rest. Raises ConfigError."""
    values = {name: option.default for name, option in known.items()}
    for name, text in url.options.items():
        if name not in known:
            raise ConfigError(f"{url}: unknown option {name!r}{did_you_mean(name, known)}")
        try:
            values[name] = known[name].read(text)
        except ValueError as error:
            raise ConfigError(f"{url}: option {name}={text!r}: {error}") from error
    return values


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that does not exist."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; there is none"


def seconds(text: str) -> float:
    """`2`, `500ms`, `30s`, `15m`, `2h`, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if not match:
        raise ValueError("write seconds, or 500ms, 30s, 15m, 2h")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}[match[2]]


def period(text: str) -> float:
    """The same, more than 0: to many clients 0 means "do not wait at all"."""
    value = seconds(text)
    if value <= 0:
        raise ValueError("it must be more than 0")
    return value


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not re.fullmatch(r"\d+", text):
        raise ValueError("write a whole number")
    return int(text)


def flag(text: str) -> bool:
    """`true` or `false`."""
    if text not in ("true", "false"):
        raise ValueError("write true or false")
    return text == "true"


def one_of(*values: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in values:
            raise ValueError(f"write one of {', '.join(values)}")
        return text

    return read


def _host(text: str, place: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", place)
    if not match or not match[1].strip("[]"):
        raise ConfigError(
            f"{_hide(text)}: {_hide(place)!r} is not host or host:port (IPv6 in brackets: [::1])"
        )
    host = match[1].strip("[]")
    if match[1].startswith("[") and "%" in host:
        raise ConfigError(
            f"{_hide(text)}: {host!r} has a zone id, which names an interface of one machine:"
            " use an address without it"
        )
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"{_hide(text)}: port {port} is not between 1 and 65535")
    return host, port


def _place(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _options(text: str, query: str) -> Iterable[tuple[str, str]]:
    seen = set()
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{_hide(text)}: option {name!r} has no value: write {name}=...")
        if name in seen:
            raise ConfigError(f"{_hide(text)}: option {name!r} is given twice")
        seen.add(name)
        yield name, _decode(text, f"option {name}", value)


def _decode(text: str, what: str, part: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", part):
        raise ConfigError(f"{_hide(text)}: {what} has a '%' that encodes nothing: write it as %25")
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_hide(text)}: {what} is not UTF-8 when decoded") from error


def _hide(text: str) -> str:
    """The text with anything that could be a password blacked out, however badly it is written."""
    hidden = re.sub(r"^([^:/@]*://)?([^:@/]*):.*@", r"\1\2:***@", text, flags=re.DOTALL)
    if "@" not in text:  # what stands for a port and is none may be a password without its host
        hidden = re.sub(
            r"^([^:/@]*://)?([^:@/\[]+):(?!//|\d*(?:[,/?]|$))[^,/?]*", r"\1\2:***", text
        )
    return re.sub(rf"((?:{SECRET.pattern})[^=&]*=)[^&]*", r"\1***", hidden, flags=re.IGNORECASE)
