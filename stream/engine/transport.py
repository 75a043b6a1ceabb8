"""Faust's Kafka transport, with a consumer that hands over whole fetched batches.

Stock Faust turns every record into a message, an event and two tasks, which caps it at a few thousand events a second. Here a fetch
goes to the `Intake` as it is. Faust keeps the group, the assignment, the tables and their recovery; offsets are not its business any
more (`engine/checkpoint.py` commits them), so its own acknowledging and committing is switched off.

What we rely on inside Faust is pinned by `tests/unit/test_faust_seams.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from aiokafka.errors import ConsumerStoppedError, IllegalStateError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.engine.intake import Partition

if TYPE_CHECKING:
    from stream.app import App


class BatchConsumer(driver.Consumer):
    """Reads whole batches: changelogs go where Faust expects them, everything else into the app's intake."""

    app: App

    async def _drain_messages(self, fetcher: Any) -> None:
        intake = self.app.intake
        intake.lag = self.lag
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            generation = self.app.consumer_generation_id
            try:
                records, active = await self._next_records(intake.full())
            except ConsumerStoppedError:
                if self.transport.app.should_stop:
                    return
                raise
            if not self.flow_active or generation != self.app.consumer_generation_id:
                continue  # a rebalance: after it, Faust seeks back to what was committed
            for tp, batch in records.items():
                if tp not in active:
                    continue
                if self._is_changelog_tp(tp):
                    for record in batch:
                        await self.callback(self._to_message(tp, record))
                else:
                    intake.put(Partition(tp.topic, tp.partition), batch)
                self._read_offset[tp] = batch[-1].offset
            await asyncio.sleep(0)

    async def _next_records(self, full: set[Partition]) -> tuple[dict[TP, list[Any]], set[TP]]:
        """Fetch from the active partitions that the intake has room for."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        active = {tp for tp in self._get_active_partitions() if tp not in full}
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

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing: offsets are committed by the checkpoint, together with the results that they stand for."""
        return False

    async def wait_empty(self) -> None:
        """Let the batch in flight reach its checkpoint, and forget what was fetched but not begun."""
        await self.app.intake.drain()

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust's detector looks for its own commits, which there are none of."""


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with `BatchConsumer`."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer
