"""The one place where confluent-kafka's errors become anymq's."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from anymq.spi import (
    AnymqError,
    AuthenticationError,
    AuthorizationError,
    BrokerError,
    ClosedError,
    ConfigConflictError,
    ConfigError,
    ConnectionLostError,
    LeaseLostError,
    NotFoundError,
    RejectedError,
    ThrottledError,
    TooLargeError,
)

K = KafkaError

KINDS: dict[int, type[AnymqError]] = {
    **dict.fromkeys((K._AUTHENTICATION, K.SASL_AUTHENTICATION_FAILED), AuthenticationError),
    **dict.fromkeys((K.UNSUPPORTED_SASL_MECHANISM, K.ILLEGAL_SASL_STATE), AuthenticationError),
    **dict.fromkeys(
        (
            K.TOPIC_AUTHORIZATION_FAILED,
            K.GROUP_AUTHORIZATION_FAILED,
            K.CLUSTER_AUTHORIZATION_FAILED,
        ),
        AuthorizationError,
    ),
    **dict.fromkeys(
        (
            K._UNKNOWN_TOPIC,
            K._UNKNOWN_PARTITION,
            K._UNKNOWN_GROUP,
            K.UNKNOWN_TOPIC_OR_PART,
            K.UNKNOWN_TOPIC_ID,
            K.GROUP_ID_NOT_FOUND,
        ),
        NotFoundError,
    ),
    **dict.fromkeys((K.MSG_SIZE_TOO_LARGE, K.RECORD_LIST_TOO_LARGE), TooLargeError),
    **dict.fromkeys((K.INVALID_TIMESTAMP, K.INVALID_RECORD, K.POLICY_VIOLATION), RejectedError),
    **dict.fromkeys(
        (
            K.TOPIC_EXCEPTION,
            K.INVALID_PARTITIONS,
            K.INVALID_REPLICATION_FACTOR,
            K.INVALID_CONFIG,
            K._SSL,
            K._INVALID_ARG,
        ),
        ConfigError,
    ),
    **dict.fromkeys((K.NON_EMPTY_GROUP, K.TOPIC_ALREADY_EXISTS), ConfigConflictError),
    **dict.fromkeys(
        (
            K.UNKNOWN_MEMBER_ID,
            K.ILLEGAL_GENERATION,
            K.REBALANCE_IN_PROGRESS,
            K.FENCED_MEMBER_EPOCH,
            K.STALE_MEMBER_EPOCH,
            K.FENCED_INSTANCE_ID,
        ),
        LeaseLostError,
    ),
    K._PURGE_QUEUE: ClosedError,
    K.THROTTLING_QUOTA_EXCEEDED: ThrottledError,
    **dict.fromkeys(
        (
            K._TRANSPORT,
            K._ALL_BROKERS_DOWN,
            K._RESOLVE,
            K._TIMED_OUT,
            K._TIMED_OUT_QUEUE,
            K._MSG_TIMED_OUT,
            K._WAIT_COORD,
            K._DESTROY,
            K._FATAL,
            K.REQUEST_TIMED_OUT,
            K.NETWORK_EXCEPTION,
            K.LEADER_NOT_AVAILABLE,
            K.NOT_LEADER_FOR_PARTITION,
            K.COORDINATOR_NOT_AVAILABLE,
            K.COORDINATOR_LOAD_IN_PROGRESS,
            K.NOT_COORDINATOR,
            K.UNKNOWN_LEADER_EPOCH,  # a topic that was made just now
            K.FENCED_LEADER_EPOCH,
            K.OFFSET_NOT_AVAILABLE,
            K.REPLICA_NOT_AVAILABLE,
        ),
        ConnectionLostError,
    ),
}
"""What is not here is a plain BrokerError."""

ADVICE: dict[type[AnymqError], str] = {
    AuthenticationError: "correct user, password and ?sasl= of the URL",
    AuthorizationError: "kafka-acls.sh --add allows it",
    NotFoundError: "call broker.provision() first, or correct its address",
}

NOT_STORED = frozenset(
    {
        K._PURGE_QUEUE,  # it never left this process
        K._UNKNOWN_TOPIC,
        K._UNKNOWN_PARTITION,
        K.UNKNOWN_TOPIC_OR_PART,
        K.TOPIC_EXCEPTION,
        K.MSG_SIZE_TOO_LARGE,
        K.RECORD_LIST_TOO_LARGE,
        K.INVALID_TIMESTAMP,
        K.INVALID_RECORD,
        K.POLICY_VIOLATION,
        K.TOPIC_AUTHORIZATION_FAILED,
        K.CLUSTER_AUTHORIZATION_FAILED,
    }
)
"""A send that ends with one of these is certainly not stored. With any other it may be: all of five
messages that had ended with _MSG_TIMED_OUT were there when the broker went on (seen on 4.4.0)."""


def of(error: BaseException) -> KafkaError | None:
    """The KafkaError that a KafkaException holds, where it does."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return inner if isinstance(inner, KafkaError) else None


def code(error: AnymqError) -> int | None:
    """The native code of one that was made here."""
    native = of(error.__cause__) if error.__cause__ else None
    return None if native is None else native.code()


def translate(error: BaseException, what: str) -> AnymqError:
    """The portable error for one that the client raised, with it as its cause. `what`: what was
    tried, with place and resource: "Kafka at host:9092: cannot create topic 'orders'"."""
    native = of(error)
    found = BrokerError(f"{what}: {error}") if native is None else from_native(native, what)
    found.__cause__ = error
    return found


def from_native(error: KafkaError, what: str) -> AnymqError:
    """The same for one that it only tells, in a report or a callback."""
    kind = KINDS.get(error.code(), BrokerError)
    advice = f" ({ADVICE[kind]})" if kind in ADVICE else ""
    found = kind(f"{what}: {error.str()}{advice}")
    found.__cause__ = KafkaException(error)
    return found
