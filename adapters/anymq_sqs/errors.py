"""The one place where errors of botocore, and of single entries of a batch, become anymq's."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as native
from botocore.parsers import ResponseParserError

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ConfigConflictError,
    ConfigError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    TooLargeError,
    tls_failure,
)

_EXPIRED = ("ExpiredToken", "RequestExpired")
# Parts of error codes, the first that fits: SQS and SNS write them with and without a namespace.
_CODES: tuple[tuple[str, type[AnymqError]], ...] = (
    ("NonExistentQueue", NotFoundError),
    ("QueueDoesNotExist", NotFoundError),
    ("NotFound", NotFoundError),
    ("QueueNameExists", ConfigConflictError),
    ("QueueAlreadyExists", ConfigConflictError),
    ("Throttl", ThrottledError),
    ("OverLimit", ThrottledError),
    ("TooManyRequests", ThrottledError),
    ("PurgeQueueInProgress", ThrottledError),
    ("QueueDeletedRecently", ThrottledError),
    ("InvalidClientTokenId", AuthenticationError),
    ("InvalidAccessKeyId", AuthenticationError),
    ("SignatureDoesNotMatch", AuthenticationError),
    ("UnrecognizedClient", AuthenticationError),
    ("MissingAuthentication", AuthenticationError),
    ("InvalidSecurity", AuthenticationError),
    *((code, AuthenticationError) for code in _EXPIRED),
    ("AccessDenied", AuthorizationError),
    ("AuthorizationError", AuthorizationError),
    ("ReceiptHandle", LeaseLostError),
    ("NotInflight", LeaseLostError),
    ("RequestTooLong", TooLargeError),
    ("InvalidMessageContents", RejectedError),
)
_ADVICE: dict[type[AnymqError], str] = {
    AuthenticationError: "correct the credentials: those of the URL, else what boto3 finds"
    " (environment, profile, role)",
    AuthorizationError: "a policy of the user, or of the queue or topic, must allow it",
    NotFoundError: "call broker.provision() first, or correct its address",
}
_UNSENT = (native.EndpointConnectionError, native.ConnectTimeoutError, native.ProxyConnectionError)
_CONNECTION = (
    native.HTTPClientError,
    native.EndpointConnectionError,
    native.SSLError,
    ResponseParserError,
)
# All that botocore raises; an answer that was cut off is none of its own kinds.
NATIVE = (native.ClientError, native.BotoCoreError, ResponseParserError)
_CREDENTIALS = (
    native.NoCredentialsError,
    native.CredentialRetrievalError,
    native.NoAuthTokenError,
    native.PartialCredentialsError,
)


def translate(error: BaseException, what: str, place: str) -> AnymqError:
    """The portable error for one of botocore. `what`: the action and the thing, e.g. "receive from
    queue 'orders'". The native error is its cause."""
    found = _translate(error, f"SQS at {place}: cannot {what}", place)
    found.__cause__ = error
    return found


def _translate(error: BaseException, what: str, place: str) -> AnymqError:
    if isinstance(error, native.ClientError):
        return of_code(error.response["Error"], what)
    if isinstance(error, _CREDENTIALS):
        return AuthenticationError(
            f"{what}: {error}: give credentials as boto3 finds them (environment, profile, role),"
            " or in the URL as sqs://key:secret@region"
        )
    if isinstance(error, native.SSLError) and (failure := _tls_failure(error, place)):
        return failure
    if isinstance(error, _CONNECTION):
        return ConnectionLostError(
            f"{what}: {error}: is it running, and are region and endpoint right?"
        )
    if isinstance(error, (native.ParamValidationError, native.ProfileNotFound)):
        return ConfigError(f"{what}: {error}")
    return BrokerError(f"{what}: {error}")


def _tls_failure(error: BaseException, place: str) -> AnymqError | None:
    """botocore wraps urllib3's error, and that one the error of OpenSSL."""
    if "doesn't match" in str(error):  # the words of urllib3, which compares the names itself
        return ConfigError(
            f"the certificate of SQS at {place} is not trusted: {error}: write the endpoint with a"
            " name or address that stands in it"
        )
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    return tls_failure(found or error, f"SQS at {place}")


def of_code(answer: Mapping[str, Any], what: str) -> AnymqError:
    """For `{Code, Message}`, of a whole request or of one entry of it."""
    code, text = str(answer.get("Code", "")), str(answer.get("Message", ""))
    said = f"{what}: {code}: {text}" if text else f"{what}: {code}"
    for part, kind in _CODES:
        if part in code:
            return kind(f"{said} ({_ADVICE[kind]})" if kind in _ADVICE else said)
    if (
        "must be shorter" in text
        or "too long" in text
        or "longer than" in text
        or "TooLong" in text
    ):
        return TooLargeError(said)
    return BrokerError(said)


def is_expired(error: BaseException) -> bool:
    """Were the credentials good once?"""
    code = error.response["Error"].get("Code", "") if isinstance(error, native.ClientError) else ""
    return any(part in code for part in _EXPIRED)


def certainly_not_done(error: BaseException) -> bool:
    """Was the request refused, or never sent? Else nobody knows what became of it."""
    if isinstance(error, native.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return bool(status < 500)
    return not isinstance(error, _CONNECTION) or isinstance(error, _UNSENT)
