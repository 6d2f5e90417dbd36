import sys

from anymq import Subscription, Topic, connect

orders = Topic("orders")
billing = Subscription(orders, "billing")

with connect(sys.argv[1]) as broker:
    broker.provision(billing)
    with broker.consumer(billing) as consumer, broker.producer(orders) as producer:
        producer.send_json({"order": 1}, key="customer-7")
        for delivery in consumer:
            with delivery:  # acks at its end; gives the message back when it raises
                print(delivery.message.key, delivery.message.json())
            break
