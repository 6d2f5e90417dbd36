"""Orders are billed: those of a customer in their order, again when the bank does not answer, and
put aside when nothing helps. Which broker carries them is not said here:

    BROKER=kafka python app.py
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from anymq import Backoff, Consumer, Guarantee, Subscription, Topic, connect
from anymq.errors import RequirementError

ORDERS = Topic("orders")
BILLING = Subscription(
    ORDERS,
    "billing",
    ordered=True,
    max_attempts=3,
    dead_letter=True,
    requires=(
        Guarantee.AT_LEAST_ONCE,
        Guarantee.RETAINED_WITHOUT_CONSUMER,
        Guarantee.ORDER_AFTER_NACK,
        Guarantee.DEAD_LETTER_NO_LOSS,
    ),
)
LOSSY_BILLING = Subscription(ORDERS, "billing")  # any broker will do
RETRY = Backoff(first=0.5, cap=30.0)
TO_SEND = [("ann", 30), ("bob", 20), ("ann", 45), ("cleo", 0), ("bob", 99), ("cleo", 12)]


class BankError(Exception):
    """It was not charged."""


class Bank:
    """Stands for any service that handlers call: it never charges 0, and did not answer once."""

    def __init__(self) -> None:
        self.slept = False

    def charge(self, customer: str, amount: int) -> None:
        if amount <= 0:
            raise BankError(f"cannot charge {amount}")
        if customer == "bob" and not self.slept:
            self.slept = True
            raise BankError("no answer")


class Billing:
    """Handles orders, and remembers which are done with."""

    def __init__(self, lossy: bool) -> None:
        self.bank = Bank()
        self.lossy = lossy
        self.done: set[int] = set()

    def handle(self, consumer: Consumer) -> None:
        for delivery in consumer.receive(1):  # more would be later ones of a key that fails
            order = delivery.message.json()
            try:
                with delivery:  # acks; when it raises the order comes again, or is put aside
                    self.bank.charge(order["customer"], order["amount"])
                    self.report("billed", order)
            except BankError as error:
                self.report("failed", order, f": {error}")

    def put_aside(self, consumer: Consumer) -> None:
        for delivery in consumer.receive(10, wait=0.0):
            with delivery:
                order, headers = delivery.message.json(), delivery.message.headers
                print(f"put aside: order {order['number']}: {headers['anymq-dead-error']}")
                self.done.add(order["number"])

    def report(self, what: str, order: dict[str, Any], why: str = "") -> None:
        print(f"{order['customer']}: {what} order {order['number']}{why}", flush=True)
        if what != "failed" or self.lossy:
            self.done.add(order["number"])


def run(url: str, lossy: bool) -> None:
    subscription = LOSSY_BILLING if lossy else BILLING
    with connect(url, subscription) as broker:
        broker.provision(subscription)
        consumer = broker.consumer(subscription, backoff=None if lossy else RETRY)
        letters = None if lossy else broker.consumer(BILLING.dead_letters)
        producer = broker.producer(ORDERS)
        for number, (customer, amount) in enumerate(TO_SEND, 1):
            order = {"number": number, "customer": customer, "amount": amount}
            producer.send_json(order, key=customer)
        billing = Billing(lossy)
        while len(billing.done) < len(TO_SEND):
            billing.handle(consumer)
            if letters:
                billing.put_aside(letters)


if __name__ == "__main__":
    brokers = tomllib.loads(Path(__file__).with_name("brokers.toml").read_text("utf-8"))
    config = brokers[os.environ.get("BROKER", "memory")]
    try:
        run(os.environ.get("BROKER_URL", config["url"]), config.get("lossy", False))
    except RequirementError as error:
        sys.exit(str(error))
