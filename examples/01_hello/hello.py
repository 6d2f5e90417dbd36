import sys

from anymq import Subscription, Topic, connect

greetings = Topic("greetings")
readers = Subscription(greetings, "readers")

with connect(sys.argv[1]) as broker:
    broker.provision(readers)
    with broker.consumer(readers) as consumer, broker.producer(greetings) as producer:
        producer.send_json({"hello": "world"}, key="ann")
        for delivery in consumer:
            with delivery:  # acks at its end; gives the message back when it raises
                print(delivery.message.key, delivery.message.json())
            break
