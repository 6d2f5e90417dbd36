"""The one place where pika's errors become anymq's."""

from __future__ import annotations

from pika import exceptions as pika

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigConflictError,
    ConnectionLostError,
    NotFoundError,
    ThrottledError,
    tls_failure,
)

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 406, 530


def connecting(error: BaseException, place: str, user: str, vhost: str) -> AnymqError:
    """Why no connection could be opened to `place`, a host:port."""
    cause = _root(error)
    code = cause.reply_code if isinstance(cause, pika.ConnectionClosedByBroker) else None
    text = str(cause)
    denied = code == NOT_ALLOWED or isinstance(cause, pika.ProbableAccessDeniedError)
    if code == ACCESS_REFUSED or isinstance(
        cause, (pika.AuthenticationError, pika.ProbableAuthenticationError)
    ):
        found: AnymqError = AuthenticationError(
            f"RabbitMQ at {place} does not accept user {user!r} with this password"
        )
    elif encrypting := tls_failure(cause, f"RabbitMQ at {place}"):
        found = encrypting
    elif denied and "not found" in text:
        found = NotFoundError(
            f"RabbitMQ at {place} has no virtual host {vhost!r}: create it with"
            f" `rabbitmqctl add_vhost {vhost}`, or name another one as the path of the URL"
        )
    elif denied:
        found = AuthorizationError(
            f"user {user!r} may not use virtual host {vhost!r} of RabbitMQ at {place}"
        )
    else:
        found = ConnectionLostError(
            f"no RabbitMQ answers at {place} ({describe(cause)}): is it running, and is this its"
            " host and AMQP port?"
        )
    found.__cause__ = cause
    return found


def lost(error: BaseException, place: str) -> ConnectionLostError:
    """An open connection to `place` ended."""
    found = ConnectionLostError(f"the connection to RabbitMQ at {place} ended: {describe(error)}")
    found.__cause__ = error
    return found


def alarm(reason: str, place: str) -> ThrottledError:
    """RabbitMQ's connection.blocked (rabbitmq.com/docs/connection-blocked)."""
    return ThrottledError(
        f"RabbitMQ at {place} takes no messages for now: {reason}. It goes on by itself when it has"
        " room again; `rabbitmq-diagnostics alarms` shows more"
    )


def refused(error: BaseException, what: str, place: str, right: str = "configure") -> AnymqError:
    """Why `what` (e.g. "queue 'orders_billing'") could not be had: its channel was closed.
    `right` was needed, which 3.10 does not tell."""
    if not isinstance(error, pika.ChannelClosedByBroker):
        return error if isinstance(error, AnymqError) else lost(error, place)
    code, text = error.reply_code, error.reply_text
    what = f"RabbitMQ at {place}: {what}"
    if code == NOT_FOUND:
        found: AnymqError = NotFoundError(
            f"{what} does not exist: call broker.provision() first, or correct its address ({text})"
        )
    elif code == ACCESS_REFUSED:
        named = text if right in text else f"{text}, which needs the right to {right}"
        found = AuthorizationError(f"{what}: {named} (`rabbitmqctl set_permissions` allows it)")
    elif code == PRECONDITION_FAILED and "inequivalent" in text:
        found = ConfigConflictError(f"{what} exists and differs: {text}")
    else:
        found = BrokerError(f"{what}: refused with {code} {text}")
    found.__cause__ = error
    return found


def timed_out(error: BaseException) -> bool:
    """Did a channel close because a delivery was held for longer than the consumer timeout?"""
    return (
        isinstance(error, pika.ChannelClosedByBroker)
        and "ack" in error.reply_text
        and ("timed out" in error.reply_text)
    )


def session_over(error: AnymqError, what: str) -> AnymqError:
    """A channel that the broker closed ends the session, like a lost connection: the one who
    connects again learns what is wrong with `what`."""
    if isinstance(error, ConnectionLostError):
        return error
    found = ConnectionLostError(f"RabbitMQ closed the channel of {what}: {error}")
    found.__cause__ = error
    return found


def describe(error: BaseException) -> str:
    """One line that says something, where str(error) may be empty or a tuple."""
    if isinstance(error, (pika.ChannelClosedByBroker, pika.ConnectionClosedByBroker)):
        return f"{error.reply_code} {error.reply_text}"
    return str(error) or type(error).__name__


def _root(error: BaseException) -> BaseException:
    """pika wraps what happened to each attempt in one or more layers of exceptions."""
    while True:
        inner = getattr(error, "exceptions", None) or error.args
        last = inner[-1] if inner else None
        deeper = getattr(last, "exception", None) or last
        if not isinstance(deeper, BaseException):
            return error
        error = deeper
