"""Dead letters: what cannot be handled is parked, whole and with the reason, nothing else is."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from anymq import Broker, Guarantee, Message, Subscription
from anymq.errors import AnymqError, ConfigError, DecodeError, NotFoundError
from anymq.testing.contract import contract
from anymq.testing.history import Kind
from anymq.testing.receiving import HandlerError, RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario

PARKED = {"dead_letter": True, "max_attempts": 3}
LENT = 35.0  # seconds: what a session held that is cut off may be lent to it for so long
LOOKS = 30  # at a letter: more deliveries than any broker's usual limit
LETTERS = ("letter_missing", "letter_and_processed", "letter_duplicated")
EMPTY_JSON = b"{}"
FIELDS = ("body", "id", "key", "content_type", "correlation_id", "reply_to")


@contract("DLQ-01", Guarantee.MAX_ATTEMPTS, subscription=PARKED)
def parked_after_the_last_attempt(s: Scenario) -> None:
    """What always fails is handled max_attempts times, then only the dead letters have it."""
    consumer = s.consumer().start(fail)
    letters = s.letters()
    by_one = s.producer().send(10)
    letters.drain(by_one)
    consumer.close()
    in_turn = s.producer().send(5)
    for _ in range(3):
        consumer = s.consumer()
        for taken in consumer.take(5):
            taken.nack(error=HandlerError("on purpose"))
        consumer.close()
    letters.drain(in_turn)
    s.consumer().drain([], linger=0.5)
    runs = Counter(ids(s.history.of(Kind.RECEIVED)))
    # where giving back counts, so does what a closing consumer had got again
    exact = by_one + in_turn if s.promised(Guarantee.RELEASE_UNCOUNTED) else by_one
    wrong = [message for message in exact if runs[str(message.id)] != 3]
    s.expect(not wrong, f"each is handled 3 times, not {sorted(set(runs.values()))}", wrong)
    s.judge("lost", "beyond_max", *LETTERS, max_attempts=3, at_least=35)


@contract("DLQ-02", Guarantee.DEAD_LETTER, subscription={"dead_letter": True, "max_attempts": 1})
def a_letter_is_the_message(s: Scenario) -> None:
    """A dead letter has the message's id, body, headers, key, types, time, however often read."""
    sent = s.producer().send(
        2,
        body=bytes(range(256)),
        keys=["clé"],
        headers={"tenant": "Grüße 🐇", "x-trace": "1"},
        timestamp=round(time.time() - 3600, 3),
        content_type="application/x-test",
        correlation_id="c-17",
        reply_to="answers",
    )
    consumer = s.consumer()
    failed, hopeless = consumer.take(2)
    failed.nack()
    hopeless.dead_letter("on purpose")
    consumer.close()
    letters = s.letters()
    for look in range(LOOKS):
        found = letters.take(2)
        if len(found) < 2:
            break  # said below
        differ = [taken for taken in found if not same(taken.message, sent)]
        s.expect(not differ, f"look {look + 1}: {[t.message for t in differ]} are {sent}", differ)
        for taken in found:
            taken.release() if look % 5 == 4 else taken.nack()
    letters.take(1)
    letters.close()
    last = s.letters().drain(sent)
    s.expect(sorted(ids(last)) == ids(sent), f"both are there after {LOOKS} looks", sent)
    s.judge("lost", "redelivered", "letter_missing", "letter_and_processed", at_least=2)


@contract("DLQ-03", Guarantee.DEAD_LETTER_REASON, subscription=PARKED)
def a_letter_says_why(s: Scenario) -> None:
    """The headers of a dead letter tell origin, reason, attempts, error and time."""
    began = datetime.now(UTC) - timedelta(milliseconds=1)  # what the header rounds off
    consumer = s.consumer().start(fail)
    letters = s.letters()
    failing = s.producer().send(1, headers={"own": "kept", "anymq-dead-reason": "an older one"})
    told = dead_headers(letters.drain(failing))
    consumer.close()
    attempts = {"attempts": "3"} if s.promised(Guarantee.ATTEMPT_COUNT) else {}
    expected = {"origin": str(s.subscription), "reason": "max_attempts", **attempts}
    expected["error"] = "HandlerError: on purpose"
    s.expect(expected.items() <= told.items(), f"{expected} is told: {told}", failing)
    at = datetime.fromisoformat(told.get("time", "0001-01-01T00:00:00+00:00"))
    now = datetime.now(UTC)
    s.expect(began <= at <= now, f"{at} is when, between {began} and {now}", failing)

    explicit = s.producer().send()
    s.consumer().take()[0].dead_letter("stale price")
    told = dead_headers(letters.drain(explicit))
    attempts = {"attempts": "1"} if attempts else {}
    expected = {"origin": str(s.subscription), "reason": "stale price", **attempts}
    s.expect(expected.items() <= told.items(), f"{expected} is told: {told}", explicit)
    s.expect("error" not in told, f"no error is told where there was none: {told}", explicit)
    s.judge("lost", *LETTERS, max_attempts=3, at_least=2)


@contract("DLQ-04", Guarantee.DEAD_LETTER, subscription=PARKED)
def parked_at_once(s: Scenario) -> None:
    """dead_letter() parks a message at its first attempt; the others are handled as ever."""
    consumer = s.consumer()
    sent = s.producer().send(10)
    parked: list[Message] = []
    for taken in consumer.take(10):
        if len(parked) < 3 and taken.id in ids(sent[::3]):
            taken.dead_letter("on purpose")
            parked.append(taken.message)
        else:
            taken.ack()
    consumer.drain([], linger=0.5)
    found = s.letters().drain(parked)
    s.expect(sorted(ids(found)) == sorted(ids(parked)), "the letters are these", parked, found)
    s.exercised("letters", len(found), 3)
    s.judge("lost", "redelivered", *LETTERS, at_least=10)


@contract("DLQ-05", Guarantee.DEAD_LETTER, subscription=PARKED)
def what_cannot_be_read_is_parked(s: Scenario) -> None:
    """A body that is not JSON is parked at once; the handler goes on with the next message."""
    handled: list[Message] = []

    def handle(taken: Taken) -> None:
        with contextlib.suppress(DecodeError), taken:
            taken.message.json()
            handled.append(taken.message)

    consumer = s.consumer(prefetch=1).start(handle)
    producer = s.producer()
    bad, good = [], producer.send(1, body=b"{}")
    for body in (b"{", b"", b"\xff\xfe\x00", b"[" * 100_000):
        bad += producer.send(1, body=body)
        good += producer.send(1, body=b'{"read": true}')
    found = s.letters().drain(bad)
    s.wait_for(lambda: len(handled) >= len(good), "all that can be read is handled")
    consumer.close()
    s.expect(s.same(handled, good), f"handled are {ids(good)}, not {ids(handled)}", good)
    s.expect(sorted(ids(found)) == sorted(ids(bad)), "parked is what cannot be read", bad, found)
    reasons = {dead_headers([taken]).get("reason") for taken in found}
    s.expect(reasons == {"undecodable"}, f"each because undecodable, not {reasons}", found)
    s.judge("lost", "redelivered", *LETTERS, at_least=len(good) + len(bad))


@contract("DLQ-06", Guarantee.NACK)
def without_dead_letters_nothing_is_given_up(s: Scenario) -> None:
    """Without dead letters what always fails comes again, however often: it is never dropped."""
    consumer = s.consumer()
    sent = s.producer().send(3)
    for look in range(LOOKS):
        taken = consumer.take(3)
        if not s.expect(len(taken) == 3, f"all come again after {look} failures of each", sent):
            return
        if not look:
            error = s.error_of(lambda taken=taken: taken[0].dead_letter("no"))  # type: ignore[misc]
            s.expect(isinstance(error, ConfigError), f"there is nowhere to park it: {error!r}")
        for each in taken:
            if each.delivery.settled:
                s.expect(False, "what could not be parked can still be nacked", each)
            each.nack()
    consumer.close()
    last = s.consumer().drain(sent)
    s.expect(sorted(ids(last)) == ids(sent), f"all are there after {LOOKS} failures", sent)
    s.judge("lost", "after_ack", at_least=3 * LOOKS)


@contract("DLQ-07", Guarantee.DEAD_LETTER_NO_LOSS, subscription=PARKED)
def never_neither(s: Scenario) -> None:
    """With nowhere to park, or killed while it parks: each message is a letter or comes again."""
    producer = s.producer()
    sent = producer.messages(60)
    producer.send_many(sent)
    consumer = s.consumer()
    taken = consumer.take(20)
    assert s.subscription.dead_topic is not None
    s.broker.remove(s.subscription.dead_letters, s.subscription.dead_topic)
    for each in taken:
        each.dead_letter("there is nowhere")
    error = s.error_of(lambda: consumer.take(100))
    s.expect(error, "the next call tells that a letter was not stored", taken)
    consumer.close()

    s.provision()
    for _ in range(2):
        child = s.child(prefetch=20)
        child.dead_letter(child.take(20))
        child.kill()
    consumer = s.consumer().start(lambda taken: taken.dead_letter("on purpose"))
    found = s.letters().drain(sent)
    consumer.close()
    lost = [message for message in sent if message.id not in ids(found)]
    s.expect(not lost, f"all are parked in the end, but {len(lost)}", lost)
    s.judge("lost", "letter_missing", at_least=80)


@contract("DLQ-08", Guarantee.DEAD_LETTER, subscription=PARKED, deadline=120.0)
def letters_go_back(s: Scenario) -> None:
    """Redriven letters are handled anew from attempt 1: whole, in order, by their subscription."""
    other = s.another("other")
    s.provision(other.topic, other)
    sent = s.producer().send(40, keys=("a", "b"), headers={"own": "kept"}, reply_to="answers")
    s.consumer(other).drain(sent if other.topic is s.topic else [])
    _park(s, 40)
    some = s.broker.redrive(s.subscription, limit=10)
    s.expect(some.redriven == 10, f"no more than the limit: {some}")
    rest = s.broker.redrive(s.subscription)
    s.expect(rest.redriven == 30, f"and then the rest: {rest}")
    consumer = s.consumer(prefetch=100)
    again = _bury(consumer, 40, "still no good")
    for each in again:
        told = dead_headers([each])
        s.expect(told == {"redriven": "1"}, f"of its death only this is told: {told}", each)
        s.expect(same(each.message, sent), f"{each.message} is as it was sent", each)
        if s.promised(Guarantee.ATTEMPT_COUNT):
            s.expect(each.attempt == 1, f"attempt 1, not {each.attempt}", each)
    for key in ("a", "b"):
        got = ids(each for each in again if each.key == key)
        of_key = ids(message for message in sent if message.key == key)
        if not s.promised(Guarantee.ORDER_PER_KEY):
            got, of_key = sorted(got), sorted(of_key)
        s.expect(got == of_key, f"key {key} in order, where there is one: {got}", again)
    consumer.close()
    _redrive_cut_short(s, sent)
    marker = s.producer(other.topic).send()  # with this all that came before is there
    more = [taken for taken in s.consumer(other).drain(marker) if taken.id not in ids(marker)]
    s.expect(not more, "the other subscription gets nothing again", more)


def _redrive_cut_short(s: Scenario, sent: Sequence[Message]) -> None:
    """The connection goes while letters are on their way: each is a letter, or a message again."""
    link = s.link()
    moving = s.begin(lambda: link.broker.redrive(s.subscription))
    consumer = s.consumer()
    seen = consumer.take(1)
    link.cut()
    silence = s.capabilities().limits.silence or 0.0  # a client may go on trying for so long
    s.wait_for(moving.done, "the redrive ends with its session", within=s.patience + silence)
    s.exercised("messages that were redriven before the cut", len(seen))
    with contextlib.suppress(AnymqError):
        moving.result()
    for each in seen:
        each.ack()
    found: list[Taken] = []
    lost: Sequence[Message] = sent
    until = time.monotonic() + LENT
    while lost and time.monotonic() < until:
        s.broker.redrive(s.subscription)
        found += consumer.drain([one for one in lost if one.id not in ids(seen)])
        lost = [message for message in sent if message.id not in ids([*seen, *found])]
    s.expect(not lost, f"none is missing after a redrive that was cut short, but {len(lost)}", lost)
    twice = {dead_headers([each]).get("redriven") for each in [*seen, *found]}
    s.expect(twice <= {"2"}, f"it is counted: {twice}", seen)


def _park(s: Scenario, count: int) -> None:
    consumer = s.consumer()
    _bury(consumer, count, "on purpose")
    consumer.close()


def _bury(consumer: RecordingConsumer, count: int, reason: str) -> list[Taken]:
    """Ten at a time: a broker may give no more of one key before they are settled."""
    buried: list[Taken] = []
    while len(buried) < count and (some := consumer.take(min(10, count - len(buried)))):
        for each in some:
            each.dead_letter(reason)
        buried += some
    return buried


@contract("DLQ-09", Guarantee.DEAD_LETTER, subscription=PARKED)
def a_missing_target_is_found_at_once(s: Scenario) -> None:
    """Without its dead-letter target a consumer does not start, and the error names the target."""
    target = s.subscription.dead_topic
    assert target is not None
    s.producer().send(1)
    s.consumer().close()  # all is there
    for missing in (s.subscription.dead_letters, target):
        s.broker.remove(missing)
        for what, use in _starts(s.subscription).items():
            for broker in (s.broker, s.connect()):
                error = s.error_of(lambda use=use, broker=broker: use(broker))  # type: ignore[misc]
                found = isinstance(error, NotFoundError) and target.name in str(error)
                s.expect(found, f"{what} without {missing}: it is named, not {error!r}")
                broker.check()
    s.provision()
    sent = s.producer().send(1)
    s.consumer().start(lambda taken: taken.dead_letter("on purpose"))
    s.expect(s.letters().drain(sent), "and all is well once it is there again", sent)


def _starts(subscription: Subscription) -> dict[str, Callable[[Broker], object]]:
    return {
        "validate": lambda broker: broker.provision(subscription, mode="validate"),
        "consumer()": lambda broker: broker.consumer(subscription),
    }


@contract(
    "DLQ-10",
    Guarantee.MAX_ATTEMPTS,
    subscription=PARKED,
    depends=Guarantee.REDELIVERY_ON_CRASH,
    certain=False,
)
def innocents_survive(s: Scenario) -> None:
    """Of 100 prefetched one is handled, then the process dies, 4 times: none is parked unseen."""
    producer = s.producer()
    sent = producer.messages(100)
    producer.send_many(sent)
    for _ in range(4):
        child = s.child(prefetch=100)
        child.ack(child.take())
        if s.promised(Guarantee.DEPTH):  # what is not prefetched would survive in any case
            s.wait_for(lambda: s.broker.depth(s.subscription).ready == 0, "all are prefetched")
        child.kill()
    handled = ids(s.history.of(Kind.ACK))
    rest = [message for message in sent if message.id not in handled]
    for letter in s.letters().watch(0.5):
        s.expect(letter.id not in ids(rest), "no message is parked that nobody handled", letter)
    s.consumer().drain(rest)
    s.letters().drain([], linger=0.5)
    s.judge("lost", "letter_and_processed", at_least=100)


@contract("DLQ-11", Guarantee.DEAD_LETTER_REASON, subscription=PARKED)
def a_foreign_message_is_parked_whole(s: Scenario) -> None:
    """A body that came without any metadata is dead-lettered whole, and says why; and redriven."""
    bodies = [b"bare", b"", b"\x00\xff", EMPTY_JSON]
    outcomes = s.producer().send_bare(*bodies)
    s.expect(all(o.error is None for o in outcomes), f"they are stored: {outcomes}")
    for time_redriven in ("", "1"):
        consumer = s.consumer().start(fail)
        letters = s.letters()
        found = letters.take(len(bodies))
        consumer.close()
        s.exercised("letters", len(found), len(bodies))
        got = sorted(each.body for each in found)
        s.expect(got == sorted(bodies), f"all are parked, byte by byte: {got}", found)
        for each in found:
            told, message = dead_headers([each]), each.message
            expected = {"origin": str(s.subscription), "reason": "max_attempts"}
            if s.promised(Guarantee.ATTEMPT_COUNT):
                expected["attempts"] = "3"
            s.expect(expected.items() <= told.items(), f"{expected} is told: {told}", each)
            own = {k for k in message.headers if not k.startswith("anymq-dead-")}
            nothing = (message.key, message.content_type, message.correlation_id, message.reply_to)
            s.expect(not own and nothing == (None,) * 4, f"nothing is made up: {message}", each)
            s.expect(told.get("redriven", "") == time_redriven, f"told in {told}", each)
        letters.close()
        if not time_redriven:
            report = s.broker.redrive(s.subscription)
            s.expect(report.redriven == len(bodies), f"all go back: {report}")


@contract("DLQ-12", Guarantee.MAX_ATTEMPTS_CRASH, provision=False)
def a_killer_is_parked(s: Scenario) -> None:
    """A message whose handling kills its process each time is parked by the broker's own limit."""
    least = (s.capabilities().limits.attempts or (1, 1))[0]
    limit = max(4, least) if s.usable(Guarantee.MAX_ATTEMPTS_CRASH) else None
    killed = s.new_subscription("work", dead_letter=True, max_attempts=3, broker_limit=limit)
    s.provision(s.topic, killed)
    killers = s.producer().send()
    deaths = 0
    while deaths < (limit or 5):
        child = s.child(killed)
        victim = child.take(1)
        child.kill()
        if not victim:
            break
        deaths += 1
    # Others are alive: some brokers park it only when somebody asks for more.
    alive = s.consumer(killed).start(fail)
    letters = s.letters(killed)
    found = letters.take()
    deaths += len(alive.taken)
    alive.close()
    if not s.expect(found, f"it is parked after {deaths} deaths", killers):
        return
    for _ in range(LOOKS):  # the count must not follow it, or reading would destroy it
        told = {"origin": str(killed), "reason": "broker_limit"}
        told["attempts"] = str(limit)
        seen = dead_headers(found)
        s.expect(told.items() <= seen.items(), f"{told} is told: {seen}", killers)
        for each in found:
            each.nack()
        found = letters.take()
    letters.close()
    s.expect(s.same(s.letters(killed).drain(killers), killers), "it is still there", killers)
    s.consumer(killed).drain([], linger=0.5)
    s.expect(deaths == limit, f"it was handled {limit} times, not {deaths}", killers)
    s.judge("lost", "letter_and_processed", where=[killed], at_least=4)


def fail(taken: Taken) -> None:
    raise HandlerError("on purpose")


def same(letter: Message, sent: Sequence[Message]) -> bool:
    """Is the letter one of these messages, with nothing lost or changed?"""
    message = next((each for each in sent if each.id == letter.id), None)
    if message is None:
        return False
    own = {k: v for k, v in letter.headers.items() if not k.startswith("anymq-dead-")}
    when = abs((letter.timestamp or 0.0) - (message.timestamp or 0.0)) < 0.002
    fields = all(getattr(letter, name) == getattr(message, name) for name in FIELDS)
    return fields and own == dict(message.headers) and when


def dead_headers(letters: Sequence[Taken]) -> dict[str, str]:
    """What the headers of the first letter tell."""
    start = "anymq-dead-"
    headers = letters[0].message.headers if letters else {}
    return {k.removeprefix(start): v for k, v in headers.items() if k.startswith(start)}
