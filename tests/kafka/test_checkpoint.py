"""The checkpoint and the recovery against a real Kafka: who may commit, and where a changelog ends."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rocksdict
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from faust.stores.rocksdb import Store
from faust.types import TP
from verify import read

from stream.engine.checkpoint import Checkpoint, Membership, MovedOnError, Output, Work
from stream.engine.intake import Partition
from stream.engine.recovery import RecoveryError, replay_changelog
from stream.engine.store import TableOptions

CONSUMER_SECONDS = 30


@pytest.fixture
def topics(kafka: str) -> tuple[str, str]:
    """An input topic and a changelog, of one partition each."""
    names = f"in-{uuid.uuid4().hex[:8]}", f"log-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
        future.result(30)
    return names


def checkpoint(kafka: str, changelog: str, written: list[object], worker: str) -> Checkpoint:
    async def refuse(*_: object) -> bool:
        raise AssertionError("offsets travel in the transaction")

    return Checkpoint(
        {"bootstrap.servers": kafka, "log_level": 0},
        guarantee="exactly_once",
        transactional_id=worker,
        changelog=changelog,
        persist=lambda *arguments: written.append(arguments),
        commit_offsets=refuse,
        timeout=20,
    )


@contextmanager
def member(kafka: str, topic: str, group: str) -> Iterator[Consumer]:
    """A consumer that has the topic's partition."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group, "session.timeout.ms": 6000, "enable.auto.commit": False})
    consumer.subscribe([topic])
    deadline = time.monotonic() + CONSUMER_SECONDS
    while not consumer.assignment() and time.monotonic() < deadline:
        consumer.poll(0.1)
    assert consumer.assignment()
    try:
        yield consumer
    finally:
        consumer.close()


def membership(consumer: Consumer, group: str) -> Membership:
    """Take apart what librdkafka says of a member."""
    rest = consumer.consumer_group_metadata().removeprefix(b"CGMDv2:")
    generation = int.from_bytes(rest[:4], "little", signed=True)
    member_id = rest[4:].split(b"\0")[1].decode()
    return Membership(group, generation, member_id)


def work(topics: tuple[str, str], state: bytes) -> Work:
    return Work({Partition(topics[0], 0): 1}, [Output(topics[0], b"user", b"answer " + state)], {0: {b"user": state}})


def test_a_member_of_the_current_generation_commits_everything_at_once(kafka: str, topics: tuple[str, str]) -> None:
    written: list[object] = []
    group = f"g-{topics[0]}"
    with member(kafka, topics[0], group) as consumer:
        asyncio.run(checkpoint(kafka, topics[1], written, group).commit(work(topics, b"1"), membership(consumer, group)))
        assert [m.value() for m in read(kafka, topics[1])] == [b"1"]
        assert [m.value() for m in read(kafka, topics[0])] == [b"answer 1"]
        assert written == [(0, {b"user": b"1"}, 0)]
        assert consumer.committed([TopicPartition(topics[0], 0)], 10)[0].offset == 1


def test_a_member_of_an_earlier_generation_commits_nothing(kafka: str, topics: tuple[str, str]) -> None:
    written: list[object] = []
    group = f"g-{topics[0]}"
    with member(kafka, topics[0], group) as consumer:
        now = membership(consumer, group)
        safe = checkpoint(kafka, topics[1], written, group)
        for former in (now._replace(generation=now.generation - 1), now._replace(member_id="somebody-else")):
            with pytest.raises(MovedOnError):
                asyncio.run(safe.commit(work(topics, b"stale"), former))
        asyncio.run(safe.commit(work(topics, b"fresh"), now))  # it can still be used
        assert [m.value() for m in read(kafka, topics[1])] == [b"fresh"]
        assert [m.value() for m in read(kafka, topics[0])] == [b"answer fresh"]
        assert len(written) == 1


def test_what_the_producer_has_no_room_for_waits_until_it_has(kafka: str, topics: tuple[str, str]) -> None:
    written: list[object] = []
    group = f"g-{topics[0]}"
    with member(kafka, topics[0], group) as consumer:
        narrow = checkpoint(kafka, topics[1], written, group)
        narrow._config["queue.buffering.max.messages"] = 5
        narrow._producer = narrow._new_producer()
        outputs = [Output(topics[0], b"ada", b"%d" % n, [("error", b"%d" % n)] if n % 2 else None) for n in range(50)]
        states: dict[bytes, bytes | None] = {b"user-%d" % n: b"%d" % n for n in range(50)}
        given = Work({Partition(topics[0], 0): 0}, outputs, {0: states})
        asyncio.run(narrow.commit(given, membership(consumer, group)))
    assert [(m.key(), m.value()) for m in read(kafka, topics[1])] == list(states.items())
    assert [(m.key(), m.value(), m.headers()) for m in read(kafka, topics[0])] == [(o.key, o.value, o.headers) for o in outputs]
    assert len(written) == 1


class StillFinishing:
    """A producer whose broker has not finished the transaction before, the first time that it is sent offsets."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.refused = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._producer, name)

    def send_offsets_to_transaction(self, *arguments: object) -> None:
        if not self.refused:
            self.refused += 1
            raise KafkaException(KafkaError(KafkaError.CONCURRENT_TRANSACTIONS))
        self._producer.send_offsets_to_transaction(*arguments)


def test_a_broker_that_is_still_finishing_the_transaction_before_gets_the_batch_once(kafka: str, topics: tuple[str, str]) -> None:
    written: list[object] = []
    group = f"g-{topics[0]}"
    with member(kafka, topics[0], group) as consumer:
        slow = checkpoint(kafka, topics[1], written, group)
        slow._producer = busy = StillFinishing(slow._producer)
        asyncio.run(slow.commit(work(topics, b"1"), membership(consumer, group)))
    assert busy.refused == 1
    assert [m.value() for m in read(kafka, topics[1])] == [b"1"]
    assert [m.value() for m in read(kafka, topics[0])] == [b"answer 1"]
    [(partition, states, _)] = written
    assert (partition, states) == (0, {b"user": b"1"})


class Database:
    """A RocksDB of its own, where Faust's store has one for each partition."""

    def __init__(self, path: Path, options: rocksdict.Options | None = None) -> None:
        self.path = path
        self.rocks = rocksdict.Rdict(str(path), options or rocksdict.Options(raw_mode=True))

    def persisted_offset(self, tp: TP) -> int | None:
        stored = self.rocks.get(Store.offset_key)
        return None if stored is None else int(stored)

    def partition_path(self, partition: int) -> Path:
        return self.path

    def _db_for_partition(self, partition: int) -> rocksdict.Rdict:
        return self.rocks


def recover(kafka: str, changelog: str, database: Database, **options: float) -> dict[TP, int]:
    return replay_changelog({"bootstrap.servers": kafka}, {TP(changelog, 0): database}, lambda: True, **options)  # type: ignore[dict-item, arg-type]


def transaction(kafka: str, name: str, timeout_ms: int) -> Producer:
    settings = {"transactional.id": name, "transaction.timeout.ms": timeout_ms, "message.timeout.ms": timeout_ms}
    producer = Producer({"bootstrap.servers": kafka, "log_level": 0, **settings})  # silent: it may outlive the broker
    producer.init_transactions(30)
    producer.begin_transaction()
    return producer


def keep_states(kafka: str, changelog: str, users: int) -> None:
    producer = transaction(kafka, f"t-{changelog}", 10_000)
    for number in range(users):
        producer.produce(changelog, b"state", b"user-%d" % number)
    producer.commit_transaction(20)


def test_what_was_committed_behind_the_open_transaction_of_a_dead_worker_is_recovered(
    kafka: str, topics: tuple[str, str], tmp_path: Path
) -> None:
    dead = transaction(kafka, f"dead-{topics[1]}", 3000)
    dead.produce(topics[1], b"aborted", b"user")
    dead.flush(10)  # and now nothing more is heard of it
    alive = transaction(kafka, f"alive-{topics[1]}", 10_000)
    alive.produce(topics[1], b"committed", b"user")
    alive.commit_transaction(20)
    database = Database(tmp_path)
    reached = recover(kafka, topics[1], database)
    assert database.rocks.get(b"user") == b"committed", "it lies at offset 1, behind the open transaction's at 0"
    assert database.persisted_offset(TP(topics[1], 0)) == reached[TP(topics[1], 0)]
    with pytest.raises(KafkaException):
        dead.commit_transaction(5)


def test_what_was_recovered_is_in_files_when_it_is_done_and_they_are_compacted_from_then_on(
    kafka: str, topics: tuple[str, str], tmp_path: Path
) -> None:
    keep_states(kafka, topics[1], 500)
    database = Database(tmp_path)
    recover(kafka, topics[1], database)
    assert database.rocks.property_int_value("rocksdb.num-entries-active-mem-table") == 0
    assert sum(file["num_entries"] for file in database.rocks.live_files()) == 501  # and the offset
    for number in range(12):
        database.rocks[b"user-%d" % number] = b"newer"
        database.rocks.flush()
    deadline = time.monotonic() + 20
    while (files := database.rocks.property_value("rocksdb.num-files-at-level0")) == "13" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert int(files or 0) < 13


def test_what_a_recovery_erases_leaves_the_disk(kafka: str, topics: tuple[str, str], tmp_path: Path) -> None:
    database = Database(tmp_path, TableOptions(2**26).as_options())
    anna, bert = os.urandom(100), os.urandom(100)  # found in files as they are: they cannot be compressed
    producer = transaction(kafka, f"t-{topics[1]}", 10_000)
    producer.produce(topics[1], anna, b"anna")
    producer.produce(topics[1], bert, b"bert")
    producer.commit_transaction(20)
    recover(kafka, topics[1], database)

    def on_disk(state: bytes) -> bool:
        return any(state in path.read_bytes() for path in tmp_path.glob("*.sst"))

    assert on_disk(anna)
    producer.begin_transaction()
    producer.produce(topics[1], None, b"anna")
    producer.commit_transaction(20)
    recover(kafka, topics[1], database)
    assert database.rocks.get(b"anna") is None
    deadline = time.monotonic() + 20
    while on_disk(anna) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not on_disk(anna)
    assert on_disk(bert)


def test_a_changelog_without_its_oldest_records_is_recovered_from_where_it_begins(
    kafka: str, topics: tuple[str, str], tmp_path: Path
) -> None:
    keep_states(kafka, topics[1], 10)
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_records([TopicPartition(topics[1], 0, 4)]).values():
        future.result(30)
    database = Database(tmp_path)
    assert recover(kafka, topics[1], database) == {TP(topics[1], 0): 10}
    assert [database.rocks.get(b"user-%d" % number) for number in range(10)] == [None] * 4 + [b"state"] * 6


def test_a_changelog_that_was_emptied_is_told_from_a_new_one(kafka: str, topics: tuple[str, str], tmp_path: Path) -> None:
    database = Database(tmp_path)
    assert recover(kafka, topics[1], database) == {TP(topics[1], 0): -1}
    database.rocks[Store.offset_key] = b"41"
    with pytest.raises(RecoveryError, match="was emptied or made anew"):
        recover(kafka, topics[1], database)


def test_a_recovery_that_gets_nothing_gives_up_with_a_reason(kafka: str, topics: tuple[str, str], tmp_path: Path) -> None:
    stuck = transaction(kafka, f"stuck-{topics[1]}", 60_000)
    stuck.produce(topics[1], b"open", b"user")
    stuck.flush(10)
    with pytest.raises(RecoveryError, match="nothing came for 2 s"):
        recover(kafka, topics[1], Database(tmp_path), patience=2.0)
    stuck.abort_transaction(10)
