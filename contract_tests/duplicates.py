"""Duplicates: what the broker compares, and what a handler needs to tell them apart itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from anymq import Guarantee, Message
from anymq.testing.contract import UNIVERSAL, contract
from anymq.testing.history import Event
from anymq.testing.receiving import RecordingConsumer, Taken, ids
from anymq.testing.scenario import Scenario


@contract("DDP-01", Guarantee.DEDUPLICATION)
def the_same_id_twice(s: Scenario) -> None:
    """What is sent twice with the same id, by one producer or by two, is delivered once."""
    consumer = s.consumer()
    producer = s.producer()
    sent = producer.send(4)
    for message in sent[:2]:
        producer.send_one(message)
    again = s.producer()
    for message in sent[2:]:
        again.send_one(message)
    got = consumer.drain(sent)
    twice = [name for name, count in Counter(ids(got)).items() if count > 1]
    s.expect(not twice, f"{len(twice)} of {len(sent)} came twice", got)
    s.judge("lost", at_least=len(sent))


@contract("DDP-03", UNIVERSAL, wish={"dead_letter": True, "max_attempts": 2})
def the_id_stays(s: Scenario) -> None:
    """A message keeps the id that it was sent with: over nacks, a crash, its death and redrive."""
    consumer = s.consumer()
    producer = s.producer()
    sent = producer.send(3)
    numbered = Message(b"an id that anymq gives it")
    producer.send_one(numbered)
    sent.append(numbered)
    bodies = {message.body: message.id for message in sent}
    seen = {taken.body: taken.id for taken in consumer.drain(sent)}
    s.expect(seen == bodies, f"delivered under the id that the sender was told: {seen}", sent)
    if s.usable(Guarantee.NACK):
        _over_nacks(s, producer.send(2), consumer)
        if s.usable(Guarantee.DEAD_LETTER):
            _over_death(s, producer.send(2), consumer)
    consumer.close()
    if s.usable(Guarantee.REDELIVERY_ON_CRASH):
        _over_a_crash(s)
    s.judge("lost", at_least=4)


def _same(s: Scenario, sent: list[Message], got: Iterable[Taken | Event], when: str) -> None:
    s.expect({*ids(got)} == {*ids(sent)}, f"{when}, the ids are the same", sent)


def _over_nacks(s: Scenario, sent: list[Message], consumer: RecordingConsumer) -> None:
    for taken in consumer.take(2):
        taken.nack()
    _same(s, sent, consumer.drain(sent), "after a nack")


def _over_death(s: Scenario, sent: list[Message], consumer: RecordingConsumer) -> None:
    for taken in consumer.take(2):
        taken.dead_letter("on purpose")
    letters = s.letters()
    dead = letters.take(2)
    _same(s, sent, dead, "as a dead letter")
    for letter in dead:
        letter.release()
    letters.close()
    s.broker.redrive(s.subscription, limit=len(sent), timeout=s.patience)
    _same(s, sent, consumer.drain(sent), "sent back from the dead letters")


def _over_a_crash(s: Scenario) -> None:
    child = s.child()
    sent = s.producer().send(2)
    _same(s, sent, child.take(2), "for the one that dies")
    child.kill()
    _same(s, sent, s.consumer().drain(sent), "after its death")


def _patience(s: Scenario) -> float:
    """What is kept nowhere need not be waited for."""
    return s.patience if s.promised(Guarantee.AT_LEAST_ONCE) else 0.5


class _Store:
    """What a handler needs to do each thing once: a set of ids that changes together with what
    it does, as one transaction of a database would."""

    def __init__(self) -> None:
        self.effects: Counter[str | None] = Counter()
        self.seen = 0  # ids that had come before

    def handle(self, message: Taken | Event) -> None:
        if message.id in self.effects:
            self.seen += 1
        else:
            self.effects[message.id] += 1


@contract("DDP-04", Guarantee.AT_LEAST_ONCE)
def an_idempotent_handler(s: Scenario) -> None:
    """With a store of ids each thing is done once: after a crash, a nack, or a second send."""
    store = _Store()
    child = s.child()
    producer = s.producer()
    sent = producer.send(10)
    held = child.take(10)
    for event in held[:6]:
        store.handle(event)  # the store has it, the broker does not know
    child.ack(held[:3])
    child.kill()
    consumer = s.consumer()
    for message in sent[:2]:
        producer.send_one(message)  # as one would whose answer was lost

    def all_done() -> bool:
        for taken in consumer.receive(9, 0.2):
            store.handle(taken)
            if s.usable(Guarantee.NACK) and taken.id == sent[8].id and taken.attempt != 3:
                taken.nack()
            else:
                taken.ack()
        return store.effects.keys() >= {*ids(sent)} and store.seen >= len(held[3:6])

    s.until(all_done, _patience(s))
    for taken in consumer.watch(0.5):
        store.handle(taken)
        taken.ack()
    consumer.flush()
    undone = [message for message in sent if message.id not in store.effects]
    s.expect(not undone, f"everything is done; {len(undone)} are not", undone)
    strange = set(store.effects) - {*ids(sent)}
    s.expect(not strange, f"and nothing else: {strange}")
    s.exercised("duplicates that the store kept off", store.seen, 2)
    s.judge("lost", "unexplained", at_least=10)


@contract("DDP-05", Guarantee.EXACTLY_ONCE)
def handled_once(s: Scenario) -> None:
    """Without a store, each message is handled once, also when its consumer dies in between."""
    handled: Counter[str | None] = Counter()
    child = s.child()
    sent = s.producer().send(8)
    held = child.take(8)
    handled.update(event.id for event in held[:4])
    child.ack(held[:2])
    child.kill()  # two are handled and not acked, four are not handled
    handled.update(taken.id for taken in s.consumer().drain(sent[2:], _patience(s)))
    twice = [message for message in sent if handled[message.id] > 1]
    never = [message for message in sent if not handled[message.id]]
    s.expect(not twice, f"{len(twice)} of {len(sent)} were handled twice", twice)
    s.expect(not never, f"{len(never)} of {len(sent)} were never handled", never)
    s.exercised("deliveries to the one that dies", len(held), len(sent))
