"""anymq send, receive, redrive, adapters and up."""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anymq import Message, Subscription, Topic, connect, local, registry
from anymq.cli import plain, receive, up
from anymq.cli.app import app
from anymq.local import BrokerFailed, BrokerMissing

PROGRAM = [sys.executable, "-c", "from anymq.cli import main; main()"]
UP = ["rabbitmq", "redis", "kafka"]
PATIENCE = 60.0  # seconds that a real broker and a new process may take
ORDERS = Topic("orders")
BILLING = Subscription(ORDERS, "billing")
BRIEFLY = ["--wait", "200ms"]
DANGEROUS = "\x1b]0;title\x07 \x9b31m \u202eevil \r\x7f \ud800"


def anymq(*words: str, typed: bytes | str | None = None) -> Result:
    result = CliRunner().invoke(app, words, input=typed)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def url() -> Iterator[str]:
    """A broker of this process with orders/billing."""
    name = f"memory://tools-{uuid.uuid4().hex[:8]}"
    with connect(name) as broker:
        broker.provision(BILLING)
        yield name


def stored(url: str, subscription: Subscription = BILLING) -> list[Message]:
    """What is there; it is taken away."""
    with connect(url) as broker, broker.consumer(subscription) as consumer:
        found = []
        while batch := consumer.receive(100, 0.0):
            for delivery in batch:
                found.append(delivery.message)
                delivery.ack()
        return found


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# send


def test_a_message_with_everything_is_sent_and_its_id_shown(url: str) -> None:
    words = ["--key", "c7", "-H", "tenant=acme", "-H", "empty=", "-H", "a=b=c", "--json"]
    result = anymq("send", url, "orders", '{"a": 1}', *words)
    (message,) = stored(url)
    assert result.exit_code == 0
    assert result.stdout == f"stored {message.id}\n"
    assert (message.body, message.key) == (b'{"a": 1}', "c7")
    assert message.headers == {"tenant": "acme", "empty": "", "a": "b=c"}
    assert message.content_type == "application/json"


@pytest.mark.parametrize(
    ("words", "typed", "bodies"),
    [
        (["-"], b"one\ntwo\n", [b"one\ntwo\n"]),
        ([], b"\x00\xff", [b"\x00\xff"]),
        ([""], None, [b""]),
        (["--lines"], b"one\r\n\ntwo \xff\nthree", [b"one", b"", b"two \xff", b"three"]),
        (["--lines"], b"", []),
        (["x", "--count", "3"], None, [b"x"] * 3),
    ],
)
def test_where_bodies_come_from(
    url: str, words: list[str], typed: bytes | None, bodies: list[bytes]
) -> None:
    result = anymq("send", url, "orders", *words, typed=typed)
    messages = stored(url)
    assert result.exit_code == 0
    assert [message.body for message in messages] == bodies
    assert result.stdout.splitlines() == [f"stored {message.id}" for message in messages]
    assert len({message.id for message in messages}) == len(bodies)


def test_lines_are_sent_as_they_come(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes a line an hour is not waited for."""
    seen: list[int] = []

    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            with connect(url) as broker:
                seen.append(broker.depth(BILLING).ready or 0)
            return self.readline()

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Slow(b"one\ntwo\n")))
    with pytest.raises(SystemExit, match=r"^0$"):
        app(["send", url, "orders", "--lines"])
    assert seen == [0, 1, 2]


def test_a_delay_is_kept_or_refused(url: str) -> None:
    assert anymq("send", url, "orders", "late", "--delay", "1h").exit_code == 0
    with connect(url) as broker:
        assert broker.depth(BILLING).delayed == 1
    wrong = anymq("send", url, "orders", "late", "--delay", "soon")
    assert wrong.exit_code == 2
    assert "--delay 'soon': write seconds" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["orders", "x", "--header", "novalue"], "write NAME=VALUE"),
        (["orders", "{", "--json"], "not JSON"),
        (["orders", "x", "--lines"], "leave BODY"),
        (["Orders!", "x"], "is not a topic name"),
    ],
)
def test_wrong_usage_sends_nothing(url: str, words: list[str], says: str) -> None:
    result = anymq("send", url, *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert stored(url) == []


def test_a_message_that_is_refused_is_status_1_and_takes_no_other_with_it(url: str) -> None:
    result = anymq("send", url, "orders", "x", "-H", "anymq-id=1")
    assert result.exit_code == 1
    assert result.stdout.startswith("failed: header 'anymq-id'")


def test_a_missing_topic_says_what_to_do_and_that_is_true(url: str) -> None:
    result = anymq("send", url, "parcels", "x")
    assert result.exit_code in (1, 2)
    (hint,) = [line for line in result.stderr.splitlines() if "make it" in line]
    command = hint.partition("anymq receive ")[2].replace("NAME", "depot").split()
    assert anymq("receive", *command, "--wait", "0").exit_code == 0
    assert anymq("send", url, "parcels", "x").exit_code == 0
    assert len(stored(url, Subscription(Topic("parcels"), "depot"))) == 1


def test_nothing_is_made_unless_asked_for(url: str) -> None:
    with connect(url) as broker:
        anymq("send", url, "parcels", "x")
        with pytest.raises(Exception, match="parcels"):
            broker.provision(Topic("parcels"), mode="validate")
        anymq("send", url, "parcels", "x", "--provision")
        broker.provision(Topic("parcels"), mode="validate")


def test_a_broker_that_is_down_is_named_without_its_password() -> None:
    for words in (["send", "{}", "orders", "x"], ["receive", "{}", "orders/billing"]):
        result = anymq(*(word.replace("{}", "redis://:secret@localhost:1") for word in words))
        assert result.exit_code == 2
        assert "localhost:1" in result.stderr
        assert "secret" not in result.output


# receive


def send(url: str, *messages: Message) -> None:
    with connect(url) as broker, broker.producer(ORDERS) as producer:
        producer.send_many(messages)


def test_messages_are_shown_with_key_headers_and_attempt_and_acked(url: str) -> None:
    send(url, Message(b"hello", "c7", {"tenant": "acme"}, "id-1", 1_700_000_000.0))
    result = anymq("receive", url, "orders/billing", "--wait", "0")
    assert result.exit_code == 0
    assert result.stdout == (
        "id-1  key c7  attempt 1  sent 2023-11-14 22:13:20Z  5 B\n  tenant: acme\n  hello\n"
    )
    assert "1 message acked" in result.stderr
    assert stored(url) == []


def test_json_lines_hold_everything(url: str) -> None:
    send(url, Message(b"\xff\x00", id="a"), Message("grün".encode(), "k", {"h": "v"}, id="b"))
    binary, text = lines(anymq("receive", url, "orders/billing", "--json", "--wait", "0"))
    assert binary["body_base64"] == "/wA="
    assert "body" not in binary
    assert (text["id"], text["key"], text["headers"]) == ("b", "k", {"h": "v"})
    assert (text["body"], text["attempt"]) == ("grün", 1)


@pytest.mark.parametrize("json_lines", [False, True])
def test_nothing_that_a_terminal_would_act_on_is_printed(url: str, json_lines: bool) -> None:
    message = Message(
        DANGEROUS.encode("utf-8", "surrogatepass"),
        DANGEROUS[:-1],
        {DANGEROUS[:-1]: DANGEROUS[:-1]},
        "id" + DANGEROUS[:-1],
        content_type=DANGEROUS[:-1],
    )
    text = Message(DANGEROUS[:-1].encode(), id="text")
    send(url, message, text)
    words = ["--json"] if json_lines else []
    result = anymq("receive", url, "orders/billing", "--wait", "0", *words)
    assert result.exit_code == 0
    printed = result.stdout.replace("\n", "")
    assert all(char.isprintable() for char in printed), ascii(printed)
    assert "evil" in printed
    if json_lines:
        assert lines(result)[0]["key"] == message.key
        assert lines(result)[1]["body"] == DANGEROUS[:-1]


def test_long_and_binary_bodies_are_cut() -> None:
    assert plain.body(b"\x00" * 100).endswith("00 ... 36 more bytes")
    assert plain.body(b"\x00").startswith("1 bytes, not text")
    assert plain.body(b"x" * 5000).endswith("\n... 1,000 more characters")
    assert plain.body("zwei\nZeilen\t👩‍🚀".encode()) == "zwei\nZeilen\t👩‍🚀"
    assert plain.safe_json('"\U000e0001"') == '"\U000e0001"'  # a tag: nothing acts on it
    assert json.loads(plain.safe_json('"\U000f0000"')) == "\U000f0000"


def test_a_limit_takes_so_many_and_leaves_the_rest(url: str) -> None:
    send(url, *(Message(b"%d" % n) for n in range(5)))
    result = anymq("receive", url, "orders/billing", "--json", "--limit", "2")
    assert [line["body"] for line in lines(result)] == ["0", "1"]
    assert [message.body for message in stored(url)] == [b"2", b"3", b"4"]


def test_without_ack_all_is_given_back_uncounted(url: str) -> None:
    send(url, *(Message(b"%d" % n) for n in range(3)))
    for _ in range(2):
        result = anymq("receive", url, "orders/billing", "--json", "--no-ack", "--wait", "0")
        assert [(line["body"], line["attempt"]) for line in lines(result)] == [
            ("0", 1),
            ("1", 1),
            ("2", 1),
        ]
        assert "3 messages given back" in result.stderr


@pytest.mark.parametrize(
    ("failure", "status"),
    [(BrokenPipeError(errno.EPIPE, "Broken pipe"), 1), (KeyboardInterrupt(), 130)],
)
def test_what_was_not_printed_is_not_acked(
    url: str, failure: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(url, *(Message(b"%d" % n) for n in range(5)))
    written: list[str] = []

    def write(line: str) -> None:
        if len(written) == 2:
            raise failure
        written.append(line)

    monkeypatch.setattr(plain, "write", write)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test goes on after Ctrl-C
    result = anymq("receive", url, "orders/billing", "--json")
    assert result.exit_code == status
    assert [message.body for message in stored(url)] == [b"2", b"3", b"4"]


def test_what_is_printed_is_acked_though_ctrl_c_comes_between(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(url, *(Message(b"%d" % n) for n in range(5)))
    written: list[str] = []

    def write(line: str) -> None:
        written.append(line)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(plain, "write", write)
    before = signal.getsignal(signal.SIGINT)
    try:
        result = anymq("receive", url, "orders/billing", "--json")
    finally:
        signal.signal(signal.SIGINT, before)  # the test goes on after Ctrl-C
    assert result.exit_code == 130
    assert [message.body for message in stored(url)] == [b"2", b"3", b"4"]


def test_a_missing_subscription_says_what_to_do(url: str) -> None:
    result = anymq("receive", url, "orders/shipping")
    assert result.exit_code == 2
    assert "--provision" in result.stderr
    assert anymq("receive", url, "orders/shipping", "--provision", "--wait", "0").exit_code == 0
    assert "topic/subscription" in anymq("receive", url, "orders").stderr


def test_errors_are_safe_to_show_too(url: str) -> None:
    result = anymq("receive", url, "orders/\x1b[31mred")
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr


def test_ordered_goes_on_with_the_next_of_a_key(url: str) -> None:
    ordered = Subscription(ORDERS, "ordered", ordered=True)
    with connect(url) as broker:
        broker.provision(ordered)
    send(url, *(Message(b"%d" % n, "k") for n in range(4)))
    result = anymq("receive", url, "orders/ordered", "--ordered", "--json", "--limit", "4")
    assert [line["body"] for line in lines(result)] == ["0", "1", "2", "3"]


def test_a_time_that_no_calendar_has_is_shown_as_it_is() -> None:
    assert receive._time(1e30) == "1e+30"


# redrive


def dead_letters(url: str, count: int) -> Subscription:
    mortal = Subscription(ORDERS, "mortal", dead_letter=True)
    with connect(url) as broker:
        broker.provision(mortal)
        with broker.producer(ORDERS) as producer, broker.consumer(mortal) as consumer:
            producer.send_many(Message(b"%d" % n, id=f"m{n}") for n in range(count))
            left = count
            while left:
                for delivery in consumer.receive(100, PATIENCE):
                    delivery.dead_letter("tried")
                    left -= 1
            consumer.flush()
    return mortal


def test_redrive_moves_letters_back_up_to_a_limit(url: str) -> None:
    mortal = dead_letters(url, 5)
    result = anymq("redrive", url, "orders/mortal", "--limit", "2")
    assert result.exit_code == 0
    assert result.stdout == "orders/mortal: 2 redriven\n"
    assert [message.id for message in stored(url, mortal)] == ["m0", "m1"]
    assert anymq("redrive", url, "orders/mortal", *BRIEFLY).stdout == "orders/mortal: 3 redriven\n"
    assert anymq("redrive", url, "orders/mortal", *BRIEFLY).stdout == "orders/mortal: 0 redriven\n"


def test_redrive_of_what_has_no_dead_letters(url: str) -> None:
    result = anymq("redrive", url, "orders/billing")
    assert result.exit_code == 2
    assert "dead letters must both exist" in result.stderr


# adapters


def test_adapters_names_clients_options_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"pika": "9.8.7"}
    monkeypatch.setattr("anymq.cli.adapters._installed", versions.get)
    text = anymq("adapters").stdout
    for part in ("pika 9.8.7", "rabbitmqs://", "envelope=always", "heartbeat=5", "none needed"):
        assert part in text
    assert "redis is not installed: pip install 'anymq[redis]'" in text


def test_adapters_of_other_packages_are_shown_also_when_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = SimpleNamespace(name="pytest")  # any that is installed

    def entry(name: str, module: str) -> EntryPoint:
        point = EntryPoint(name, module, registry.GROUP)
        vars(point).update(dist=package)
        return point

    points = [entry("mine", "anymq.memory"), entry("broken", "no_such_module")]
    monkeypatch.setattr(registry, "_installed", lambda: points)
    result = anymq("adapters")
    assert result.exit_code == 0
    assert f"comes with pytest {pytest.__version__}" in result.stdout
    assert "no_such_module  cannot be loaded" in result.stdout
    assert "No module named 'no_such_module'" in result.stdout


# up


@pytest.mark.parametrize("word", ["memory", "redis://host", "rabit", "rabbitmq-classic", "redis@1"])
def test_up_refuses_what_it_cannot_start(word: str) -> None:
    result = anymq("up", word)
    assert result.exit_code == 2
    assert result.stderr.startswith("anymq: ")


def test_up_shows_what_a_broker_said_before_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(name: str, progress: object) -> None:
        raise BrokerMissing(
            "redis is missing: see above", ["its last lines:\nout of [memory] \x1b[31m"]
        )

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "stop_all", lambda: False)
    result = anymq("up", "redis")
    assert result.exit_code == 2
    assert "out of [memory] \\x1b[31m" in result.stderr
    assert result.stdout == ""


def test_up_shows_also_what_nobody_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(name: str, progress: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(local, "start", start)
    result = anymq("up", "redis")
    assert result.exit_code == 2
    assert "redis: RuntimeError: surprise" in result.stderr


def broker(url: str, lives: bool) -> Any:
    return SimpleNamespace(
        url=url, name="redis", version="8", how="here", alive=lambda: lives, output=lambda: "Oops"
    )


def test_a_broker_that_answers_is_not_up_before_it_hands_a_message_on() -> None:
    with pytest.raises(BrokerFailed, match=r"could not be sent and received(.|\n)*Oops"):
        up._send_and_receive(broker("redis://localhost:1", lives=False))
    up._send_and_receive(broker("memory://up", lives=True))


def test_up_ends_with_the_first_broker_that_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "stop_all", lambda: True)
    one, other = broker("", lives=True), broker("", lives=False)
    assert up._watch([one, other]) == 1
    assert "ended by itself; its last lines:\nOops" in capsys.readouterr().err


# with real brokers, through real processes


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def program(*words: str, typed: str = "") -> str:
    done = subprocess.run(
        [*PROGRAM, *words],
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """All, started by `anymq up` and ended by Ctrl-C."""
    with process("up", *UP) as running:
        assert running.stdout
        urls = [running.stdout.readline().split()[:2] for _ in UP]
        yield dict(urls)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == 0, errors


def test_up_prints_urls_of_brokers_that_serve(servers: dict[str, str]) -> None:
    assert list(servers) == UP
    for url in servers.values():
        with connect(url) as broker:
            broker.check()


@pytest.mark.parametrize("name", UP)
def test_sent_by_one_process_and_followed_by_another(servers: dict[str, str], name: str) -> None:
    topic = f"tools-{uuid.uuid4().hex[:8]}"
    url = servers[name]
    with connect(url) as broker:
        subscription = Subscription(Topic(topic), "reader")
        broker.provision(subscription)
        words = [url, f"{topic}/reader", "--follow", "--json"]
        with process("receive", *words) as reader:
            assert reader.stdout
            # Redis hands a message only to who listens already.
            sent = send_until_taken(url, topic)
            received = json.loads(reader.stdout.readline())
            assert received["id"] == sent
            assert (received["body"], received["key"]) == ("grün", "k")
            assert received["headers"] == {"h": "v"}
            reader.send_signal(signal.SIGINT)
            _, errors = reader.communicate(timeout=PATIENCE)
            assert reader.returncode == 130
            assert "Traceback" not in errors
        if name != "redis":
            assert broker.depth(subscription).ready == 0
        broker.remove(subscription, Topic(topic))


def send_until_taken(url: str, topic: str) -> str:
    """The id of the message that was stored or passed."""
    words = ["send", url, topic, "grün", "--key", "k", "-H", "h=v"]
    for _ in range(60):
        done = subprocess.run(
            [*PROGRAM, *words], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode == 0:
            return done.stdout.split()[1]
        assert "nobody is subscribed" in done.stdout
    raise AssertionError("the reader never subscribed")


def test_a_reader_that_goes_away_early_leaves_the_rest(servers: dict[str, str]) -> None:
    topic = f"tools-{uuid.uuid4().hex[:8]}"
    url = servers["rabbitmq"]
    program("receive", url, f"{topic}/reader", "--provision", "--wait", "0")
    program("send", url, topic, "--lines", typed="".join(f"{n}\n" for n in range(20)))
    reader = [*PROGRAM, "receive", url, f"{topic}/reader", "--json"]
    with subprocess.Popen(reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
    assert b"Traceback" not in errors
    rest = program("receive", url, f"{topic}/reader", "--json").splitlines()
    left = {json.loads(line)["body"] for line in rest}
    # What the pipe had taken is acked, the first one at least; nothing else is.
    assert left == {str(n) for n in range(20 - len(left), 20)}
    with connect(url) as broker:
        broker.remove(Subscription(Topic(topic), "reader"), Topic(topic))
