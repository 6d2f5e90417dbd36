"""What the stand-ins of Amazon SQS and SNS get wrong.

Seen by running both (ministack 1.5.33, ElasticMQ 1.6.14); what AWS does instead is in its own API
reference, under the name of the action.
"""

from __future__ import annotations

from anymq.testing.standins.deviation import Deviation

_USERS = Deviation(
    "takes any credentials, and has no users",
    "AWS SQS API reference, common errors: InvalidClientTokenId, AccessDenied",
    error="BrokerFailed",
)
_PASSWORD = Deviation(
    "takes any credentials", "AWS SQS API reference, common errors: InvalidClientTokenId"
)
_PURGE = Deviation(
    "refuses to delete what has been purged, where a delete twice succeeds",
    "AWS SQS API reference, DeleteMessage",
    error="LeaseLostError",
)
_BOTH = {"SEC-03": _PASSWORD, "SEC-04": _USERS, "SEC-05": _PASSWORD}

MINISTACK = {
    **_BOTH,
    "DEL-06": Deviation(
        "keeps nothing when it is killed, not even queues",
        "AWS SQS developer guide: stored in several places before the answer",
        error="NotFoundError",
    ),
    "ADM-03": _PURGE,
}
ELASTICMQ = {
    **_BOTH,
    "DEL-06": Deviation(
        "answers before it has written: a kill loses what came last", "seen on 1.6.14", run=False
    ),
    "PAY-08": Deviation(
        "takes no message of more than 256 KiB",
        "AWS SQS API reference, SendMessage: 1 MiB",
        error="TooLargeError",
    ),
    "FLW-03": Deviation(
        "takes no message of more than 256 KiB",
        "AWS SQS API reference, SendMessage: 1 MiB",
        error="ValueError",
    ),
    "ADM-03": _PURGE,
}
TABLES = {"ministack": MINISTACK, "ElasticMQ": ELASTICMQ}
# ElasticMQ has no SNS, and what disturbs one stand-in disturbs both.
SECOND = {"ministack": "elasticmq", "ministack, sqs-sns": "", "ministack, sqs-rough": ""}
