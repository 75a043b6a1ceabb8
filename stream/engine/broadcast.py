"""A topic that every worker reads in full, from an offset of its own: the catalogue, and what is learned across users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.engine.reader import KafkaRecord

FETCH_WAIT_MS = 50


class Broadcast:
    """All partitions of one topic, without a group.

    Args:
        client: librdkafka's settings for the connection.
        topic: its name.
        offsets: where to go on from, by partition; from the beginning where absent.

    Raises:
        KafkaException: where the topic does not exist or cannot be read.
    """

    def __init__(self, client: Mapping[str, Any], topic: str, offsets: Mapping[int, int] | None = None) -> None:
        self.topic = topic
        self._consumer = Consumer(
            {
                **client,
                "group.id": "driftstream-broadcast",  # librdkafka wants one; nothing is ever committed to it
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.queue.backoff.ms": 5,  # see engine/recovery.py
                "fetch.wait.max.ms": FETCH_WAIT_MS,  # what the end of an empty partition costs, when it is read to there
            }
        )
        metadata = self._consumer.list_topics(topic, timeout=30).topics[topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        self._partitions = set(metadata.partitions)
        self.rewind(offsets or {})

    def rewind(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets, by partition; from the beginning where absent."""
        self._consumer.assign([TopicPartition(self.topic, p, offsets.get(p, OFFSET_BEGINNING)) for p in self._partitions])
        self._unread = set(self._partitions)
        self.offsets: dict[int, int] = dict(offsets)

    def read_to_end(self, timeout: float) -> Iterator[KafkaRecord]:
        """Yield everything up to the end that each partition has when it is reached.

        Raises:
            TimeoutError: if nothing arrives for `timeout` seconds.
        """
        deadline = monotonic() + timeout
        while self._unread:
            records = list(self._consume(0.1))
            if records:
                deadline = monotonic() + timeout
            elif monotonic() > deadline:
                raise TimeoutError(f"topic {self.topic}: nothing read for {timeout:g} s; is the broker up?")
            yield from records

    def poll(self, wait: float = 0.0) -> Iterator[KafkaRecord]:
        """Yield what has arrived since; where nothing has, what does within `wait` seconds."""
        return self._consume(wait)

    def _consume(self, wait: float) -> Iterator[KafkaRecord]:
        message: Message
        for message in self._consumer.consume(10_000, wait):
            error = message.error()
            partition = message.partition()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._unread.discard(partition)
                    continue
                raise KafkaException(error)
            self.offsets[partition] = message.offset() + 1
            yield KafkaRecord.of(message)

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
