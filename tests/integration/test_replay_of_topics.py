"""A replay of live topics on a real Kafka: the worker does not notice, and the replay says what the worker said."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from worker_process import Sent, Worker, command, running_worker, send

from stream import sample, topics
from stream.connection import Broker
from stream.events import Click, Search
from stream.replay.source import Recording
from stream.replay.topics import Span, TopicsError, read_topics
from stream.settings import Settings, Topics

EVENTS = 600
PARTITIONS = 2

_made = sample.make()
_events: list[Search | Click] = sorted([*_made.searches, *_made.clicks], key=lambda event: event.timestamp)[: EVENTS + 1]


@dataclass
class Shop:
    """Topics of its own on the shared broker."""

    settings: Settings

    def send(self, events: Sequence[Search | Click]) -> None:
        names = self.settings.topics
        kinds = ["searches" if isinstance(event, Search) else "clicks" for event in events]
        rows = zip(kinds, events, strict=True)
        send(self.address, [Sent(names.name(kind), e.user_id.encode(), msgspec.json.encode(e)) for kind, e in rows])

    @property
    def address(self) -> str:
        return self.settings.broker.servers

    @property
    def environment(self) -> dict[str, object]:
        return {
            "BROKER__SERVERS": self.address,
            "BROKER__GROUP": self.settings.broker.group,
            "TOPICS__PREFIX": self.settings.topics.prefix,
            "TOPICS__PARTITIONS": PARTITIONS,
        }

    def ends(self) -> dict[str, list[int]]:
        """The end of each partition of every topic that the worker reads or writes, its changelog included."""
        names = [topic.name for topic in topics.plan(self.settings)]
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "tests"})
        try:
            found = consumer.list_topics(timeout=10).topics

            def end(topic: str, partition: int) -> int:  # without a timeout this waits for ever for a leader that is not there
                return int(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])

            return {name: [end(name, partition) for partition in found[name].partitions] for name in names}
        finally:
            consumer.close()

    def committed(self) -> dict[tuple[str, int], int]:
        admin = AdminClient({"bootstrap.servers": self.address})
        asked = [ConsumerGroupTopicPartitions(self.settings.broker.group)]
        found = admin.list_consumer_group_offsets(asked)[self.settings.broker.group].result(10)
        return {(tp.topic, tp.partition): tp.offset for tp in found.topic_partitions}

    def keep(self, topic: str) -> None:
        """Let no record be deleted for its age: it goes by the timestamp, and these events are of long ago."""
        entry = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        admin = AdminClient({"bootstrap.servers": self.address})
        admin.incremental_alter_configs([resource])[resource].result(30)

    def consumed(self) -> int:
        """How many events are consumed for certain: in a transaction with their answers."""
        return sum(max(0, offset) for offset in self.committed().values())

    def groups(self) -> set[str]:
        admin = AdminClient({"bootstrap.servers": self.address})
        return {group.group_id for group in admin.list_consumer_groups().result(10).valid} - {"tests"}


@pytest.fixture
def shop(kafka: str) -> Shop:
    name = f"t{uuid.uuid4().hex[:8]}"
    settings = Settings(broker=Broker(servers=kafka, group=name), topics=Topics(prefix=f"{name}.", partitions=PARTITIONS))
    topics.ensure(settings)
    made = Shop(settings)
    deadline = time.monotonic() + 30
    while True:  # a partition that was just made has no leader yet
        try:
            made.ends()
            return made
        except KafkaException:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def wait_for(what: Callable[[], bool], worker: Worker, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        worker.check()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def settled(state: Callable[[], list[Any]], seconds: float = 30) -> list[Any]:
    """Return the state once it stays: the marks that end a transaction reach its partitions one by one, offsets among the first."""
    deadline = time.monotonic() + seconds
    before = state()
    while True:
        time.sleep(0.5)
        if (now := state()) == before:
            return now
        assert time.monotonic() < deadline
        before = now


def test_a_worker_is_not_disturbed_by_a_replay_that_says_what_it_says(shop: Shop, model_folder: Path, tmp_path: Path) -> None:
    items = shop.settings.topics.name("items")
    send(shop.address, [Sent(items, item.item_id.encode(), msgspec.json.encode(item)) for item in _made.items])
    shop.send(_events[: EVENTS // 2])
    # It waits long for a partition that it has not read to the end: the backlog comes in order.
    more = shop.environment | {"ENGINE__GUARANTEE": "exactly_once", "ENGINE__BACKLOG_WAIT_MS": 10_000}
    with running_worker(shop.address, model_folder, tmp_path, PARTITIONS, more) as worker:
        wait_for(lambda: shop.consumed() >= EVENTS // 2, worker)
        users = sorted({event.user_id for event in _events[: EVENTS // 2]})[:5]

        def state() -> list[Any]:
            profiles = [worker.get(f"/profiles/{user}") for user in users]
            return [shop.ends(), shop.committed(), shop.groups(), profiles]

        before = settled(state)
        found = replay(shop, model_folder, tmp_path)
        assert state() == before
        assert found["recording"]["events"] == EVENTS // 2
        assert compare(found, EVENTS // 2) == 0, "all of it is what the worker published, byte for byte"

        shop.send(_events[EVENTS // 2 : EVENTS])
        wait_for(lambda: shop.consumed() >= EVENTS, worker)
        compare(replay(shop, model_folder, tmp_path), EVENTS)

        late = msgspec.structs.replace(_events[EVENTS], timestamp=_events[EVENTS // 2].timestamp)
        shop.send([late])
        wait_for(lambda: shop.consumed() >= EVENTS + 1, worker)
        found = replay(shop, model_folder, tmp_path)
        assert found["recording"]["late"] == 1
        assert compare(found, EVENTS + 1) > EVENTS // 4, "what happened after the late event was answered without it"
        assert worker.stop() == 0


def test_a_user_who_was_erased_is_erased_in_the_replay_too(shop: Shop, model_folder: Path, tmp_path: Path) -> None:
    half = EVENTS // 2
    items = shop.settings.topics.name("items")
    send(shop.address, [Sent(items, item.item_id.encode(), msgspec.json.encode(item)) for item in _made.items])
    shop.send(_events[:half])
    later = Counter(event.user_id for event in _events[half:EVENTS] if isinstance(event, Click))
    user = max({event.user_id for event in _events[:half]}, key=lambda user: later[user])
    assert later[user] > 0
    erasures = shop.settings.topics.name("erasures")
    shop.keep(erasures)
    producer = Producer({"bootstrap.servers": shop.address, "partitioner": "murmur2_random"})
    producer.produce(erasures, None, user, timestamp=_events[half - 1].timestamp)
    assert producer.flush(30) == 0
    more = shop.environment | {"ENGINE__GUARANTEE": "exactly_once", "ENGINE__BACKLOG_WAIT_MS": 10_000}
    with running_worker(shop.address, model_folder, tmp_path, PARTITIONS, more) as worker:
        wait_for(lambda: shop.consumed() >= half + 1, worker)
        time.sleep(1)  # for the worker to fetch its own record of what is to be forgotten
        shop.send(_events[half:EVENTS])
        wait_for(lambda: shop.consumed() >= EVENTS + 1, worker)
        assert worker.stop() == 0
    found = replay(shop, model_folder, tmp_path)
    assert found["recording"]["erasures"] == 1
    compare(found, EVENTS)


def replay(shop: Shop, model: Path, folder: Path) -> dict[str, Any]:
    settings = shop.environment | {"MODEL__FOLDER": model, "MODEL__THREADS": 1}
    done = command(settings, "replay", "--agreement", "--json", "--skip", "50", "--output", str(folder / "replayed.jsonl"))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(found: Mapping[str, Any], events: int) -> int:
    """Check that the worker's order is the only reason for a difference; return how many it explains."""
    counts = list(found["agreement"]["counts"].values())
    same, disturbed, after, unexplained = counts[:4]
    assert found["agreement"]["compared"] == events == same + disturbed + after
    assert unexplained == 0
    out_of_order = found["agreement"]["counts"]["seen by the worker out of order"]
    assert same == events or out_of_order > 0
    return out_of_order


def test_only_the_part_that_was_asked_for_is_read(shop: Shop) -> None:
    shop.send(_events[:40])
    time.sleep(0.05)
    middle = int(time.time() * 1000)
    time.sleep(0.05)
    shop.send(_events[40:60])
    assert ids(read_topics(shop.settings, Span())) == [event.event_id for event in _events[:60]]
    assert ids(read_topics(shop.settings, Span(end=middle))) == [event.event_id for event in _events[:40]]
    assert ids(read_topics(shop.settings, Span(begin=middle))) == [event.event_id for event in _events[40:60]]
    span = Span(offsets={("searches", p): (0, 0) for p in range(PARTITIONS)} | {("clicks", 0): (2, 5), ("clicks", 1): (0, 0)})
    records = [event.record for event in read_topics(shop.settings, span).events]
    assert [(r.partition, r.offset) for r in records] == [(0, 2), (0, 3), (0, 4)]


def test_what_was_aborted_or_is_not_committed_yet_is_not_replayed(shop: Shop) -> None:
    topic = shop.settings.topics.name("clicks")
    producer = Producer({"bootstrap.servers": shop.address, "transactional.id": shop.settings.topics.prefix})
    producer.init_transactions(30)
    clicks = [event for event in _events if isinstance(event, Click)][:3]
    for click, outcome in zip(clicks, ("commit", "abort", "open"), strict=True):
        producer.begin_transaction()
        producer.produce(topic, msgspec.json.encode(click), click.user_id.encode())
        if outcome == "commit":
            producer.commit_transaction(30)
        elif outcome == "abort":
            producer.flush(30)
            producer.abort_transaction(30)
        else:
            producer.flush(30)
    assert ids(read_topics(shop.settings, Span())) == [clicks[0].event_id]
    producer.abort_transaction(30)


def test_topics_that_hold_nothing_are_said_to(shop: Shop) -> None:
    with pytest.raises(TopicsError, match="hold nothing"):
        read_topics(shop.settings, Span())


def ids(recording: Recording) -> list[str]:
    return [event.behaviour.event_id for event in recording.events]
