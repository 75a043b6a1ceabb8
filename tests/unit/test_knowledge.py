"""What was learned, and when it may be written to disk, while there is always a batch on its way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from full_disk import largest_file

from stream import knowledge
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.embedded_broker import EmbeddedBroker
from stream.engine.reader import KafkaRecord
from stream.engine.store import StoreError
from stream.knowledge import Knowledge
from stream.settings import Broker, Engine, Settings, Topics

T = 1_756_684_800_000


@pytest.fixture
def world(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[Settings, Encoder]]:
    with EmbeddedBroker({"items": 1, "memory": 1}) as broker:
        yield (
            Settings(
                broker=Broker(servers=broker.address),
                topics=Topics(items="items", memory="memory"),
                engine=Engine(state_folder=tmp_path / "state"),
            ),
            Encoder(tiny_model, device="cpu"),
        )


def new_knowledge(world: tuple[Settings, Encoder]) -> Knowledge:
    found = Knowledge(*world)
    found.load()
    return found


def publish(settings: Settings, outputs: list[Output]) -> None:
    producer = Producer({"bootstrap.servers": settings.broker.servers})
    for output in outputs:
        producer.produce(output.topic, output.value, output.key)
    assert producer.flush(10) == 0


def learn(found: Knowledge, item: str) -> list[Output]:
    found.memory.learn(T, item, "hose", [])
    return found.outputs()


def test_in_a_backlog_a_moment_is_made_in_which_what_was_learned_is_written(
    world: tuple[Settings, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(knowledge, "OVERDUE", 0.0)
    found = new_knowledge(world)
    publish(world[0], learn(found, "i1"))
    second = learn(found, "i2")  # computed before the first is safe
    found.published()
    found.refresh()
    found.save()
    assert found._positions() == {}, "the second contribution is on its way"
    assert found.overdue()
    publish(world[0], second)
    found.published()
    found.settle()
    assert found._positions()["memory"] == {0: 2}
    before = found.memory.popularity("i1", T), found.memory.popularity("i2", T)
    found.reload()
    assert (found.memory.popularity("i1", T), found.memory.popularity("i2", T)) == before
    assert before == pytest.approx((1.0, 1.0))


def test_dead_letters_of_items_go_out_once_and_again_only_where_their_batch_came_to_nothing(
    world: tuple[Settings, Encoder],
) -> None:
    found = new_knowledge(world)
    letters = []
    for offset in range(2):
        found.put_items([KafkaRecord("items", 0, offset, T, b"i", json.dumps({"title": 1}).encode())])
        letters.append(found.outputs())
    assert [len(outputs) for outputs in letters] == [1, 1]
    found.published()  # the first
    found.reload()  # the second's batch was dropped
    assert found.outputs() == letters[1]
    found.published()
    assert found.outputs() == []


def test_a_full_disk_is_an_error_that_says_what_to_do(world: tuple[Settings, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "SAVE_EVERY", 0.0)
    found = new_knowledge(world)
    publish(world[0], learn(found, "i" * 20_000))
    found.published()
    found.refresh()
    with largest_file(16_384), pytest.raises(StoreError, match=r"knowledge cannot be written: .*Make room on the disk"):
        found.settle()
