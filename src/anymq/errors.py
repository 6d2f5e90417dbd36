"""The errors of anymq.

AnymqError
├── ConfigError                     the URL, an option or a name is wrong; nothing was sent
│   ├── RequirementError            `requires=` names what this broker does not give
│   └── AdapterMissingError         the client library is not installed: says what to install
├── InvalidMessageError             no broker could carry it: a body that is not bytes, ...
│   └── DecodeError                 a body that does not hold what the handler expects
├── UnsupportedError                the broker cannot
├── PlannedError                    the broker can, the adapter does not yet
├── ClosedError                     used after close()
├── BackPressureTimeout             too much waits for the broker; nothing was handed over  (again)
├── SendManyError                   some messages of one send_many() were not stored
└── BrokerError                     the broker, or the way to it, said no
    ├── ConnectionLostError         this session is over, or none could be opened  (again)
    ├── ThrottledError              slower  (again)
    ├── AuthenticationError         who are you
    ├── AuthorizationError          you may not: names the action and the resource
    ├── NotFoundError               no such topic, subscription or queue
    ├── ConfigConflictError         it exists and differs: names both values
    ├── SendUnknownError            no answer: the message may be stored  (again)
    ├── LeaseLostError              the delivery is no longer ours; somebody else may have it
    └── RejectedError               the broker refused this message
        ├── TooLargeError           with the size and the limit
        └── UnroutableError         nobody is there to receive it

Those marked (again) are retryable: the same call may succeed later, unchanged.
The native error, where there is one, is the `__cause__`.
No error shows a password.
"""

from __future__ import annotations


class AnymqError(Exception):
    """Anything that anymq raises on purpose."""

    retryable = False


class ConfigError(AnymqError):
    """The URL, an option or a name is wrong."""


class RequirementError(ConfigError):
    """A topic or subscription requires what this broker does not give."""


class AdapterMissingError(ConfigError):
    """The client library of this adapter is not installed."""


class InvalidMessageError(AnymqError, ValueError):
    """This message cannot be sent by any adapter."""


class DecodeError(InvalidMessageError):
    """The body does not hold what the handler expects. Trying again cannot help."""


class UnsupportedError(AnymqError):
    """The broker cannot."""


class PlannedError(AnymqError):
    """The broker can, the adapter does not yet."""


class ClosedError(AnymqError):
    """Used after close()."""


class BackPressureTimeout(AnymqError):
    """Too much waits for the broker's answer. This message was not handed over: send it again."""

    retryable = True


class BrokerError(AnymqError):
    """The broker, or the way to it, said no."""


class ConnectionLostError(BrokerError):
    """This session is over, or none could be opened. `since` is the time.time() when the broker was
    last known to be there, where that was before the error."""

    retryable = True
    since: float | None = None


class ThrottledError(BrokerError):
    """Slower."""

    retryable = True


class AuthenticationError(BrokerError):
    """The broker does not accept these credentials."""


class AuthorizationError(BrokerError):
    """These credentials may not do this."""


class NotFoundError(BrokerError):
    """No such topic, subscription or queue."""


class ConfigConflictError(BrokerError):
    """It exists and differs from what was asked for."""


class SendUnknownError(BrokerError):
    """No answer came: the message may be stored. Sent again, it may be there twice. `lost`: its
    session is, too, so that it can be sent again on the next one at once."""

    retryable = True
    lost = True


class LeaseLostError(BrokerError):
    """The delivery is no longer ours; somebody else may have it."""


class RejectedError(BrokerError):
    """The broker refused this message."""


class TooLargeError(RejectedError):
    """The message is larger than the broker takes."""


class UnroutableError(RejectedError):
    """Nobody is there to receive it."""


class SendManyError(AnymqError):
    """Some messages of a send_many() were not stored. `report` has the counts and examples."""

    def __init__(self, text: str, report: object) -> None:
        super().__init__(text)
        self.report = report
