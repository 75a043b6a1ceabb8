"""Searches, clicks, erasures and items of a live cluster, read without leaving a trace.

Partitions are assigned, never subscribed to: no group is joined, nothing is committed and nothing is written. Only what has been
committed is read, up to the ends that the partitions had at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream.engine.broadcast import Broadcast
from stream.engine.reader import KafkaRecord
from stream.replay.source import DECODERS, Recording, in_event_time
from stream.settings import Settings

PATIENCE = 60.0  # seconds that a broker may stay silent
CONNECT_SECONDS = 10.0
Place = tuple[str, int]
"""A kind of record, one of `DECODERS`, and a partition."""


class TopicsError(Exception):
    """The topics cannot be read; the message says why."""


@dataclass(frozen=True)
class Span:
    """Which part of the topics to read; all of it by default.

    Attributes:
        begin: only what was written at this time or later, ms (the record's timestamp).
        end: only what was written before this time, ms.
        offsets: by place the first offset, and the one before which to stop, None being the end; they win over times.
    """

    begin: int | None = None
    end: int | None = None
    offsets: Mapping[Place, tuple[int, int | None]] = field(default_factory=dict)


def parse_offsets(text: str) -> tuple[Place, tuple[int, int | None]]:
    """Read `clicks/0=100:200` or `clicks/0=100:`.

    Raises:
        ValueError: it is not of that form.
    """
    place, equals, offsets = text.partition("=")
    kind, slash, partition = place.partition("/")
    begin, colon, end = offsets.partition(":")
    if not (equals and slash and colon) or kind not in DECODERS:
        raise ValueError(f"{text}: write it as {'|'.join(DECODERS)}/PARTITION=BEGIN:END; END may be left out")
    return (kind, int(partition)), (int(begin), int(end) if end else None)


def read_topics(settings: Settings, span: Span, limit: int | None = None) -> Recording:
    """Read what happened to users in a span, and the whole catalogue.

    Raises:
        TopicsError: the broker does not answer, or a topic does not exist.
    """
    client = settings.broker.librdkafka()
    names = {kind: settings.topics.name(kind) for kind in DECODERS}
    try:
        with closing(_consumer(client)) as consumer:
            ranges = {kind: _ranges(consumer, kind, name, span) for kind, name in names.items()}
            records = {kind: list(read_range(consumer, names[kind], found)) for kind, found in ranges.items()}
        with closing(Broadcast(client, settings.topics.name("items"))) as items:
            catalogue = list(items.read_to_end(PATIENCE))
    except (KafkaException, TimeoutError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise TopicsError(f"the topics at {settings.broker.servers} cannot be read: {reason}") from error
    entries, late = in_event_time(records)
    if not entries:
        raise TopicsError(f"{' and '.join(names.values())} at {settings.broker.servers} hold nothing in this range")
    behaviour = f"{names['searches']} and {names['clicks']}"
    return Recording(f"{behaviour} at {settings.broker.servers}", catalogue, entries[:limit], late)


def read_published(settings: Settings) -> Iterator[KafkaRecord]:
    """Yield what is in the topic of recommendations, partition by partition.

    Raises:
        TopicsError: it cannot be read.
    """
    topic = settings.topics.name("recommendations")
    try:
        with closing(_consumer(settings.broker.librdkafka())) as consumer:
            yield from read_range(consumer, topic, _ends(consumer, topic))
    except (KafkaException, TimeoutError) as error:
        raise TopicsError(f"{topic} at {settings.broker.servers} cannot be read: {error}") from error


def read_range(consumer: Consumer, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[KafkaRecord]:
    """Yield the records of each partition from an offset on and before another one, in the order of their offsets.

    Raises:
        KafkaException: the broker refuses.
        TimeoutError: it falls silent.
    """
    ends = {partition: end for partition, (begin, end) in ranges.items() if begin < end}
    consumer.assign([TopicPartition(topic, partition, ranges[partition][0]) for partition in ends])
    deadline = monotonic() + PATIENCE
    while ends:
        messages: list[Message] = consumer.consume(10_000, 0.5)
        if messages:
            deadline = monotonic() + PATIENCE
        elif monotonic() > deadline:
            raise TimeoutError(f"nothing read for {PATIENCE:g} s")
        for message in messages:
            partition, error = message.partition(), message.error()
            if message.topic() != topic:
                continue  # of what was assigned before
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                ends.pop(partition, None)  # nothing stable is left, though an open transaction may have begun before the end
            elif partition in ends:
                offset = message.offset()
                if offset < ends[partition]:
                    yield KafkaRecord.of(message)
                if offset + 1 >= ends[partition]:
                    del ends[partition]
    consumer.unassign()


def _consumer(client: Mapping[str, Any]) -> Consumer:
    return Consumer(
        {
            **client,
            "group.id": "driftstream-replay",  # librdkafka wants one; it is neither joined nor committed to
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",  # where retention has removed what was asked for
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,  # see engine/recovery.py
        }
    )


def _ends(consumer: Consumer, topic: str) -> dict[int, tuple[int, int]]:
    """Return the first offset of each partition and the one after the last."""
    metadata = consumer.list_topics(topic, timeout=CONNECT_SECONDS).topics[topic]
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=CONNECT_SECONDS) for p in metadata.partitions}


def _ranges(consumer: Consumer, kind: str, topic: str, span: Span) -> dict[int, tuple[int, int]]:
    ends = _ends(consumer, topic)
    begins = {p: low for p, (low, _) in ends.items()} if span.begin is None else _at(consumer, topic, ends, span.begin)
    stops = {p: high for p, (_, high) in ends.items()} if span.end is None else _at(consumer, topic, ends, span.end)
    ranges = {p: (begins[p], stops[p]) for p in ends}
    for (given, partition), (begin, end) in span.offsets.items():
        if given == kind:
            if partition not in ends:
                raise TopicsError(f"{topic} has no partition {partition}")
            ranges[partition] = (begin, ends[partition][1] if end is None else min(end, ends[partition][1]))
    return ranges


def _at(consumer: Consumer, topic: str, ends: Mapping[int, tuple[int, int]], time: int) -> dict[int, int]:
    """Return the first offset of each partition that was written at a time or later; its end where there is none."""
    found = consumer.offsets_for_times([TopicPartition(topic, p, time) for p in ends], timeout=CONNECT_SECONDS)
    return {tp.partition: tp.offset if tp.offset >= 0 else ends[tp.partition][1] for tp in found}
