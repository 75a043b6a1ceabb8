"""Faust's Kafka transport, with a consumer that hands over whole fetched batches.

Stock Faust turns every record into a message, an event and two tasks, which caps it at a few thousand events a second. Here a fetch
goes to the `Intake` as it is. Faust keeps the group, the assignment, the tables and their recovery; offsets are not its business any
more (`engine/checkpoint.py` commits them), so its own acknowledging and committing is switched off.

What we rely on inside Faust is pinned by `tests/unit/test_faust_seams.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from aiokafka.errors import ConsumerStoppedError, IllegalStateError
from confluent_kafka import Consumer, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.engine.intake import Partition

if TYPE_CHECKING:
    from stream.app import App
    from stream.connection import Broker


FETCH_WAIT_MS = 100


class CommittedReader(driver.AIOKafkaConsumerThread):
    """The thread that aiokafka runs in; reads committed records only, whatever Faust's own guarantee is set to."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        # Faust's 1,500 ms is what an empty fetch may block the partitions that have something; brokers answer at once all the same.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class BatchConsumer(driver.Consumer):
    """Hands every fetched batch of an input topic to the app's intake."""

    app: App

    def _new_consumer_thread(self) -> CommittedReader:
        return CommittedReader(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        intake = self.app.intake
        intake.lag = self.lag
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            generation = self.app.consumer_generation_id
            try:
                records, active = await self._next_records(intake.full())
            except (ConsumerStoppedError, asyncio.CancelledError):
                # Faust's fetcher takes a cancellation during a rebalance for a crash, even when the worker is just stopping.
                if self.app.should_stop:
                    return
                raise
            if not self.flow_active or generation != self.app.consumer_generation_id:
                continue  # a rebalance: after it, Faust seeks back to what was committed
            for tp, batch in records.items():
                if tp in active:
                    intake.put(Partition(tp.topic, tp.partition), batch)
            await asyncio.sleep(0)

    async def _next_records(self, full: set[Partition]) -> tuple[dict[TP, list[Any]], set[TP]]:
        """Fetch from the active partitions that the intake has room for."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        active = {tp for tp in self._get_active_partitions() if tp not in full and not self._is_changelog_tp(tp)}
        if not active:
            await self.sleep(0.01)
            return {}, active
        # A full partition has to be asked for again as soon as it has room, so do not sit waiting for the others.
        return await self._getmany(active, timeout=0.02 if full else 1.0), active

    def lag(self, partition: Partition) -> int | None:
        """Return how many records of a partition have not been fetched yet; None while that is not known."""
        assignment = self._thread._ensure_consumer()._subscription.subscription.assignment
        state = None if assignment is None or partition not in assignment.tps else assignment.state_value(partition)
        try:
            return None if state is None or state.highwater is None else max(0, state.highwater - state.position)
        except (IllegalStateError, AssertionError):  # not assigned any more, or no position yet
            return None

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the group's committed offsets, once no transaction can move them any more.

        aiokafka cannot ask for stable offsets (its OffsetFetch ends at v3): after a rebalance it may read one that the previous
        owner's open transaction is about to move. librdkafka can (KIP-447), so we start from what it says.
        """
        committed = dict(await super().seek_to_committed())
        stable = await asyncio.to_thread(stable_offsets, self.app.settings.broker, self.assignment())
        await self._thread.seek_wait(stable)
        return committed | stable

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing: offsets are committed by the checkpoint, together with the results that they stand for."""
        return False

    async def wait_empty(self) -> None:
        """Let the batch in flight reach its checkpoint, and forget what was fetched but not begun."""
        await self.app.intake.drain()

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust's detector looks for its own commits, which there are none of."""


def stable_offsets(broker: Broker, partitions: Iterable[TP]) -> dict[TP, int]:
    """Return the committed offsets of the group, waiting for open transactions; partitions without one are left out.

    Raises:
        KafkaException: the broker did not answer within 60 s.
    """
    consumer = Consumer(
        {
            **broker.librdkafka(),
            "group.id": broker.group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    try:
        found = consumer.committed([TopicPartition(tp.topic, tp.partition) for tp in partitions], timeout=60)
        return {TP(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}
    finally:
        consumer.close()


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with `BatchConsumer`."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer
