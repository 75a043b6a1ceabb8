"""The records of the input topics, fetched by librdkafka: in threads of its own, which have no need of Python's lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.engine.intake import Partition

FETCH_WAIT_MS = 100  # that a broker may keep back the answer to a fetch of nothing; the embedded one always does
COMPANY = 0.01  # seconds in which records may join the first of a read: with more reads than that, Python does little else
LEADER_SECONDS = 5.0  # that a broker may take to say who leads a topic's partitions
MOST = 10_000  # records of one read: they are decoded in one go


class KafkaRecord(msgspec.Struct, frozen=True, gc=False):
    """A record of a topic; the same fields as other clients' records. `timestamp` is in epoch milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    @classmethod
    def of(cls, message: Message) -> KafkaRecord:
        """Take over one of librdkafka's that is not an error."""
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        return cls(topic, partition, offset, message.timestamp()[1], message.key(), message.value())


class Fetched(NamedTuple):
    """What has come of one partition: its next records, and how many more the broker has; None where that is not known."""

    records: list[KafkaRecord]
    lag: int | None


class Reader:
    """Reads the partitions that it is told, committed records only. In no group: who reads what is Faust's business.

    One thread at a time: librdkafka lets others wait while it waits for records.

    Args:
        client: librdkafka's settings for the connection.
        group: in whose name it reads; nothing is ever committed to it here.
    """

    def __init__(self, client: Mapping[str, Any], group: str) -> None:
        self._consumer = Consumer(
            {
                **client,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",  # where the records at an offset are there no longer
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "fetch.queue.backoff.ms": 5,  # see engine/recovery.py
                "queued.max.messages.kbytes": 16_384,
            }
        )
        self._held: set[Partition] = set()

    def assign(self, offsets: Mapping[Partition, int | None]) -> None:
        """Read these partitions and no others, each from an offset on, or from its beginning."""
        with suppress(KafkaException):  # librdkafka finds out by itself who leads a partition, but only after a second
            for topic in {partition.topic for partition in offsets}:
                self._consumer.list_topics(topic, timeout=LEADER_SECONDS)
        self.hold([])  # what is paused stays so, though it is assigned anew
        places = [TopicPartition(*p, OFFSET_BEGINNING if offset is None else offset) for p, offset in offsets.items()]
        self._consumer.assign(places)

    def hold(self, partitions: Collection[Partition]) -> None:
        """Read nothing of these for now, but of all others; what of them has been fetched already is fetched again later."""
        wanted = set(partitions)
        self._consumer.pause([TopicPartition(*p) for p in wanted - self._held])
        self._consumer.resume([TopicPartition(*p) for p in self._held - wanted])
        self._held = wanted

    def read(self, wait: float) -> dict[Partition, Fetched]:
        """Return what has come of each partition, in its order. Where nothing has, wait so many seconds for it.

        Raises:
            KafkaException: a partition cannot be read.
        """
        first = self._consumer.poll(wait)
        return {} if first is None else self._sort([first, *self._consumer.consume(MOST, COMPANY)])

    def _sort(self, messages: Iterable[Message]) -> dict[Partition, Fetched]:
        records: dict[tuple[str, int], list[KafkaRecord]] = defaultdict(list)
        ends: dict[tuple[str, int], int] = {}  # the position, which is past control records and aborted ones too
        for message in messages:
            error = message.error()
            if error is None:
                record = KafkaRecord.of(message)
                records[record.topic, record.partition].append(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                ends[message.topic(), message.partition()] = message.offset()
            else:
                raise KafkaException(error)
        fetched = {
            Partition(*p): Fetched(some, self._lag(p, some[-1].offset + 1, ends.pop(p, -1))) for p, some in records.items()
        }
        return fetched | {Partition(*p): Fetched([], 0) for p in ends}

    def _lag(self, partition: tuple[str, int], following: int, end: int) -> int | None:
        if end >= following:
            return 0
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return None if high < 0 else max(0, high - following)

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
