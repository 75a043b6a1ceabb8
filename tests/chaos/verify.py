"""What should be, recomputed from the input topics alone, against what is there. Shares no code with `stream/engine`.

After Kafka Streams' `streams_eos_test`: whatever happened to workers and brokers, the outcome has to be that of a run in which nothing
did. The vectors of texts come from the encoder and states are read by their codec, since what is judged here is neither; sums and
windows are computed anew, in double precision.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.encoder import Encoder
from stream.settings import Settings
from stream.state import decode

Place = tuple[str, int, int]
END_SECONDS = 120  # to read a topic in
TOLERANCE = 1e-3  # of single-precision sums of some hundred terms against double precision


def read(address: str, topic: str) -> list[Message]:
    """All committed records of a topic, up to its very end.

    Raises:
        TimeoutError: something holds the end back.
    """
    deadline = time.monotonic() + END_SECONDS
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "verifier",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",  # the default, to go on at the end, would be to read nothing and say nothing
        }
    )
    try:
        open_partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in open_partitions])
        found: list[Message] = []
        while open_partitions:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: partitions {sorted(open_partitions)} cannot be read to their end")
            for message in consumer.consume(10_000, 1.0):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    end = consumer.get_watermark_offsets(TopicPartition(topic, message.partition()), timeout=30)[1]
                    if message.offset() == end:  # else a transaction is still open, or records have come meanwhile
                        open_partitions.discard(message.partition())
                else:
                    raise KafkaException(error)
        return found
    finally:
        consumer.close()


def place(message: Message) -> Place:
    """Where a record lies."""
    return message.topic(), message.partition(), message.offset()


def verify(address: str, model: Path, settings: Settings) -> dict[str, int]:
    """Count what is lost, answered twice, or wrong.

    Returns:
        lost: inputs without an answer. duplicated: answers too many. other_id: answers too many that bear another id than the first.
        strangers: answers to what is no input. state_mismatches: users whose state is not that of their events.
        popularity_mismatches: items whose clicks, as contributed to the memory, are not those of the events.
    """
    name = settings.topics.name
    inputs = [message for topic in ("searches", "clicks") for message in read(address, name(topic))]
    answers: dict[Place, list[str]] = defaultdict(list)
    for message in read(address, name("recommendations")):
        body = json.loads(message.value())
        trigger = body["trigger"]
        answers[trigger["topic"], trigger["partition"], trigger["offset"]].append(body["recommendation_id"])
    for message in read(address, name("dead_letters")):
        headers = {name: value.decode() for name, value in message.headers()}
        answers[headers["topic"], int(headers["partition"]), int(headers["offset"])].append("dead")
    asked = {place(message) for message in inputs}
    return {
        "inputs": len(asked),
        "lost": len(asked - answers.keys()),
        "duplicated": sum(len(ids) - 1 for ids in answers.values()),
        "other_id": sum(len(set(ids)) - 1 for ids in answers.values()),
        "strangers": len(answers.keys() - asked),
        "state_mismatches": _wrong_states(address, inputs, model, settings),
        "popularity_mismatches": _wrong_popularity(address, inputs, settings),
    }


def _events(inputs: Iterable[Message], settings: Settings) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """Each user's events that count, by kind and event_id: the broken ones left out, the repeated ones once."""
    users: dict[str, dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for message in inputs:
        try:
            event = json.loads(message.value())
        except json.JSONDecodeError:
            continue
        kind = "clicks" if message.topic() == settings.topics.name("clicks") else "searches"
        users[event["user_id"]].setdefault((kind, event["event_id"]), event)
    return users


def _wrong_states(address: str, inputs: list[Message], model: Path, settings: Settings) -> int:
    latest: dict[str, bytes | None] = {}
    partitions: dict[str, int] = {}
    for message in sorted(read(address, f"{settings.broker.group}-users-changelog"), key=lambda m: (m.partition(), m.offset())):
        latest[message.key().decode()] = message.value()
        partitions[message.key().decode()] = message.partition()
    users = _events(inputs, settings)
    encoder = Encoder(model, device="cpu", threads=1)
    titles = {}
    for message in read(address, settings.topics.name("items")):
        item = json.loads(message.value())
        titles[item["item_id"]] = f"{item['title']}. {item['category']}"
    queries = {event["query"] for events in users.values() for event in events.values() if "query" in event}
    texts = sorted(queries | set(titles.values()))
    vectors = dict(zip(texts, encoder.encode(texts).astype(np.float64), strict=True))
    half_lives = np.array(settings.profile.half_lives_days) * 86_400_000.0
    wrong = len(latest.keys() - users.keys())
    for user, events in users.items():
        stored = latest.get(user)
        if stored is None:
            wrong += 1
            continue
        state = decode(stored)
        newest = max(event["timestamp"] for event in events.values())
        sums = np.zeros((len(half_lives), encoder.dimension))
        weights = np.zeros(len(half_lives))
        history = []
        for (kind, event_id), event in events.items():
            is_click = kind == "clicks"
            subject = event["item_id"] if is_click else event["query"]
            vector = vectors[titles[subject] if is_click else subject]
            weight = settings.profile.click_weight if is_click else settings.profile.search_weight
            fade = weight * 2.0 ** ((event["timestamp"] - newest) / half_lives)
            sums += fade[:, None] * vector
            weights += fade
            identity = hashlib.blake2b(event_id.encode(), digest_size=8, salt=bytes([is_click])).digest()
            history.append((event["timestamp"], int.from_bytes(identity, "little"), subject))
        history.sort()
        window = [(b.time, b.event, b.subject) for b in state.window.behaviours]
        right = (
            state.profile.time == newest
            and window == history[-settings.window.size :]
            and np.allclose(state.profile.weights, weights, rtol=TOLERANCE)
            and np.allclose(state.profile.sums, sums, rtol=TOLERANCE, atol=TOLERANCE * np.abs(sums).max())
        )
        if not right:
            wrong += 1
            missing = [
                time for time, event, _ in history[-settings.window.size :] if event not in {known for _, known, _ in window}
            ]
            print(f"wrong: {user} in partition {partitions[user]}: not in the window: {missing}", file=sys.stderr)
    return wrong


def _wrong_popularity(address: str, inputs: list[Message], settings: Settings) -> int:
    from stream.recommend.memory import Memory  # its sums travel in a form of their own, which it alone reads

    clicks = [e for events in _events(inputs, settings).values() for (kind, _), e in events.items() if kind == "clicks"]
    newest = max(click["timestamp"] for click in clicks)
    half_life = settings.recommend.popularity_half_life_days * 86_400_000
    expected: Counter[str] = Counter()
    for click in clicks:
        expected[click["item_id"]] += 2.0 ** ((click["timestamp"] - newest) / half_life)  # type: ignore[assignment]
    memory = Memory(settings.recommend)
    for message in read(address, settings.topics.name("memory")):
        memory.merge(message.value())
    return sum(not np.isclose(memory.popularity(item, newest), mass, rtol=TOLERANCE) for item, mass in expected.items())
