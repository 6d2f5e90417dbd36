"""Spans and trace context, over the in-memory broker and OpenTelemetry's own SDK."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import anymq
from anymq import Broker, Message, Subscription, Topic, memory
from anymq.capabilities import Capabilities, Fact, Guarantee, Level
from anymq.errors import UnroutableError
from anymq.tracing import Tracing, context_of, inject

WORK = Subscription(Topic("orders"), "billing", dead_letter=True, max_attempts=1)


class Traced:
    """A session, what it traces, and the spans so far."""

    def __init__(self, broker: Broker) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.broker = broker
        self.tracing = Tracing(broker, self.provider)

    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def traced() -> Iterator[Traced]:
    with anymq.connect("memory://traced") as broker:
        broker.provision(WORK)
        yield Traced(broker)
    memory.forget("traced")


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_handler_is_linked_to_the_send(traced: Traced) -> None:
    message = Message(b"x", headers={"own": "kept"}, correlation_id="c-1")
    traced.tracing.send(traced.broker.producer(WORK.topic), message)
    with traced.broker.consumer(WORK) as consumer:
        (delivery,) = consumer.receive(1, 10.0)
        with traced.tracing.process(delivery, WORK) as given:
            assert given.message.headers["own"] == "kept"
    send, process = traced.spans()
    assert (send.name, send.kind) == ("send orders", SpanKind.PRODUCER)
    assert (process.name, process.kind) == ("process orders", SpanKind.CONSUMER)
    assert attributes(send) == {
        "messaging.system": "memory",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.message.id": message.id,
        "messaging.message.conversation_id": "c-1",
        "server.address": "traced",
    }
    assert attributes(process)["messaging.destination.subscription.name"] == "billing"
    (link,) = process.links
    assert (link.context.trace_id, link.context.span_id) == ids(send)
    assert process.parent is None
    trace_id, span_id = ids(send)
    context = send.get_span_context()
    assert context is not None
    flags = int(context.trace_flags)
    assert message.headers["traceparent"] == f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


def test_a_handler_may_be_a_child(traced: Traced) -> None:
    traced.tracing.send(traced.broker.producer(WORK.topic), b"x")
    with traced.broker.consumer(WORK) as consumer:
        (delivery,) = consumer.receive(1, 10.0)
        with traced.tracing.process(delivery, WORK, parent=True):
            pass
    send, process = traced.spans()
    assert process.parent is not None
    assert (process.parent.trace_id, process.parent.span_id) == ids(send)
    assert not process.links


def test_the_first_context_stays_through_dead_letters_and_redrive(traced: Traced) -> None:
    traced.tracing.send(traced.broker.producer(WORK.topic), b"x")
    with traced.broker.consumer(WORK) as consumer:
        (delivery,) = consumer.receive(1, 10.0)
        with (
            pytest.raises(ZeroDivisionError),
            traced.tracing.process(delivery, WORK),
        ):
            raise ZeroDivisionError
    with traced.broker.consumer(WORK.dead_letters) as letters:
        (letter,) = letters.receive(1, 10.0)
        letter.release()
    traced.broker.redrive(WORK, timeout=0.5)
    with traced.broker.consumer(WORK) as consumer:
        (again,) = consumer.receive(1, 10.0)
        with traced.tracing.process(again, WORK):
            pass
    send, failed, last = traced.spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes(failed)["error.type"] == "ZeroDivisionError"
    for process in (failed, last):
        assert [(link.context.trace_id, link.context.span_id) for link in process.links] == [
            ids(send)
        ]


def test_a_message_that_has_a_context_keeps_it(traced: Traced) -> None:
    message = Message(b"x")
    producer = traced.broker.producer(WORK.topic)
    traced.tracing.send(producer, message)
    before = message.headers["traceparent"]
    traced.tracing.send(producer, message)
    first, again = traced.spans()
    assert message.headers["traceparent"] == before
    assert again.kind is SpanKind.CLIENT
    (link,) = again.links
    assert (link.context.trace_id, link.context.span_id) == ids(first)


def test_a_failed_send_is_an_error(traced: Traced) -> None:
    nowhere = Topic("nowhere")
    traced.broker.provision(nowhere)
    with pytest.raises(UnroutableError):
        traced.tracing.send(traced.broker.producer(nowhere), b"x")
    (span,) = traced.spans()
    assert attributes(span)["error.type"] == "UnroutableError"
    assert span.status.status_code is StatusCode.ERROR


def test_without_headers_nothing_is_put_in(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = traced.broker.producer(WORK.topic)
    facts = {**producer.capabilities.facts, Guarantee.HEADERS: Fact(Level.ABSENT, "none")}
    bare: Capabilities = replace(producer.capabilities, facts=facts)
    monkeypatch.setattr(producer, "capabilities", bare)
    message = Message(b"x")
    traced.tracing.send(producer, message)
    (span,) = traced.spans()
    assert span.kind is SpanKind.CLIENT
    assert not message.headers


def test_what_many_carry(traced: Traced) -> None:
    """For send_many() the application puts the context in."""
    headers = {"own": "kept"}
    messages = [Message(b"x", headers=headers) for _ in range(3)]
    tracer = traced.provider.get_tracer("application")
    with tracer.start_as_current_span("import of a file") as span:
        for message in messages:
            inject(message)
    traced.broker.producer(WORK.topic).send_many(messages)
    with traced.broker.consumer(WORK) as consumer:
        for delivery in consumer.receive(3, 10.0):
            assert context_of(delivery.message) == replace_remote(span.get_span_context())
            assert delivery.message.headers["own"] == "kept"
    assert headers == {"own": "kept"}  # the application's own dictionary is left alone


def replace_remote(context: Any) -> Any:
    """The same context as somebody else's."""
    return type(context)(
        context.trace_id, context.span_id, True, context.trace_flags, context.trace_state
    )


def test_what_is_no_context_is_none() -> None:
    assert context_of(Message(b"x")) is None
    assert context_of(Message(b"x", headers={"traceparent": "not one"})) is None


def test_systems_have_their_conventional_names(
    fake: Callable[[str], Broker],
) -> None:
    found = {
        url: Tracing(fake(url))._always
        for url in ("amqps://u:secret@rabbit:5671/v", "redis://cache", "pubsub://project")
    }
    assert found["amqps://u:secret@rabbit:5671/v"] == {
        "messaging.system": "rabbitmq",
        "server.address": "rabbit",
        "server.port": 5671,
    }
    assert found["redis://cache"]["messaging.system"] == "redis"
    assert found["pubsub://project"]["messaging.system"] == "gcp_pubsub"


@pytest.fixture
def fake() -> Callable[[str], Broker]:
    def make(url: str) -> Broker:
        broker = Broker.__new__(Broker)
        broker.url = anymq.url.Url.parse(url)
        return broker

    return make


def test_without_opentelemetry_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import anymq; import anymq.tracing"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'anymq[otel]'" in done.stderr
