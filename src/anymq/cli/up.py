"""anymq up"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from anymq import local
from anymq.broker import connect
from anymq.cli.plain import safe
from anymq.cli.screen import err, one_line, out
from anymq.errors import AnymqError, ConfigError
from anymq.local import BrokerFailed, BrokerMissing, LocalBroker
from anymq.spi import Subscription, Topic
from anymq.url import Url, did_you_mean

READY = 60.0  # seconds that a broker which answers has for a first message
LOG = "\n\t"  # what a log may hold; names of clients, too, stand in it
LOOK = 1.0  # seconds between two looks whether all of them still run


def up(
    names: list[str] = typer.Argument(
        None,
        metavar="[NAME[@VERSION]]...",
        help="rabbitmq, redis, kafka, pubsub, rabbitmq@4.0, kafka@stock, pubsub@pstest. Without"
        " any: the first four.",
    ),
) -> None:
    """Start brokers on this machine and keep them running until Ctrl-C.

    A broker is up when a message was sent and received through anymq. Its data is deleted when it
    ends. Where one comes from: a container, a private Debian root, an installed program, jars by
    Maven, whatever is there; ANYMQ_RABBITMQ_URL, ANYMQ_REDIS_URL and so on name one that runs
    already. Kafka has short timeouts, for tests; kafka@stock those it comes with. Google Cloud
    Pub/Sub is a stand-in, and says which.

    Exit status: 0 when ended by Ctrl-C with all of them running; 1 when one ended by itself; 2
    for wrong usage or a broker that cannot be had, 130 when interrupted before all were up.
    """
    starts = [_Start(name) for name in _checked(names or list(local.known()))]
    _wait_until_up(starts)
    for failed in (one for one in starts if one.failure):
        err.print(f"anymq: {safe(failed.failure, keep=LOG)}", soft_wrap=True)
    if any(one.failure for one in starts):
        local.stop_all()
        raise typer.Exit(2)
    _show(starts)
    raise typer.Exit(_watch([one.broker for one in starts if one.broker]))


def _checked(names: Sequence[str]) -> list[str]:
    """Each once. Raises ConfigError before anything is started."""
    known = local.known()
    for name in names:
        base, at, version = name.partition("@")
        if base == "memory" or "://" in name:
            raise ConfigError(f"{safe(name)}: there is nothing to start; name {', '.join(known)}")
        if base not in known:
            raise ConfigError(f"no broker is called {base!r}{did_you_mean(base, known)}")
        if at and version not in known[base]:
            there = ", ".join(known[base])
            raise ConfigError(f"{name!r}: this version cannot be started here; there is {there}")
    return list(dict.fromkeys(names))


@dataclass(slots=True)
class _Start:
    """One broker on its way up."""

    name: str
    doing: str = "being found or started"
    seconds: float = 0.0
    broker: LocalBroker | None = None
    failure: str = ""
    over: bool = False
    _began: float = field(default_factory=time.monotonic)

    def run(self, tell: Callable[[str], None]) -> None:
        """On a thread of its own."""
        try:
            broker = local.start(self.name, progress=tell)
            tell("it answers; sending a first message")
            _send_and_receive(broker)
            self.seconds = time.monotonic() - self._began
            self.broker = broker
        except BrokerMissing as error:
            self.failure = "\n".join([f"{self.name}: {error}", *error.failures])
        except BrokerFailed as error:
            self.failure = f"{self.name}: {error}"
        except Exception as error:  # noqa: BLE001 - a thread: nobody else would hear of it
            self.failure = f"{self.name}: {type(error).__name__}: {error}"
        finally:
            self.over = True
            tell("")


def _send_and_receive(broker: LocalBroker) -> None:
    """Ready is who hands a message on. Raises BrokerFailed with the end of the broker's log."""
    topic = Topic(f"ready-{uuid.uuid4().hex[:8]}")
    subscription = Subscription(topic, "check")
    until = time.monotonic() + READY
    while True:
        try:
            with connect(broker.url) as session:
                session.provision(subscription)
                try:
                    with session.consumer(subscription) as consumer:
                        session.producer(topic).send(b"ready?")
                        for delivery in consumer.receive(1, READY):
                            delivery.ack(wait=True)
                            return
                finally:
                    session.remove(subscription, topic)
            why = f"a message did not arrive within {READY:.0f} s"
        except AnymqError as error:
            if error.retryable and time.monotonic() < until and broker.alive():
                threading.Event().wait(LOOK / 4)
                continue
            why = str(error)
        raise BrokerFailed(
            f"{broker.name} {broker.version} ({broker.how}) answers, but a message could not be"
            f" sent and received: {why}; its last lines:\n{broker.output()}"
        )


def _wait_until_up(starts: Sequence[_Start]) -> None:
    """All at once, each on its thread; what they do is shown on standard error."""
    news: SimpleQueue[tuple[_Start, str]] = SimpleQueue()
    for one in starts:
        tell = _teller(news, one)
        threading.Thread(target=one.run, args=(tell,), name=f"up-{one.name}", daemon=True).start()
    console = err()
    live = Live(console=console, transient=True, get_renderable=lambda: _table(starts))
    if console.is_terminal:
        live.start()
    try:
        while not all(one.over for one in starts):
            try:
                one, text = news.get(timeout=LOOK)
            except Empty:
                continue
            one.doing = one_line(text.partition("\n")[0]) or one.doing
            if not console.is_terminal and text:
                console.print(f"{one.name}: {one.doing}", soft_wrap=True)
    finally:
        live.stop()


def _teller(news: SimpleQueue[tuple[_Start, str]], one: _Start) -> Callable[[str], None]:
    return lambda text: news.put((one, text))


def _table(starts: Sequence[_Start]) -> RenderableType:
    # Not the whole width: the ^C that a terminal shows at the cursor would begin a new line.
    table = Table.grid(padding=(0, 1))
    table.width = err().width - 4
    table.add_column(width=2)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for one in starts:
        mark: RenderableType = Spinner("dots", style="cyan")
        if one.over:
            mark = Text("!", "yellow") if one.failure else Text("✔", "green")
        doing = f"up after {one.seconds:.0f} s" if one.broker else one.doing
        table.add_row(mark, Text(one.name, "bold"), Text(doing))
    return table


def _show(starts: Sequence[_Start]) -> None:
    """A line per broker to standard output, whose second word is the URL."""
    wide = max(len(one.name) for one in starts)
    urls = {one.name: _url(one.broker) for one in starts if one.broker}
    wide_url = max(map(len, urls.values()))
    for one in starts:
        assert one.broker is not None
        about = f"{_what(one.broker)}, {one.broker.how}"
        text = Text.assemble(
            (f"{one.name:{wide}}", "bold"), f"  {urls[one.name]:{wide_url}}  ", (about, "dim")
        )
        out.print(text, soft_wrap=True)
    out().file.flush()
    err.print("anymq: all of them run until Ctrl-C", soft_wrap=True)


def _what(broker: LocalBroker) -> str:
    """Its version; of what only stands in for a service, also what that is."""
    if broker.evidence == "real":
        return broker.version
    return f"{broker.title} {broker.version}, {broker.evidence}"


def _url(broker: LocalBroker) -> str:
    """Ready to copy; the password of a broker that the user gave is not ours to show."""
    return str(Url.parse(broker.url)) if broker.how.startswith("given") else broker.url


def _watch(brokers: Sequence[LocalBroker]) -> int:
    """The exit status, once Ctrl-C or the end of one of them has ended all."""
    try:
        while all(broker.alive() for broker in brokers):
            threading.Event().wait(LOOK)
        for broker in (one for one in brokers if not one.alive()):
            last = f"its last lines:\n{safe(broker.output(), keep=LOG)}"
            err.print(f"anymq: {broker.name} has ended by itself; {last}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        err.print("anymq: stopping", soft_wrap=True)
        return 0
    finally:
        local.stop_all()
