"""The promise about results, and the order of steps that keeps it."""

from __future__ import annotations

import asyncio
import logging
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Literal, NamedTuple

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.engine.intake import Partition

log = logging.getLogger("driftstream.checkpoint")

Guarantee = Literal["exactly_once", "at_least_once"]
Headers = list[tuple[str, bytes]]


class Output(msgspec.Struct, frozen=True, gc=False):
    """A record to publish; its partition follows from its key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None


@dataclass
class Work:
    """What one batch leads to: the offsets that it consumed, what to publish, and the users' new states, encoded; None erases."""

    offsets: dict[Partition, int]
    outputs: list[Output] = field(default_factory=list)
    states: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)


class Membership(NamedTuple):
    """The worker's place in its consumer group, as it was when the partitions that it now reads were given to it.

    Not as it is at the moment of committing: a worker that was thrown out of the group has no place, and Kafka takes offsets in a
    transaction without a place from anybody.
    """

    group: str
    generation: int
    member_id: str


class LostError(Exception):
    """The results of a batch could not be made safe. The worker has to stop; the batch is read again after the restart."""


class MovedOnError(LostError):
    """The group has given the partitions away meanwhile. Nothing of the batch was kept; its new owner reads it again."""


# What the broker says to a member of an earlier generation, or to one that it knows no more.
MOVED_ON = {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_INSTANCE_ID}

# The transaction failed in the background, and the next record found out; or a slow broker is still finishing the one before.
UNFINISHED = {KafkaError._STATE, KafkaError.CONCURRENT_TRANSACTIONS}

# A transaction that is open for longer is aborted by the broker: what a worker that died in the middle of one delays its successor
# by, at most. It is open only while a batch is being produced, after everything is computed.
TRANSACTION_TIMEOUT_MS = 15_000
BY_KEY = -1  # the partition of a record that goes where its key leads: librdkafka's RD_KAFKA_PARTITION_UA
OFFSETS_TIMEOUT = 6.0  # seconds; a coordinator answers in milliseconds


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
        commit_offsets: commits consumed offsets through the group, False if it has moved on; used for at_least_once only.
        timeout: seconds that the broker may take for a batch before the worker gives up.

    Raises:
        LostError: exactly_once, and the broker does not let this worker begin.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        *,
        guarantee: Guarantee,
        transactional_id: str,
        changelog: str,
        persist: Callable[[int, Mapping[bytes, bytes | None], int], None],
        commit_offsets: Callable[[Mapping[Partition, int], Membership], Awaitable[bool]],
        timeout: float = 60.0,
    ) -> None:
        self._transactional = guarantee == "exactly_once"
        self._changelog = changelog
        self._persist = persist
        self._commit_offsets = commit_offsets
        self._timeout = timeout
        self._failure: KafkaError | None = None
        self._written: dict[int, int] = {}
        config: dict[str, Any] = {
            **client,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # as Java clients do, so that a key is in the same partition everywhere
            "compression.type": "lz4",
            "linger.ms": 2,
            "retry.backoff.ms": 5,  # a broker says that a transaction is done some ms before it takes the next: 100 would be too long
            "message.max.bytes": 100_000_000,  # what a broker let in must go out again as a dead letter; the limit is the broker's
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 262_144,
            "message.timeout.ms": int(timeout * 1000),
        }
        if self._transactional:
            config |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "message.timeout.ms": TRANSACTION_TIMEOUT_MS,  # librdkafka allows no more
            }
        self._config = config
        self._producer = self._new_producer()

    def _new_producer(self) -> Producer:
        """Connect. In a transactional id's name: what its former holder has left open is aborted, and the holder is fenced."""
        producer = Producer(self._config)
        if self._transactional:
            try:
                self._insist(producer.init_transactions, monotonic() + self._timeout)
            except KafkaException as error:
                name = self._config["transactional.id"]
                raise LostError(f"the broker does not let {name} begin a transaction: {_text(error)}") from error
        return producer

    async def commit(self, work: Work, member: Membership) -> None:
        """Carry out the steps above for one batch.

        Raises:
            MovedOnError: the group has given the partitions away. Nothing of the batch was kept.
            LostError: the broker refused or did not answer; nothing of the batch was written to RocksDB.
        """
        if self._transactional:
            await asyncio.to_thread(self._transact, work, member)
        else:
            await asyncio.to_thread(self._deliver, work)
            if not await self._commit_offsets(work.offsets, member):
                raise MovedOnError("the group moved on without this worker; its offsets were refused")
        await asyncio.to_thread(self._write, work)

    def _transact(self, work: Work, member: Membership) -> None:
        """Produce and commit as one transaction; begin again where that fails, but never with the producer that it failed with.

        What an aborted transaction has left on its way can still reach the broker, or its end can reach a partition late and take the
        next one's records with it. A new producer of the same name waits until the broker has aborted what is open, and has an epoch
        that keeps the former one's remains out.
        """
        deadline = monotonic() + self._timeout
        offsets = [TopicPartition(p.topic, p.partition, offset) for p, offset in work.offsets.items()]
        while True:
            try:
                self._producer.begin_transaction()
                self._produce(work)
                self._send_offsets(offsets, member)
                self._insist(self._producer.commit_transaction, deadline)
                return
            except TimeoutError as error:
                if monotonic() > deadline:
                    raise LostError(f"the group's coordinator takes no offsets within {self._timeout:g} s") from error
                why = "the group's coordinator does not answer"
            except KafkaException as error:
                fault: KafkaError = error.args[0]
                why = str(fault.str())
                if fault.code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
                    raise LostError(
                        "the broker has given this worker's transactions to another one, or they took too long "
                        f"({why}). If this comes again, two workers have the same engine.worker_id"
                    ) from error
                if fault.code() in MOVED_ON:
                    self._producer = self._new_producer()
                    raise MovedOnError(f"the group moved on without this worker ({why})") from error
                again = fault.txn_requires_abort() or fault.retriable() or fault.code() in UNFINISHED
                if not again or monotonic() > deadline:
                    raise LostError(f"the broker did not accept a batch: {why}") from error
            log.warning("A transaction came to nothing (%s); it is begun again by a new producer", why)
            self._producer = self._new_producer()

    def _send_offsets(self, offsets: list[TopicPartition], member: Membership) -> None:
        """Put the offsets into the transaction.

        librdkafka's call can wait for ever, whatever timeout it is given, once the coordinator's broker was away (its issues 5456 and
        5511). It cannot be interrupted, so it has a thread of its own; a producer that is stuck in it is of no use any more.

        Raises:
            TimeoutError: nothing came of it for so long that nothing will.
        """
        producer, outcome = self._producer, SimpleQueue[Exception | None]()

        def send() -> None:
            try:
                producer.send_offsets_to_transaction(offsets, group_metadata(*member), OFFSETS_TIMEOUT)
                outcome.put(None)
            except Exception as error:
                outcome.put(error)

        threading.Thread(target=send, name="offsets", daemon=True).start()
        try:
            error = outcome.get(timeout=OFFSETS_TIMEOUT + 2.0)
        except Empty:
            raise TimeoutError from None
        if error is not None:
            raise error

    @staticmethod
    def _insist(call: Callable[..., None], deadline: float, *arguments: Any) -> None:
        """Call one of the producer's transactional methods; where it timed out, librdkafka goes on with the next call."""
        while True:
            try:
                return call(*arguments, max(1.0, deadline - monotonic()))
            except KafkaException as error:
                if not error.args[0].retriable() or monotonic() > deadline:
                    raise

    def _deliver(self, work: Work) -> None:
        """Produce, and wait until every record is acknowledged."""
        try:
            self._produce(work)
            if self._producer.flush(self._timeout):
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"not acknowledged within {self._timeout:g} s"))
            if self._failure is not None:
                raise KafkaException(self._failure)
        except KafkaException as error:
            raise LostError(f"the broker did not accept a batch: {_text(error)}") from error

    def _produce(self, work: Work) -> None:
        # A transaction fails as a whole, and a partition's last state has its highest offset: only that one has to report, and
        # a report costs as much as producing. Without transactions every record has to.
        on_state, on_output = (None, None) if self._transactional else (self._on_state, self._on_output)
        self._written.clear()
        for partition, states in work.states.items():
            last = len(states) - 1
            for place, (key, value) in enumerate(states.items()):
                self._insert(self._changelog, value, key, partition, self._on_state if place == last else on_state)
        for output in work.outputs:
            self._insert(output.topic, output.value, output.key, BY_KEY, on_output, output.headers)

    def _insert(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        report: Callable[[KafkaError | None, Message], None] | None,
        headers: Headers | None = None,
    ) -> None:
        # By position: to pass a dozen keywords on costs more than the call itself, and this is done for every record.
        while True:
            try:
                if headers is None:
                    self._producer.produce(topic, value, key, partition, report)
                else:
                    self._producer.produce(topic, value, key, partition, report, headers=headers)
                return
            except BufferError:  # more than the producer holds: wait until the broker has taken some
                self._producer.poll(0.1)

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
        """Keep the new states. What cannot be written is in the changelog already: a worker that starts again gets it from there."""
        for partition, states in work.states.items():
            if states:
                self._persist(partition, states, self._written[partition])


def _text(error: KafkaException) -> str:
    return str(error.args[0].str())


def group_metadata(group: str, generation: int, member_id: str) -> bytes:
    """Build what librdkafka's `Consumer.consumer_group_metadata()` would give, for a consumer that is not librdkafka's.

    Source: `rd_kafka_consumer_group_metadata_write` in librdkafka; a test compares the two.
    """
    return b"CGMDv2:" + struct.pack("=i", generation) + group.encode() + b"\0" + member_id.encode() + b"\0" + struct.pack("b", 1)
