"""Brings a partition's RocksDB up to its changelog before the partition is processed.

Faust decides when to recover and what; the reading is ours, through librdkafka, for two reasons. A changelog written in transactions
ends in control records, which no consumer delivers, so that Faust's comparison of the last record with the high watermark never
holds: here a partition is recovered when the *position* reaches the last stable offset. And it is read in batches, off the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rocksdict
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from faust.stores.rocksdb import Store
from faust.tables.manager import TableManager as FaustTableManager
from faust.tables.recovery import Recovery as FaustRecovery
from faust.types import TP

log = logging.getLogger("driftstream.recovery")


class Recovery(FaustRecovery):
    """Faust's recovery, with the changelog read by `replay_changelog`."""

    async def _build_highwaters(self, consumer: Any, tps: set[TP], destination: Counter[TP], title: str) -> None:
        # Called first of all for the partitions that this worker has become the owner of. When this returns, each database stands
        # where its changelog ends; saying so to Faust leaves it nothing to read.
        generation = self.app.consumer_generation_id
        reached = await asyncio.to_thread(
            replay_changelog,
            self.app.settings.broker.librdkafka(),
            {tp: self.tp_to_table[tp].data for tp in tps},
            lambda: not self.should_stop and self.app.consumer_generation_id == generation,
        )
        destination.clear()
        for tp, offset in reached.items():  # not Counter.update, which adds
            destination[tp] = self.active_offsets[tp] = offset

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        # Without Faust's limit of 90 s: reading a large changelog takes as long as it takes. Readiness tells, and a watchdog ends
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
    client: Mapping[str, Any], stores: Mapping[TP, Store], wanted: Callable[[], bool], patience: float = 60.0
) -> dict[TP, int]:
    """Apply what each changelog partition holds beyond the offset that its database stands for.

    Args:
        client: librdkafka's settings for the connection.
        stores: the store of each changelog partition.
        wanted: asked between batches; replaying stops when it says False (the partitions have moved on).
        patience: seconds without any progress before giving up.

    Returns:
        The last offset that each database now stands for; -1 for an empty changelog.

    Raises:
        KafkaException: the changelog cannot be read.
        TimeoutError: nothing arrived for `patience` seconds.
    """
    if not stores:
        return {}
    consumer = Consumer(
        {
            **client,
            "group.id": "driftstream-recovery",  # librdkafka wants one; nothing is ever committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        reached: dict[TP, int] = {}
        for tp, store in stores.items():
            reached[tp] = _trusted_offset(consumer, tp, store)
        consumer.assign(
            [TopicPartition(tp.topic, tp.partition, at + 1 if at >= 0 else OFFSET_BEGINNING) for tp, at in reached.items()]
        )
        unfinished, idle = set(stores), 0.0
        while unfinished and wanted():
            messages = consumer.consume(10_000, 0.2)
            idle = 0.0 if messages else idle + 0.2
            if idle > patience:
                raise TimeoutError(f"changelog {sorted(unfinished)}: nothing read for {patience:g} s; is the broker up?")
            _apply(messages, stores, reached, unfinished)
        return reached
    finally:
        consumer.close()


def _trusted_offset(consumer: Consumer, tp: TP, store: Store) -> int:
    """The offset that a database stands for, or -1 where it claims more than the changelog has: then it is rebuilt."""
    persisted: int | None = store.persisted_offset(tp)
    if persisted is None:
        return -1
    _, end = consumer.get_watermark_offsets(TopicPartition(tp.topic, tp.partition), timeout=30)
    if persisted < end:
        return persisted
    log.warning(
        "%s[%d]: the state on disk stands for offset %d, but the changelog ends at %d: it was emptied or made anew. "
        "The state is discarded and rebuilt from what the changelog holds.",
        tp.topic, tp.partition, persisted, end,
    )  # fmt: skip
    database = store._db_for_partition(tp.partition)
    database.delete_range(b"", b"\xff" * 64)
    return -1


def _apply(messages: Iterable[Any], stores: Mapping[TP, Store], reached: dict[TP, int], unfinished: set[TP]) -> None:
    batches: dict[TP, rocksdict.WriteBatch] = {}
    for message in messages:
        tp = TP(message.topic(), message.partition())
        error = message.error()
        if error is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            unfinished.discard(tp)
            if message.offset() > 0:  # the position, which is past control records too
                reached[tp] = max(reached[tp], message.offset() - 1)
                batches.setdefault(tp, rocksdict.WriteBatch(raw_mode=True))
            continue
        batch = batches.setdefault(tp, rocksdict.WriteBatch(raw_mode=True))
        if message.value() is None:
            batch.delete(message.key())
        else:
            batch.put(message.key(), message.value())
        reached[tp] = message.offset()
    for tp, batch in batches.items():
        batch.put(Store.offset_key, str(reached[tp]).encode())
        stores[tp]._db_for_partition(tp.partition).write(batch)
