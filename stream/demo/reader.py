"""Reads what the worker publishes, as a service that subscribes to recommendations would."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.events import DriftChange, Recommendation
from stream.feed import Place
from stream.settings import Topics

_recommendation = msgspec.json.Decoder(Recommendation)
_change = msgspec.json.Decoder(DriftChange)


class Reader(threading.Thread):
    """Follows the output topics from their beginning, and counts.

    Attributes:
        recommendations, dead_letters: how many came.
        changes: every change of drift state, in order of arrival.
        latest: the newest few recommendations.
        models: how many recommendations each model made.
    """

    def __init__(self, client: Mapping[str, Any], topics: Topics, output: BinaryIO | None) -> None:
        super().__init__(name="reader", daemon=True)
        self._recommendations_topic = topics.name("recommendations")
        self._drift_topic = topics.name("drift")
        self._dead_letters_topic = topics.name("dead_letters")
        self._output = output
        self._consumer = Consumer(
            {
                **client,
                "group.id": "driftstream-demo",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
            }
        )
        self._ending = threading.Event()
        self.failure: Exception | None = None
        self.recommendations = 0
        self.dead_letters = 0
        self.rejected: Counter[str] = Counter()
        self.changes: list[DriftChange] = []
        self.latest: deque[Recommendation] = deque(maxlen=8)
        self.models: Counter[str] = Counter()
        self.answered: dict[Place, int] = {}

    def run(self) -> None:
        """Read until `stop`, and then whatever is left."""
        try:
            names = (self._recommendations_topic, self._drift_topic, self._dead_letters_topic)
            found = self._consumer.list_topics(timeout=10).topics
            self._consumer.assign([TopicPartition(t, p, OFFSET_BEGINNING) for t in names for p in found[t].partitions])
            messages: list[Message] = []
            while messages or not self._ending.is_set():
                messages = self._consumer.consume(2000, 0.1)
                for message in messages:
                    self._take(message)
        except Exception as error:  # handed to the main thread, which ends the demo with it
            self.failure = error
        finally:
            self._consumer.close()

    def stop(self) -> None:
        """Stop reading and wait until the last message is written."""
        self._ending.set()
        self.join()

    def answered_up_to(self, places: Collection[Place]) -> dict[Place, int]:
        """Return for each input partition the offset up to which answers have been read (flow control)."""
        return {place: self.answered[place] for place in places if place in self.answered}

    def _take(self, message: Message) -> None:
        error, value = message.error(), message.value()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return
            raise KafkaException(error)
        topic = message.topic()
        if value is None and topic != self._dead_letters_topic:
            return  # a user was erased
        if topic == self._recommendations_topic:
            recommendation = _recommendation.decode(value)
            self.recommendations += 1
            self.models[recommendation.model] += 1
            self.latest.append(recommendation)
            trigger = recommendation.trigger
            self.answered[trigger.topic, trigger.partition] = trigger.offset + 1
            if self._output is not None:
                self._output.write(value + b"\n")
        elif topic == self._drift_topic:
            self.changes.append(_change.decode(value))
        else:
            self.dead_letters += 1
            headers = {name: content.decode() for name, content in message.headers() or []}
            self.rejected[headers["error"].split(":")[0]] += 1
            place = headers["topic"], int(headers["partition"])
            self.answered[place] = max(self.answered.get(place, 0), int(headers["offset"]) + 1)
