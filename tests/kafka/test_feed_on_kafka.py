"""The feeder on a real Kafka: what the embedded broker cannot show, since it has no transactions."""

import time
import uuid
from contextlib import closing

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from stream.feed import Ahead, CommittedOffsets, Feeder
from stream.lines import Line


def test_the_feeder_follows_a_worker_that_commits_its_offsets_in_transactions(kafka: str) -> None:
    connection = {"bootstrap.servers": kafka}
    topic = group = f"t-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(connection)  # kept by name: its futures end with it
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    worker = Consumer({**connection, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False})
    worker.subscribe([topic])
    producer = Producer({**connection, "transactional.id": group})
    producer.init_transactions(30)
    with (
        closing(CommittedOffsets(connection, group)) as committed,
        closing(Feeder(connection, ahead=Ahead(committed, patience=0.5))) as feeder,
    ):
        assert feeder.send(Line(topic, b"u", b"%d" % n, None) for n in range(50)) == 50
        seen = 0
        deadline = time.monotonic() + 30
        while seen < 50 and time.monotonic() < deadline:
            seen += len(worker.consume(50, 0.2))
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, 50)], worker.consumer_group_metadata(), 30)

        begun = time.monotonic()
        assert committed([(topic, 0)]) == {}, "not committed yet"
        assert time.monotonic() - begun < 2, "an open transaction does not hold the answer up"
        assert feeder.lag == 50

        producer.commit_transaction(30)
        feeder.drain()
        assert feeder.lag == 0
    producer.close()
    worker.close()
