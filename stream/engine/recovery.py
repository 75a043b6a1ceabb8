"""Brings a partition's RocksDB up to its changelog before the partition is processed.

Faust decides when to recover and what; the reading is ours, through librdkafka, for two reasons. A changelog written in transactions
ends in control records, which no consumer delivers, so that Faust's comparison of the last record with the high watermark never
holds: here a partition is recovered when the *position* reaches the last stable offset. And it is read in batches, off the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import rocksdict
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from faust.stores.rocksdb import Store
from faust.tables.manager import TableManager as FaustTableManager
from faust.tables.recovery import Recovery as FaustRecovery
from faust.types import TP

from stream.engine.store import UNLOGGED
from stream.engine.transport import Recovered, stable_offsets


class RecoveryError(Exception):
    """Users' states cannot be restored; the message says what to do."""


class Recovery(FaustRecovery):
    """Faust's recovery, with the changelog read by `replay_changelog`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restoring = threading.Lock()

    async def _build_highwaters(self, consumer: Any, tps: set[TP], destination: Counter[TP], title: str) -> None:
        # Called first of all for the partitions that this worker has become the owner of. When this returns, each database stands
        # where its changelog ends; saying so to Faust leaves it nothing to read.
        try:
            stores, generation = {tp: self.tp_to_table[tp].data for tp in tps}, self._generation_id
            assigned = {tp for tp in consumer.assignment() if tp.topic in self.app.intake.topics}
            inputs = {tp for tp in assigned if tp.partition in {changelog.partition for changelog in tps}}
            # Answered without their users' states, the others would make new ones that lack the past.
            if left := sorted(assigned - inputs):
                names = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in left)
                self.log.warning(
                    "not reading %s: the group gave the states to another worker. Do all run the same version?", names
                )
            offsets, reached = await asyncio.to_thread(self._restore, stores, inputs, generation)
            self.app.recovered = Recovered(generation, offsets)
        except Exception as error:  # Faust would only log it, and the worker would wait for ever
            await self.app.crash(error)
            raise
        destination.clear()
        for tp, offset in reached.items():  # not Counter.update, which adds
            destination[tp] = self.active_offsets[tp] = offset

    def _restore(
        self, stores: Mapping[TP, Store], inputs: Iterable[TP], generation: int
    ) -> tuple[dict[TP, int | None], dict[TP, int]]:
        # One at a time: where the group is reorganised in the middle of it, the next one must not overtake what this one writes.
        with self._restoring:
            # First the offsets, once no transaction can move them any more, then the states: whoever commits an offset has brought the
            # states below it to the changelog before, or brings them with it. The changelog's end, asked for afterwards, has them.
            def needed() -> bool:
                return not self.should_stop and self.app.consumer_generation_id == generation

            broker = self.app.settings.broker
            offsets = stable_offsets(broker, inputs, needed)
            reached = replay_changelog(broker.librdkafka(), stores, needed, self.app.watchdog.progress)
            return offsets, reached

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        # Without Faust's limit of 90 s: reading a large changelog takes as long as it takes. Readiness tells, and the watchdog ends
        # a worker that makes no progress.
        await super()._wait(coro)


class TableManager(FaustTableManager):
    """Faust's tables with our recovery."""

    @property
    def recovery(self) -> Recovery:
        """The recovery service."""
        if self._recovery is None:
            self._recovery: Recovery | None = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


def replay_changelog(
    client: Mapping[str, Any],
    stores: Mapping[TP, Store],
    wanted: Callable[[], bool],
    progress: Callable[[], None] = lambda: None,
    patience: float = 60.0,
) -> dict[TP, int]:
    """Apply what each changelog partition holds beyond the offset that its database stands for.

    Reads committed records only, and up to the end that the partition has at the beginning, open transactions included. It is not
    enough to read to the last stable offset: a transaction that a dead worker has left open holds it back, and what a later owner
    committed behind it would be missed (KAFKA-10167 was this mistake). The broker aborts such a transaction when its time is up.

    Args:
        client: librdkafka's settings for the connection.
        stores: the store of each changelog partition.
        wanted: asked between batches; replaying stops when it says False (the partitions have moved on).
        progress: called whenever something was read.
        patience: seconds without any progress before giving up.

    Returns:
        The last offset that each database now stands for; -1 for an empty changelog.

    Raises:
        RecoveryError: a changelog was emptied, or nothing arrived for `patience` seconds.
        KafkaException: the changelog cannot be read.
    """
    if not stores:
        return {}
    ends = _ends(client, stores, patience)
    reached = {tp: _trusted_offset(tp, store, ends[tp]) for tp, store in stores.items()}
    unfinished = {tp for tp in stores if reached[tp] + 1 < ends[tp]}
    if not unfinished:
        return reached
    consumer = Consumer(
        {
            **client,
            "group.id": "driftstream-recovery",  # librdkafka wants one; nothing is ever committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            # Fetching stops while so much lies ready. By default librdkafka looks again after a whole second, when all of it has
            # long been written.
            "queued.max.messages.kbytes": 16_384,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,  # for so long the broker keeps back the empty answer that tells a partition's end
        }
    )
    try:
        # From where the changelog begins, if that is further on: `auto.offset.reset`. Asking where it begins would take half a second.
        consumer.assign([TopicPartition(tp.topic, tp.partition, reached[tp] + 1) for tp in unfinished])
        last = monotonic()
        with _loading([stores[tp]._db_for_partition(tp.partition) for tp in unfinished]):
            while unfinished and wanted():
                messages = consumer.consume(1_000, 0.05)
                before = dict(reached)
                _apply(messages, stores, reached)
                unfinished = {tp for tp in stores if reached[tp] + 1 < ends[tp]}
                if reached != before:
                    last = monotonic()
                    progress()
                elif monotonic() - last > patience:
                    raise RecoveryError(
                        f"changelog {', '.join(f'{tp.topic}[{tp.partition}]' for tp in sorted(unfinished))}: nothing came for "
                        f"{patience:g} s. Is the broker up, and does it abort transactions that were left open?"
                    )
        return reached
    finally:
        consumer.close()


def _ends(client: Mapping[str, Any], partitions: Iterable[TP], patience: float) -> dict[TP, int]:
    """Where each partition ends, open transactions included."""
    admin = AdminClient(dict(client))
    asked = {TopicPartition(tp.topic, tp.partition): OffsetSpec.latest() for tp in partitions}
    deadline = monotonic() + patience
    while True:
        try:
            answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=30)
            return {TP(tp.topic, tp.partition): future.result().offset for tp, future in answers.items()}
        except KafkaException:  # a broker that has just been restarted does not lead the partition yet, for example
            if monotonic() > deadline:
                raise
            sleep(0.2)


def _trusted_offset(tp: TP, store: Store, end: int) -> int:
    """The offset that a database stands for, -1 for a new one.

    Raises:
        RecoveryError: it claims more than the changelog has.
    """
    persisted: int | None = store.persisted_offset(tp)
    if persisted is None:
        return -1
    if persisted < end:
        return persisted
    raise RecoveryError(
        f"{tp.topic}[{tp.partition}] ends at offset {end}, but the state in {store.partition_path(tp.partition)} stands for offset "
        f"{persisted}: the changelog was emptied or made anew, or the folder is another cluster's. To go on from what the changelog "
        "holds, move that folder away; to keep what is in it, restore the topic or name the right cluster"
    )


@contextmanager
def _loading(databases: Sequence[rocksdict.Rdict]) -> Iterator[None]:
    """Let databases take much at once: they are not compacted until the end, and then have all of it in files.

    A crash soon after does not have to read it again then, and erasures are in files, as `erasing` in engine/store.py wants it.
    """
    for database in databases:
        database.set_options({"disable_auto_compactions": "true"})
    try:
        yield
    finally:
        for database in databases:
            database.flush()
            database.set_options({"disable_auto_compactions": "false"})


def _apply(messages: Iterable[Any], stores: Mapping[TP, Store], reached: dict[TP, int]) -> None:
    batches: dict[TP, rocksdict.WriteBatch] = defaultdict(lambda: rocksdict.WriteBatch(raw_mode=True))
    for message in messages:
        tp = TP(message.topic(), message.partition())
        error = message.error()
        if error is None:
            if (value := message.value()) is None:
                batches[tp].delete(message.key())
            else:
                batches[tp].put(message.key(), value)
            reached[tp] = message.offset()
        elif error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        elif message.offset() - 1 > reached[tp]:  # the position, which is past control records and aborted ones too
            reached[tp] = message.offset() - 1
            batches[tp]
    for tp, batch in batches.items():
        batch.put(Store.offset_key, str(reached[tp]).encode())
        stores[tp]._db_for_partition(tp.partition).write(batch, UNLOGGED)
