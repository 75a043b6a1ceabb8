import asyncio
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as AioTopicPartition
from confluent_kafka import Consumer, Producer, TopicPartition

from stream.engine import embedded_broker
from stream.engine.embedded_broker import PARTITION_BYTES, EmbeddedBroker, EmbeddedBrokerError


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"clicks": 4, "big": 1}) as running:
        yield running


def produce(broker: EmbeddedBroker, topic: str, values: list[bytes], partition: int = -1) -> None:
    producer = Producer({"bootstrap.servers": broker.address})
    for value in values:
        producer.produce(topic, value, key=value[:8], partition=partition)
        producer.poll(0)
    assert producer.flush(10) == 0
    producer.close()


def test_topics_come_with_the_partitions_asked_for_and_more_can_be_made_later(broker: EmbeddedBroker) -> None:
    broker.create_topic("later", 7)
    producer = Producer({"bootstrap.servers": broker.address})
    topics = producer.list_topics(timeout=10).topics
    producer.close()
    assert {name: len(topics[name].partitions) for name in ("clicks", "later")} == {"clicks": 4, "later": 7}


@pytest.mark.parametrize(("name", "partitions"), [("clicks", 4), ("", 1), ("none", 0)])
def test_a_topic_that_cannot_be_made_is_an_error(broker: EmbeddedBroker, name: str, partitions: int) -> None:
    with pytest.raises(EmbeddedBrokerError):
        broker.create_topic(name, partitions)


def test_confluent_kafka_produces_joins_a_group_and_commits(broker: EmbeddedBroker) -> None:
    broker.create_topic("from-confluent", 4)
    produce(broker, "from-confluent", [b"%d" % n for n in range(100)])
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "c", "auto.offset.reset": "earliest"})
    consumer.subscribe(["from-confluent"])
    seen: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(seen) < 100 and time.monotonic() < deadline:
        seen += [message.value() for message in consumer.consume(100, 0.2)]
    consumer.commit(asynchronous=False)
    consumer.close()
    assert sorted(map(int, seen)) == list(range(100))

    outside = Consumer({"bootstrap.servers": broker.address, "group.id": "c"})
    committed = outside.committed([TopicPartition("from-confluent", n) for n in range(4)], timeout=10)
    outside.close()
    assert sum(place.offset for place in committed) == 100


def test_aiokafka_produces_joins_a_group_and_commits(broker: EmbeddedBroker) -> None:
    broker.create_topic("from-aiokafka", 4)

    async def there_and_back() -> tuple[list[int], int]:
        producer = AIOKafkaProducer(bootstrap_servers=broker.address)
        await producer.start()
        for n in range(100):
            await producer.send("from-aiokafka", b"%d" % n, key=b"%d" % n)
        await producer.stop()
        consumer = AIOKafkaConsumer(
            "from-aiokafka",
            bootstrap_servers=broker.address,
            group_id="a",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        seen: list[int] = []
        async with asyncio.timeout(10):
            while len(seen) < 100:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    seen += [int(record.value) for record in records]
        await consumer.commit()
        committed = [await consumer.committed(AioTopicPartition("from-aiokafka", n)) for n in range(4)]
        await consumer.stop()
        return sorted(seen), sum(committed)

    assert asyncio.run(there_and_back()) == (list(range(100)), 100)


def test_a_partition_loses_its_oldest_records_beyond_its_capacity_as_the_docstring_warns(
    broker: EmbeddedBroker,
) -> None:
    produce(broker, "big", [b"%1000d" % n for n in range(PARTITION_BYTES // 1000 + 3000)], partition=0)
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "w"})
    oldest, end = consumer.get_watermark_offsets(TopicPartition("big", 0), timeout=10)
    consumer.close()
    assert oldest > 0
    assert (end - oldest) * 1000 <= PARTITION_BYTES


def test_two_brokers_run_side_by_side_and_their_ports_close_behind_them() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        addresses = [one.address, other.address]
        assert len(set(addresses)) == 2
    for address in addresses:
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=5):
            pass
    with pytest.raises(EmbeddedBrokerError, match="not running"):
        one.create_topic("clicks", 1)


def test_a_librdkafka_without_the_mock_cluster_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker, "cimpl", SimpleNamespace(__file__=None))  # the process itself: no librdkafka
    with pytest.raises(EmbeddedBrokerError, match="no embedded broker here"), EmbeddedBroker():
        pass
