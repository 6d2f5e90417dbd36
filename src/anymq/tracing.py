"""Spans and trace context for OpenTelemetry: what was sent where, and what became of it.

Needs the API alone (`pip install 'anymq[otel]'`); an application that configures no SDK gets
nothing, at next to no cost. Explicit, and not patched in: a message carries the context of its
span in plain headers (`traceparent`, `tracestate`, `baggage` with W3C's propagator, the usual
one), which every broker with message.headers passes on, and which stay in dead letters and in
what is redriven.

    tracing = Tracing(broker)
    tracing.send(producer, b"...")                 # span "send orders"
    for delivery in consumer:
        with tracing.process(delivery, billing):   # span "process orders", linked to it; settles
            handle(delivery.message)

Names and attributes are those of OpenTelemetry's conventions for messaging, whose status is still
development. The destination is the topic as anymq calls it, on every broker;
`messaging.system` is a value of the conventions where they have one, else the URL's scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from anymq.broker import Broker
from anymq.capabilities import Guarantee
from anymq.message import Delivery, Message, SendOutcome
from anymq.producer import Producer
from anymq.topics import Subscription, Topic

try:
    from opentelemetry import propagate, trace
except ImportError as error:
    raise ImportError("anymq.tracing needs opentelemetry-api: pip install 'anymq[otel]'") from error

SYSTEMS = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "rabbitmqs": "rabbitmq",
    "rediss": "redis",
    "sqs": "aws_sqs",
    "pubsub": "gcp_pubsub",
}


class Tracing:
    """Makes the spans of one session. Any thread. `provider`: None is the global one."""

    def __init__(self, broker: Broker, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("anymq", tracer_provider=provider)
        scheme = broker.url.scheme
        self._always: dict[str, Any] = {"messaging.system": SYSTEMS.get(scheme, scheme)}
        if broker.url.hosts:
            host, port = broker.url.hosts[0]
            self._always["server.address"] = host
            if port is not None:
                self._always["server.port"] = port

    def send(self, producer: Producer, message: bytes | Message) -> SendOutcome:
        """Producer.send() in a span whose context the message carries. One that carries a context
        already (it is sent again, or passed on) keeps it, and the span is linked to it."""
        message = message if isinstance(message, Message) else Message(message)
        created = context_of(message)
        carries = created is None and producer.capabilities.has(Guarantee.HEADERS)
        with self._span(
            "send",
            trace.SpanKind.PRODUCER if carries else trace.SpanKind.CLIENT,
            self._about(message, producer.topic),
            created,
        ) as span:
            if carries:
                inject(message)
            outcome = producer.send(message)
            span.set_attribute("messaging.message.id", message.id or "")
            return outcome

    @contextmanager
    def process(
        self, delivery: Delivery, subscription: Subscription, *, parent: bool = False
    ) -> Iterator[Delivery]:
        """`with delivery:` in a span that is linked to the one in which the message was made, or,
        with `parent`, is its child: for a handler that is one step of the same trace."""
        created = context_of(delivery.message)
        about = self._about(delivery.message, subscription.topic)
        about["messaging.destination.subscription.name"] = subscription.name
        kind = trace.SpanKind.CONSUMER
        with self._span("process", kind, about, created, parent=parent), delivery:
            yield delivery

    def _about(self, message: Message, topic: Topic) -> dict[str, Any]:
        found = {
            "messaging.destination.name": str(topic),
            "messaging.message.id": message.id,
            "messaging.message.conversation_id": message.correlation_id,
        }
        return {**self._always, **{k: v for k, v in found.items() if v is not None}}

    @contextmanager
    def _span(
        self,
        doing: str,
        kind: trace.SpanKind,
        about: Mapping[str, Any],
        created: trace.SpanContext | None,
        *,
        parent: bool = False,
    ) -> Iterator[trace.Span]:
        own = {"messaging.operation.name": doing, "messaging.operation.type": doing}
        over = trace.set_span_in_context(trace.NonRecordingSpan(created)) if created else None
        with self._tracer.start_as_current_span(
            f"{doing} {about['messaging.destination.name']}",
            context=over if parent else None,
            kind=kind,
            attributes={**about, **own},
            links=[trace.Link(created)] if created and not parent else (),
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                raise


def inject(message: Message) -> None:
    """Let the message carry the context of the current span: for sends that Tracing does not do,
    such as send_many()."""
    carrier: dict[str, str] = dict(message.headers)
    propagate.inject(carrier)
    message.headers = carrier


def context_of(message: Message) -> trace.SpanContext | None:
    """The span in which the message was made, where it tells."""
    context = propagate.extract(message.headers)
    found = trace.get_current_span(context).get_span_context()
    return found if found.is_valid else None
