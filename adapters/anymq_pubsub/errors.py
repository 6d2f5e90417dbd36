"""The one place where the errors of Google's client become anymq's."""

from __future__ import annotations

from typing import Any

import grpc
from google.api_core import exceptions as google
from google.auth import exceptions as auth

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigConflictError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    TooLargeError,
)

NO_CREDENTIALS = "Getting metadata from plugin failed"  # how gRPC tells that of the credentials
TOO_LARGE = "larger than max"  # how gRPC tells that a server takes no such message
KINDS: tuple[tuple[type[Exception], type[AnymqError]], ...] = (
    (google.Unauthenticated, AuthenticationError),
    (google.Forbidden, AuthorizationError),
    (google.NotFound, NotFoundError),
    (google.AlreadyExists, ConfigConflictError),
    (google.TooManyRequests, ThrottledError),
    (google.FailedPrecondition, ConfigConflictError),
    (google.BadRequest, RejectedError),
    (google.ServiceUnavailable, ConnectionLostError),
    (google.GatewayTimeout, ConnectionLostError),
    (google.Cancelled, ConnectionLostError),
    (auth.GoogleAuthError, AuthenticationError),
)
ADVICE: dict[type[AnymqError], str] = {
    AuthenticationError: "correct the credentials, which Google's libraries find, e.g. by"
    " GOOGLE_APPLICATION_CREDENTIALS",
    AuthorizationError: "grant it by a role, e.g. roles/pubsub.editor",
    NotFoundError: "call broker.provision() first, or correct its address",
}
AWAY = "is it running, and can it be reached from here?"
# After these nothing was stored. Of all others that is not known.
REFUSED = (
    AuthenticationError,
    AuthorizationError,
    ConfigConflictError,
    NotFoundError,
    RejectedError,
    ThrottledError,
)
# What passes by itself (docs/reference/error-codes).
PASSING = (google.Aborted, google.InternalServerError, google.Unknown)


def translate(error: Exception, doing: str) -> AnymqError:
    """`error` is from gRPC, Google's client or its credentials."""
    if isinstance(error, grpc.RpcError):
        error = google.from_grpc_error(error)
    text = getattr(error, "message", None) or str(error)
    kind: type[AnymqError] = BrokerError
    for native, ours in KINDS:
        if isinstance(error, native):
            kind = ours
            break
    if NO_CREDENTIALS in text:
        kind = AuthenticationError
    elif kind is ThrottledError and TOO_LARGE in text:
        kind = TooLargeError
    advice = AWAY if isinstance(error, google.ServiceUnavailable) else ADVICE.get(kind)
    found = kind(f"{doing}: {text}" + (f" ({advice})" if advice else ""))
    if isinstance(error, PASSING):
        found.retryable = True
    found.__cause__ = error
    return found


def of(call: Any) -> Exception | None:
    """Of a call of gRPC that is over."""
    try:
        found: Exception | None = call.exception()
    except grpc.FutureCancelledError as error:
        return google.Cancelled(f"given up {error}".strip())  # type: ignore[no-any-return]
    return found


def is_unanswered(error: Exception) -> bool:
    """No answer came in time, or it was not waited for."""
    if isinstance(error, google.Cancelled):
        return True
    code: Any = getattr(error, "code", None)
    return code is not None and code() is grpc.StatusCode.DEADLINE_EXCEEDED


def refused_ids(error: Exception) -> set[str]:
    """The ack ids that a subscription with exactly-once delivery did not take. Empty where the
    error is about all of them."""
    if isinstance(error, grpc.RpcError):
        error = google.from_grpc_error(error)
    details = getattr(error, "details", None) or ()
    return {ack_id for detail in details for ack_id in getattr(detail, "metadata", None) or ()}


def lease_lost(message_id: str | None) -> LeaseLostError:
    return LeaseLostError(f"message {message_id}: its lease is over: somebody else may have it")
