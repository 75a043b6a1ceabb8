"""The promise about results, and the order of steps that keeps it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.engine.intake import Partition

Guarantee = Literal["exactly_once", "at_least_once"]
Headers = list[tuple[str, bytes]]


class Output(NamedTuple):
    """A record to publish; its partition follows from its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None


@dataclass
class Work:
    """What one batch leads to: the offsets that it consumed, what to publish, and the users' new states, encoded."""

    offsets: dict[Partition, int]
    outputs: list[Output] = field(default_factory=list)
    states: dict[int, dict[bytes, bytes]] = field(default_factory=dict)


class Member(Protocol):
    """The worker's membership in its consumer group."""

    group: str
    generation: int
    member_id: str

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit consumed offsets through the group; False if it has moved on."""
        ...


class LostError(Exception):
    """The results of a batch could not be made safe. The worker has to stop; the batch is read again after the restart."""


class Checkpoint:
    """Makes the results of a batch durable; after a crash at any point nothing is lost.

    1. Produce the outputs, and the new states to the changelog, through librdkafka.
    2. exactly_once: put the consumed offsets into the same transaction and commit it, under the group's generation (KIP-447),
       so that a worker which has lost its partitions is refused. at_least_once: wait until every record is acknowledged, then
       commit the offsets.
    3. Only now write RocksDB, together with the changelog offset that it stands for.

    A crash before 2 leaves RocksDB as it was and the batch is read again; a crash between 2 and 3 leaves RocksDB behind the
    changelog, and recovery replays the difference. The order is that of Quix Streams' and Kafka Streams' checkpoints.

    Args:
        client: librdkafka's settings for the connection.
        guarantee: see above.
        transactional_id: unique to this worker; used for exactly_once only.
        changelog: the topic of the users' states.
        persist: writes a partition's encoded states and their last changelog offset to RocksDB.
        timeout: seconds that the broker may take for a batch before the worker gives up.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        *,
        guarantee: Guarantee,
        transactional_id: str,
        changelog: str,
        persist: Callable[[int, Mapping[bytes, bytes], int], None],
        timeout: float = 60.0,
    ) -> None:
        self._transactional = guarantee == "exactly_once"
        self._changelog = changelog
        self._persist = persist
        self._timeout = timeout
        self._failure: KafkaError | None = None
        self._written: dict[int, int] = {}
        config: dict[str, Any] = {
            **client,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # as Java clients do, so that a key is in the same partition everywhere
            "compression.type": "lz4",
            "linger.ms": 2,
            "message.max.bytes": 100_000_000,  # what a broker let in must go out again as a dead letter; the limit is the broker's
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 262_144,
            "message.timeout.ms": int(timeout * 1000),
        }
        if self._transactional:
            config |= {"transactional.id": transactional_id, "transaction.timeout.ms": int(timeout * 1000)}
        self._producer = Producer(config)
        if self._transactional:
            self._producer.init_transactions(timeout)

    async def commit(self, work: Work, member: Member) -> None:
        """Carry out the steps above for one batch.

        Raises:
            LostError: the broker refused or did not answer; nothing of the batch was written to RocksDB.
        """
        try:
            await asyncio.to_thread(self._produce, work, member)
        except KafkaException as error:
            raise LostError(f"the broker did not accept a batch: {error}") from error
        if not self._transactional and not await member.commit(work.offsets):
            raise LostError("the group moved on without this worker; its offsets were refused")
        await asyncio.to_thread(self._write, work)

    def _produce(self, work: Work, member: Member) -> None:
        producer = self._producer
        self._written.clear()
        if self._transactional:
            producer.begin_transaction()
        for partition, states in work.states.items():
            for key, value in states.items():
                self._send(self._changelog, value, key, partition=partition, on_delivery=self._on_state)
        for output in work.outputs:
            self._send(output.topic, output.value, output.key, headers=output.headers, on_delivery=self._on_output)
        if self._transactional:
            offsets = [TopicPartition(p.topic, p.partition, offset) for p, offset in work.offsets.items()]
            metadata = group_metadata(member.group, member.generation, member.member_id)
            producer.send_offsets_to_transaction(offsets, metadata, self._timeout)
            producer.commit_transaction(self._timeout)
        elif producer.flush(self._timeout):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"not acknowledged within {self._timeout:g} s"))
        if self._failure is not None:
            raise KafkaException(self._failure)

    def _send(self, topic: str, value: bytes | None, key: bytes | None, **options: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, **options)
            except BufferError:  # more than the producer holds: wait until the broker has taken some
                self._producer.poll(0.1)
            else:
                return

    def _on_state(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = error
        else:
            partition, offset = message.partition(), message.offset()
            self._written[partition] = max(offset, self._written.get(partition, -1))

    def _on_output(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = error

    def _write(self, work: Work) -> None:
        for partition, states in work.states.items():
            if states:
                self._persist(partition, states, self._written[partition])


def group_metadata(group: str, generation: int, member_id: str) -> bytes:
    """Build what librdkafka's `Consumer.consumer_group_metadata()` would give, for a consumer that is not librdkafka's.

    Source: `rd_kafka_consumer_group_metadata_write` in librdkafka; a test compares the two.
    """
    return b"CGMDv2:" + struct.pack("=i", generation) + group.encode() + b"\0" + member_id.encode() + b"\0" + struct.pack("b", 1)
