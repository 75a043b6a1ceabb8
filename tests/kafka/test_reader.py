"""Each partition is read in its order, committed records only, nothing twice and nothing left out, and the reader knows its end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from stream.engine.intake import Partition
from stream.engine.reader import Reader

SECONDS = 20.0


@pytest.fixture
def topic(kafka: str) -> str:
    name = f"in-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(30)
    return name


@pytest.fixture
def reader(kafka: str) -> Iterator[Reader]:
    reader = Reader({"bootstrap.servers": kafka}, "some-group")
    yield reader
    reader.close()


class Seen:
    """What a reader has brought: of each partition the values, and what it said last of how many more there are."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.values: dict[Partition, list[int]] = {}
        self.lag: dict[Partition, int | None] = {}

    def until(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not enough():
            assert time.monotonic() < deadline, (self.values, self.lag)
            self.once(0.1)

    def once(self, wait: float) -> None:
        for partition, (records, lag) in self._reader.read(wait).items():
            assert lag is not None  # the end need not be reached: a fetch tells how far it is
            assert all((record.topic, record.partition) == partition for record in records)
            self.values.setdefault(partition, []).extend(int(record.value or b"") for record in records)
            self.lag[partition] = lag


def produce(producer: Producer, partition: Partition, values: range) -> None:
    for value in values:
        producer.produce(partition.topic, str(value), "key", partition.partition)
    assert producer.flush(30) == 0


def test_partitions_are_read_from_their_offsets_to_their_ends(kafka: str, topic: str, reader: Reader) -> None:
    first, second = Partition(topic, 0), Partition(topic, 1)
    producer = Producer({"bootstrap.servers": kafka})
    produce(producer, first, range(5000))
    produce(producer, second, range(10))
    seen = Seen(reader)
    reader.assign({first: 7, second: None})
    seen.until(lambda: seen.lag == {first: 0, second: 0})
    assert seen.values == {first: list(range(7, 5000)), second: list(range(10))}
    produce(producer, second, range(10, 11))
    begun = time.monotonic()
    seen.until(lambda: len(seen.values[second]) > 10)
    assert time.monotonic() - begun < 1.0
    reader.assign({first: 4999})
    seen.until(lambda: len(seen.values[first]) > 5000 - 7)
    assert seen.values == {first: [*range(7, 5000), 4999], second: list(range(11))}


def test_the_end_is_reached_behind_the_marks_of_transactions_and_nothing_open_or_aborted_is_read(
    kafka: str, topic: str, reader: Reader
) -> None:
    partition = Partition(topic, 0)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    producer.init_transactions(30)
    for values, end in ((range(3), producer.commit_transaction), (range(3, 6), producer.abort_transaction)):
        producer.begin_transaction()
        produce(producer, partition, values)
        end(30)
    seen = Seen(reader)
    reader.assign({partition: 0})
    seen.until(lambda: seen.lag == {partition: 0})
    assert seen.values == {partition: [0, 1, 2]}
    producer.begin_transaction()
    produce(producer, partition, range(6, 8))
    for _ in range(5):
        seen.once(0.1)
    assert seen.values == {partition: [0, 1, 2]}
    producer.commit_transaction(30)
    seen.until(lambda: len(seen.values[partition]) > 3)
    assert seen.values == {partition: [0, 1, 2, 6, 7]}


def test_what_is_held_back_goes_on_where_it_was(kafka: str, topic: str, reader: Reader) -> None:
    first, second = Partition(topic, 0), Partition(topic, 1)
    producer = Producer({"bootstrap.servers": kafka})
    produce(producer, first, range(60_000))
    produce(producer, second, range(30_000))
    seen = Seen(reader)
    reader.assign({first: 0, second: 0})
    seen.until(lambda: len(seen.values.get(first, [])) > 0)
    reader.hold({first})
    before = len(seen.values[first])
    assert before < 60_000
    seen.until(lambda: seen.lag.get(second) == 0)
    assert len(seen.values[first]) == before
    reader.hold({second})
    seen.until(lambda: seen.lag.get(first) == 0)
    produce(producer, second, range(30_000, 30_001))
    for _ in range(5):
        seen.once(0.1)
    assert seen.values == {first: list(range(60_000)), second: list(range(30_000))}
    reader.hold(set())
    seen.until(lambda: len(seen.values[second]) > 30_000)
    assert seen.values == {first: list(range(60_000)), second: list(range(30_001))}


def test_what_was_held_back_is_read_where_it_is_assigned_again(kafka: str, topic: str, reader: Reader) -> None:
    partition = Partition(topic, 0)
    produce(Producer({"bootstrap.servers": kafka}), partition, range(10))
    seen = Seen(reader)
    reader.assign({partition: 0})
    seen.until(lambda: seen.lag == {partition: 0})
    reader.hold({partition})
    reader.assign({})
    seen.once(0.1)
    reader.assign({partition: 5})
    seen.until(lambda: len(seen.values[partition]) == 15)
    assert seen.values == {partition: [*range(10), *range(5, 10)]}


def test_a_reader_that_had_nothing_to_do_begins_at_once(kafka: str, topic: str, reader: Reader) -> None:
    produce(Producer({"bootstrap.servers": kafka}), Partition(topic, 0), range(1))
    seen = Seen(reader)
    for _ in range(8):
        seen.once(0.25)
    begun = time.monotonic()
    reader.assign({Partition(topic, partition): 0 for partition in (0, 1)})
    seen.until(lambda: bool(seen.values))
    assert time.monotonic() - begun < 0.8
