"""anymq: one producer/consumer interface for message brokers, and the proof of where they differ.

>>> import anymq
>>> orders = anymq.Topic("orders")
>>> billing = anymq.Subscription(orders, "billing", max_attempts=5, dead_letter=True)
>>> with anymq.connect("memory://readme") as broker:
...     broker.provision(billing)
...     with broker.producer(orders) as producer:
...         outcome = producer.send_json({"order": 1}, key="customer-7")
...     with broker.consumer(billing) as consumer:
...         for delivery in consumer:
...             with delivery:  # acks at its end; nacks, and in the end parks, when it raises
...                 print(delivery.message.json())
...             break
{'order': 1}
"""

from anymq import errors
from anymq.broker import Broker, connect
from anymq.capabilities import Capabilities, Fact, Guarantee, Level, Limits, Scope
from anymq.consumer import Consumer
from anymq.errors import AnymqError
from anymq.message import Delivery, Message, SendOutcome, Status
from anymq.producer import Producer, SendReport
from anymq.redrive import RedriveReport
from anymq.retry import Backoff
from anymq.session import ConnectionChange, ConnectionEvent
from anymq.spi import Depth, Mode
from anymq.topics import Subscription, Topic

__all__ = [
    "AnymqError",
    "Backoff",
    "Broker",
    "Capabilities",
    "ConnectionChange",
    "ConnectionEvent",
    "Consumer",
    "Delivery",
    "Depth",
    "Fact",
    "Guarantee",
    "Level",
    "Limits",
    "Message",
    "Mode",
    "Producer",
    "RedriveReport",
    "Scope",
    "SendOutcome",
    "SendReport",
    "Status",
    "Subscription",
    "Topic",
    "connect",
    "errors",
]
