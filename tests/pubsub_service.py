"""A server that speaks gRPC as Pub/Sub does and says what it is told: what no stand-in says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from google.pubsub_v1 import types as pubsub
from google.rpc import status_pb2
from grpc_status import rpc_status

THERE = pubsub.Subscription.serialize(pubsub.Subscription(ack_deadline_seconds=60))


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every method with nothing, but for those in `answers`: bytes, or a refusal."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"GetSubscription": THERE}
        self.asked: Counter[str] = Counter()
        self.published: list[bytes] = []
        self.made: list[bytes] = []

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)
        )

    def _answer(self, method: str, request: bytes, context: Any) -> bytes:
        if method == "Publish":
            self.published.append(request)
        if method == "CreateSubscription":
            self.made.append(request)
        self.asked[method] += 1
        answer = self.answers.get(method, b"")
        if isinstance(answer, status_pb2.Status):
            context.abort_with_status(rpc_status.to_status(answer))
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "on purpose")
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else b""
        found: bytes = answer
        return found


@contextmanager
def serving() -> Iterator[tuple[Service, str]]:
    """The server, and the URL that leads to it."""
    unlimited = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=unlimited)
    handler = Service()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"pubsub://project?endpoint=127.0.0.1:{port}"
    server.stop(0).wait()
