"""Faust's Kafka transport, with a consumer that hands over whole fetched batches.

Stock Faust turns every record into a message, an event and two tasks, which caps it at a few thousand events a second. Here librdkafka
fetches (`engine/reader.py`), and what it brings goes to the `Intake` as it is. Faust and aiokafka keep the group, the assignment, the
tables and their recovery; offsets are not their business any more (`engine/checkpoint.py` commits them), so Faust's own acknowledging
and committing is switched off.

What we rely on inside Faust is pinned by `tests/unit/test_faust_seams.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from aiokafka.errors import IllegalGenerationError, KafkaError, RebalanceInProgressError, UnknownMemberIdError
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.engine.intake import Intake, Partition
from stream.engine.reader import Fetched, Reader

if TYPE_CHECKING:
    from stream.app import App
    from stream.connection import Broker
    from stream.engine.checkpoint import Membership


RETRY_SECONDS = 0.1
COMMITTED_SECONDS = 60.0  # that the group's coordinator may take to say what is committed
ASKED_SECONDS = 5.0  # for which it is asked at a time
READ_SECONDS = 0.25  # that reading nothing may take; a rebalance waits for it
FULL_SECONDS = 0.02  # until a full intake is looked at again

NO_GENERATION = -1


class Recovered(NamedTuple):
    """For whom the states are recovered, and from where to go on.

    Attributes:
        generation: of the group, in which the partitions were given to this worker.
        offsets: of the input partitions, as committed before the changelog was read; None where nothing is committed yet.
    """

    generation: int
    offsets: Mapping[TP, int | None]


class GroupMember(driver.AIOKafkaConsumerThread):
    """The thread that aiokafka runs in: it takes part in the group, and fetches nothing."""

    async def on_start(self) -> None:
        """Join the group, without the part of aiokafka that fetches."""
        await super().on_start()
        await self._ensure_consumer()._fetcher.close()

    async def commit_as(self, offsets: Mapping[Partition, int], member: Membership) -> bool:
        """Commit offsets as the member that read them; False if the group has moved on and that member is no more.

        aiokafka itself commits under whatever generation is the latest. In one that came about meanwhile the broker accepts offsets of
        partitions that are another worker's by now, and that one then begins behind events whose states it has not seen.

        Raises:
            KafkaError: the broker refused for good.
        """
        return bool(await self.call_thread(self._commit_as, offsets, member))

    async def _commit_as(self, offsets: Mapping[Partition, int], member: Membership) -> bool:
        coordinator = self._ensure_consumer()._coordinator
        wanted = {driver.ensure_aiokafka_TP(TP(*p)): OffsetAndMetadata(offset, "") for p, offset in offsets.items()}
        while True:
            await coordinator.ensure_coordinator_known()
            if (coordinator.generation, coordinator.member_id) != (member.generation, member.member_id):
                return False
            try:
                await coordinator._do_commit_offsets(None, wanted)  # names both to the broker before it awaits anything
                return True
            except (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError):
                return False
            except KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(RETRY_SECONDS)


class BatchConsumer(driver.Consumer):
    """Hands every fetched batch of an input topic to the app's intake."""

    app: App

    def _new_consumer_thread(self) -> GroupMember:
        return GroupMember(self, loop=self.loop, beacon=self.beacon)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        broker = self.app.settings.broker
        self._reader = Reader(broker.librdkafka(), broker.group)
        # Nothing is read while positions are moved: what a read that began before and ended after brings would be taken for what lies
        # behind the new position, and what is there indeed would be missed.
        self._positions = asyncio.Lock()

    async def _drain_messages(self, fetcher: Any) -> None:
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            try:
                if not self.flow_active:
                    await self.wait(self.can_resume_flow)
                # What a read has brought is put into the intake, though Faust cancels this: nobody else would bring it.
                await asyncio.shield(self._read(self.app.intake))
            except asyncio.CancelledError:
                # Faust's fetcher takes a cancellation during a rebalance for a crash, even when the worker is just stopping.
                if self.app.should_stop:
                    return
                raise
            except KafkaException as error:
                await self.app.crash(error)
                return

    async def _read(self, intake: Intake) -> None:
        """Read what there is, unless the intake holds enough to go on with."""
        async with self._positions:
            full = intake.full()
            if full and not intake.starved():
                await asyncio.sleep(FULL_SECONDS)
            elif not self._stopped.is_set():
                for partition, (records, lag) in (await asyncio.to_thread(self._next, full)).items():
                    intake.put(partition, records, lag)

    def _next(self, full: set[Partition]) -> Mapping[Partition, Fetched]:
        self._reader.hold(full)
        return self._reader.read(READ_SECONDS)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the committed offsets that the states were recovered after, and let the worker begin there.

        Not to those of this moment: a former owner that has not heard yet may have moved them, with states that were not there when
        the changelog was read. A partition without one begins at its beginning.
        """
        recovered, app = self.app.recovered, self.app
        async with self._positions:
            if recovered.generation != app.consumer_generation_id:
                return {}  # the group is being reorganised again, and all this comes again
            offsets = {Partition(*tp): offset for tp, offset in recovered.offsets.items()}
            await asyncio.to_thread(self._reader.assign, offsets)
            if recovered.generation != app.consumer_generation_id:
                return {}
            app.begin(recovered.generation, {partition: offset or 0 for partition, offset in offsets.items()})
        return {tp: offset for tp, offset in recovered.offsets.items() if offset is not None}

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Do nothing: offsets are committed by the checkpoint, together with the results that they stand for."""
        return False

    async def wait_empty(self) -> None:
        """The partitions are being given away: let the batch in flight reach its checkpoint, and forget what was fetched but not begun.

        Faust's mark of the generation is taken back, so that a recovery which is still under way for it lets nothing begin any more.
        """
        self.app.consumer_generation_id = NO_GENERATION
        await self.app.intake.drain()
        async with self._positions:
            await asyncio.to_thread(self._reader.assign, {})

    async def on_stop(self) -> None:
        """Stop, and leave the broker."""
        await super().on_stop()
        async with self._positions:
            await asyncio.to_thread(self._reader.close)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust's detector looks for its own commits, which there are none of."""


def stable_offsets(broker: Broker, partitions: Iterable[TP], needed: Callable[[], bool] = lambda: True) -> dict[TP, int | None]:
    """Return the committed offsets of the group, waiting for open transactions; None for partitions without one.

    aiokafka cannot ask for stable offsets (its OffsetFetch ends at v3): after a rebalance it may read one that the previous owner's
    open transaction is about to move. librdkafka can (KIP-447).

    Args:
        broker: whom to ask, and for which group.
        partitions: of the input topics.
        needed: asked every few seconds; waiting ends with an empty answer when it says False (the partitions have moved on).

    Raises:
        TimeoutError: nothing was said within 60 s; the message says what to do.
    """
    consumer = Consumer(
        {
            **broker.librdkafka(),
            "group.id": broker.group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    wanted = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
    deadline = monotonic() + COMMITTED_SECONDS
    try:
        while needed():
            try:
                found = consumer.committed(wanted, timeout=ASKED_SECONDS)
                for tp in found:
                    if tp.error is not None:  # to take it for one without an offset would be to read it again from its beginning
                        raise KafkaException(tp.error)
                return {TP(tp.topic, tp.partition): tp.offset if tp.offset >= 0 else None for tp in found}
            except KafkaException as error:
                # A broker that has just been restarted is not the group's coordinator yet, for example.
                if monotonic() > deadline:
                    held = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in wanted)
                    raise TimeoutError(
                        f"the broker does not say what the group {broker.group} has committed of {held} ({error.args[0].str()}). "
                        "If it is up, a transaction on __consumer_offsets may be hanging: look with kafka-transactions.sh "
                        "find-hanging, and end it with abort"
                    ) from error
                sleep(0.2)
        return {}
    finally:
        consumer.close()


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with `BatchConsumer`."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer
