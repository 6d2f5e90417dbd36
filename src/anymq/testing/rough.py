"""What SQS may do and no stand-in does: a proxy before it, which disturbs what passes.

AWS says of standard queues that a message may come more than once, out of order, and again although
it was deleted; that requests are throttled; and any network drops answers. Here that happens often
enough to be seen.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from anymq.local import address, moved

Body = dict[str, Any]
_SECONDS = 60.0  # longer than any poll
TWICE, LATE = 0.05, 0.05  # how many messages are stored twice, and requests come late


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of one request.

    refuse   it is not passed on, and answered with this status and error code
    drop     it is passed on, and its answer is not
    late     seconds until it is passed on; it is answered at once, as if it had been
    slow     seconds that it takes longer
    again    makes a second request of it, which nobody has sent
    answer   makes another answer of the one that came
    """

    refuse: tuple[int, str] | None = None
    drop: bool = False
    late: float = 0.0
    slow: float = 0.0
    again: Callable[[Body], Body] | None = None
    answer: Callable[[Body], Body] | None = None


Plan = Callable[[str, Body], Fault | None]
"""From the name of an action, as AWS has it, and its arguments, to what becomes of it."""


class RoughSqs:
    """Stands before the SQS that a URL names; `url` leads through it. `seen` has the action of
    each request, in their order. Safe to use from any thread."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.plan = plan
        self.seen: list[str] = []
        self._target = address(url)
        rough = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                rough._pass_on(self)

            def log_message(self, *_: object) -> None:
                """Nothing on standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = moved(url, self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="rough", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        sent = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.seen.append(action)
        fault = (action and self.plan(action, json.loads(sent))) or Fault()
        if fault.refuse:
            status, code = fault.refuse
            error = {"__type": f"com.amazonaws.sqs#{code}", "message": "on purpose"}
            _reply(request, status, json.dumps(error).encode())
            return
        time.sleep(fault.slow)
        headers = dict(request.headers)
        if fault.again and (more := fault.again(json.loads(sent))):
            self._ask(request.path, headers, json.dumps(more).encode())
        if fault.late:
            threading.Timer(fault.late, self._ask, (request.path, headers, sent)).start()
            done = [{"Id": entry["Id"]} for entry in json.loads(sent)["Entries"]]
            _reply(request, 200, json.dumps({"Successful": done}).encode())
            return
        status, body = self._ask(request.path, headers, sent)
        if fault.drop:
            request.close_connection = True
            return
        if fault.answer and status == 200:
            body = json.dumps(fault.answer(json.loads(body))).encode()
        _reply(request, status, body)

    def _ask(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        kept = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        connection = http.client.HTTPConnection(*self._target, timeout=_SECONDS)
        try:
            connection.request("POST", path, body, kept)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError as error:
            return 503, json.dumps({"__type": "ServiceUnavailable", "message": str(error)}).encode()
        finally:
            connection.close()


def _reply(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/x-amz-json-1.0")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def standard_queue(chance: random.Random) -> Plan:
    """A standard queue on a bad day: one message in 20 is stored twice, what is received is
    shuffled, one delete in 20 is late, and counts are not exact."""

    def plan(action: str, _: Body) -> Fault | None:
        if action == "SendMessageBatch":
            return Fault(again=lambda body: _some(body, chance))
        if action == "ReceiveMessage":
            return Fault(answer=lambda body: _shuffled(body, chance))
        if action == "DeleteMessageBatch" and chance.random() < LATE:
            return Fault(late=1.0)
        return None

    return plan


def _some(body: Body, chance: random.Random) -> Body:
    entries = [one for one in body["Entries"] if chance.random() < TWICE]
    return {**body, "Entries": entries} if entries else {}


def _shuffled(body: Body, chance: random.Random) -> Body:
    messages = body.get("Messages") or []
    return {**body, "Messages": chance.sample(messages, len(messages))}
