"""anymq for asyncio: the same interface, its methods awaited where they may wait.

>>> import asyncio
>>> from anymq import Subscription, Topic, aio
>>> orders = Topic("orders")
>>> billing = Subscription(orders, "billing")
>>> async def main():
...     async with aio.connect("memory://aio-readme") as broker:
...         await broker.provision(billing)
...         producer = await broker.producer(orders)
...         await producer.send_json({"order": 1}, key="customer-7")
...         async for delivery in await broker.consumer(billing):
...             async with delivery:  # acks at its end; nacks, and in the end parks, when it raises
...                 print(delivery.message.json())
...             break
>>> asyncio.run(main())
{'order': 1}

It is the core of anymq on its own threads, behind a session that keeps to one event loop. The loop
is never blocked: what may wait for a broker, or for room, happens on another thread, and comes back
in batches with one wake-up each. Cancelling loses nothing: a receive that is cancelled has taken
nothing, a send that is cancelled may go on, and closing ends before the cancelled task does. Works
on any event loop, also uvloop's.
"""

from anymq.aio.broker import Broker, Connecting, connect
from anymq.aio.consumer import Consumer, Delivery
from anymq.aio.producer import Producer

__all__ = ["Broker", "Connecting", "Consumer", "Delivery", "Producer", "connect"]
