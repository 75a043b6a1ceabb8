"""A worker under exactly_once is sent thousands of mutated messages: it loses none, answers none twice, and goes on."""

from __future__ import annotations

import json
import random as randomness
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from broker import KafkaBroker
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutation import mutated
from worker_process import Place, Sent, Worker, make_topics, running_worker, send

PARTITIONS = 2
ROUNDS, PER_ROUND = 20, 520


@dataclass
class Outcome:
    """What has come out so far: how often each record was answered or set aside."""

    consumer: Consumer
    answered: Counter[Place] = field(default_factory=Counter)
    set_aside: dict[Place, tuple[bytes | None, bytes | None]] = field(default_factory=dict)
    times_set_aside: Counter[Place] = field(default_factory=Counter)

    def read(self, wait: float) -> None:
        for message in self.consumer.consume(2_000, wait):
            assert message.error() is None, message.error()
            if message.topic() == "recommendations":
                trigger = json.loads(message.value())["trigger"]
                self.answered[Place(trigger["topic"], trigger["partition"], trigger["offset"])] += 1
            else:
                headers = dict(message.headers())
                place = Place(headers["topic"].decode(), int(headers["partition"]), int(headers["offset"]))
                self.times_set_aside[place] += 1
                self.set_aside[place] = message.key(), message.value()

    def seen(self) -> int:
        return self.answered.total() + self.times_set_aside.total()


@pytest.fixture(scope="module")
def worker(
    new_kafka: Callable[..., KafkaBroker], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Worker]]:
    with new_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        make_topics(broker.address, PARTITIONS)
        folder = tmp_path_factory.mktemp("worker")
        waits = {"order_wait_ms": 20, "backlog_wait_ms": 50}
        with running_worker(broker.address, tiny_model, folder, PARTITIONS, guarantee="exactly_once", **waits) as worker:
            yield broker.address, worker


def test_ten_thousand_mutated_messages_are_each_answered_or_set_aside_exactly_once(worker: tuple[str, Worker]) -> None:
    address, process = worker
    consumer = Consumer({"bootstrap.servers": address, "group.id": "fuzz", "isolation.level": "read_committed"})
    outcome = Outcome(consumer)
    sent: dict[Place, Sent] = {}
    places = [("recommendations", p) for p in range(PARTITIONS)] + [("dead-letters", 0)]
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic, p in places])

    @settings(max_examples=ROUNDS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def send_and_await(seed: int) -> None:
        random = randomness.Random(seed)
        records = [mutated(random) for _ in range(PER_ROUND)]
        sent.update(zip(send(address, records), records, strict=True))
        idle = 0
        while outcome.seen() < len(sent) and idle < 300:  # 30 seconds
            before = outcome.seen()
            outcome.read(0.1)
            idle = idle + 1 if outcome.seen() == before else 0
        process.check()
        assert Counter(dict.fromkeys(sent, 1)) == outcome.answered + outcome.times_set_aside

    try:
        send_and_await()
        outcome.read(1.0)
    finally:
        consumer.close()
    assert len(sent) >= 10_000
    assert Counter(dict.fromkeys(sent, 1)) == outcome.answered + outcome.times_set_aside
    assert outcome.answered
    for place, untouched in outcome.set_aside.items():
        assert untouched == (sent[place].key, sent[place].value)
    assert process.stop() == 0
