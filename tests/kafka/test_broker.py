"""The broker that the other tests here rely on does what they rely on."""

import asyncio
import time
import uuid

import broker as broker_module
import pytest
from aiokafka import AIOKafkaConsumer
from broker import BrokerError, KafkaBroker
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic


def make_topic(address: str, partitions: int = 1) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
    return name


def read_committed(address: str, topic: str, count: int) -> list[bytes]:
    """Read `count` committed records by aiokafka, and whatever comes within half a second after them."""

    async def read() -> list[bytes]:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=address, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        await consumer.start()
        seen: list[bytes] = []
        try:
            async with asyncio.timeout(30):
                while len(seen) < count:
                    seen += [r.value for rs in (await consumer.getmany(timeout_ms=200)).values() for r in rs]
            seen += [r.value for rs in (await consumer.getmany(timeout_ms=500)).values() for r in rs]
        finally:
            await consumer.stop()
        return seen

    return asyncio.run(read())


def test_only_committed_records_are_seen_by_aiokafka_when_librdkafka_produces_in_transactions(kafka: str) -> None:
    topic = make_topic(kafka)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"id-{topic}"})
    producer.init_transactions(30)
    for kept, values in ((True, [b"1", b"2"]), (False, [b"aborted"]), (True, [b"3"])):
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value)
        producer.flush(10)
        if kept:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    producer.close()
    assert read_committed(kafka, topic, 3) == [b"1", b"2", b"3"]


def test_offsets_sent_in_a_transaction_are_committed_with_it(kafka: str) -> None:
    topic = make_topic(kafka)
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"g-{topic}", "isolation.level": "read_committed"})
    consumer.subscribe([topic])
    deadline = time.monotonic() + 30
    while not consumer.assignment() and time.monotonic() < deadline:
        consumer.poll(0.1)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"id-{topic}"})
    producer.init_transactions(30)
    for offset, kept in ((7, True), (9, False)):
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, offset)], consumer.consumer_group_metadata(), 30)
        if kept:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    committed = consumer.committed([TopicPartition(topic, 0)], timeout=30)
    producer.close()
    consumer.close()
    assert [place.offset for place in committed] == [7]


def test_what_was_acknowledged_is_there_after_kill_minus_9_and_at_the_same_address(own_kafka: KafkaBroker) -> None:
    topic = make_topic(own_kafka.address)
    producer = Producer({"bootstrap.servers": own_kafka.address, "transactional.id": "kept", "acks": "all", "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    for n in range(100):
        producer.produce(topic, b"%d" % n)
    producer.commit_transaction(30)

    own_kafka.kill()
    own_kafka.start()

    producer.begin_transaction()  # the same producer goes on: the transaction coordinator has recovered too
    producer.produce(topic, b"100")
    producer.commit_transaction(60)
    producer.close()
    assert read_committed(own_kafka.address, topic, 101) == [b"%d" % n for n in range(101)]


def test_a_jar_that_differs_from_its_pinned_checksum_is_refused(
    own_kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    pins = broker_module.CHECKSUMS.read_text(encoding="ascii").splitlines(keepends=True)
    changed = tmp_path / "jars.sha256"
    changed.write_text("".join(["0" * 64 + pins[0][64:], *pins[1:]]), encoding="ascii")
    monkeypatch.setattr(broker_module, "CHECKSUMS", changed)
    monkeypatch.setattr(broker_module, "_fetch", lambda: None)
    with pytest.raises(BrokerError, match=pins[0].split()[1]):
        broker_module.jars()
