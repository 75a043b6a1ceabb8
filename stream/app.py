"""The worker: a Faust app whose one agent turns batches of events into recommendations.

Faust keeps the group, the assignment, the table and its recovery. The intake orders the events, the pipeline answers them, the
checkpoint makes the answers safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP

from stream import metrics
from stream.engine.checkpoint import Checkpoint, Membership, MovedOnError, Work
from stream.engine.credentials import credentials
from stream.engine.intake import Batch, Intake, Partition
from stream.engine.poison import Poison
from stream.engine.recovery import TableManager
from stream.engine.store import ErasingOptions, StateStore, StoreError
from stream.engine.transport import NO_GENERATION, BatchTransport, Recovered
from stream.engine.watchdog import Watchdog
from stream.interests import describe
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings
from stream.state import UserState
from stream.web import Answer, WebServer

log = logging.getLogger("driftstream")

# What the watchdog expects progress of.
JOINING = "joining the group and restoring the state"
ANSWERING = "answering a batch"

LAST_SECONDS = 10.0  # to leave the group in order after a crash

# Faults that no event causes: setting events aside would not help.
UNRELATED = (StoreError, KafkaException, TimeoutError, MemoryError)


class Batches(faust.Channel[Batch]):
    """The channel that the agent reads: one item is a batch of events in event-time order."""

    async def __anext__(self) -> Any:
        app = self.app
        assert isinstance(app, App)
        return await app.intake.take(app.settings.engine.batch_size)


class App(faust.App):
    """A Faust app that reads in batches and checkpoints by itself."""

    def __init__(self, settings: Settings, pipeline: Pipeline, knowledge: Knowledge, worker_id: str) -> None:
        topics, engine = settings.topics, settings.engine
        self.settings = settings
        self.pipeline = pipeline
        self.knowledge = knowledge
        self.intake = Intake(
            {
                topics.name("searches"): pipeline.decode_search,
                topics.name("clicks"): pipeline.decode_click,
                topics.name("erasures"): pipeline.decode_erasure,  # last: of the same millisecond, events are erased too
            },
            wait=engine.order_wait_ms / 1000,
            backlog_wait=engine.backlog_wait_ms / 1000,
            capacity=engine.partition_buffer,
        )
        super().__init__(
            settings.broker.group,
            broker=[f"kafka://{server}" for server in settings.broker.servers.split(",")],
            broker_credentials=credentials(settings.broker),
            store="rocksdb://",
            TableManager=TableManager,
            datadir=str(settings.engine.state_folder),
            topic_partitions=topics.partitions,
            topic_allow_declare=False,  # topics are made before the worker starts: stream/topics.py
            topic_disable_leader=True,
            table_standby_replicas=0,  # recovery reads the changelog at full speed instead
            key_serializer="raw",
            value_serializer="raw",
            web_enabled=False,  # Faust's own pages show tables to anybody: stream/web.py serves what we mean to
            stream_wait_empty=True,
            broker_max_poll_records=engine.partition_buffer,
            broker_session_timeout=settings.broker.session_timeout_ms / 1000,
            broker_heartbeat_interval=max(0.1, settings.broker.session_timeout_ms / 10_000),
            consumer_auto_offset_reset="earliest",
        )
        for name in ("searches", "clicks", "erasures"):
            self.topics.add(self.topic(topics.name(name), key_type=bytes, value_type=bytes))
        self.users = self.Table(
            "users",
            partitions=topics.partitions,
            key_type=bytes,
            value_type=bytes,
            options={"driver": "rocksdict"},
        )
        self.users.data.rocksdb_options = ErasingOptions(block_cache_size=engine.block_cache_mb * 2**20, use_rocksdict=True)
        self.states: StateStore[UserState] = StateStore(self.users.data, pipeline.decode_state, capacity=engine.states_in_memory)
        self.checkpoint = Checkpoint(
            settings.broker.librdkafka(),
            guarantee=engine.guarantee,
            transactional_id=f"{settings.broker.group}-{worker_id}",
            changelog=self.users.changelog_topic.get_topic_name(),
            persist=self.states.write,
            commit_offsets=self._commit_offsets,
        )
        self.membership = Membership(settings.broker.group, NO_GENERATION, "")
        self.recovered = Recovered(NO_GENERATION, {})
        self.poison = Poison()
        self.watchdog = Watchdog(engine.stuck_after_s)
        self.on_partitions_revoked.connect(self._pause)
        self.agent(Batches(self), name="recommend")(self._recommend)
        self.serving = False
        metrics.MODEL.info({"version": pipeline.model, "provider": pipeline.encoder.provider})
        if settings.web.enabled:
            self.service(WebServer(settings.web, self._ready, self._profile))

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    async def on_start(self) -> None:
        """Start, with an eye on whether anything comes of it."""
        self.watchdog.expect(JOINING)
        self.watchdog.start()
        await super().on_start()

    async def crash(self, reason: BaseException) -> None:
        """Stop the worker, and say why in one line that an operator can act on."""
        if not self._crashed.is_set():
            log.critical("The worker stops: %s: %s", type(reason).__name__, reason)
            self.watchdog.end_within(LAST_SECONDS)
        await super().crash(reason)

    async def _pause(self, *_: Any, **__: Any) -> None:
        """The group is being reorganised: nothing is answered until it has given out partitions again."""
        self.serving = False
        self.watchdog.expect(JOINING)

    def begin(self, generation: int, offsets: Mapping[Partition, int]) -> None:
        """Answer the partitions that this worker now owns, from these offsets on: states are recovered, and the consumer stands there.

        Args:
            generation: of the group, in which the partitions were given to this worker and their states recovered.
            offsets: committed ones.
        """
        self.states.forget()
        self.membership = Membership(str(self.conf.id), generation, str(self._coordinator.member_id))
        self.intake.assign(offsets)
        self.serving = True
        self.watchdog.done(JOINING)

    async def _recommend(self, batches: faust.Stream[Batch]) -> None:
        async for batch in batches:
            try:
                with self.watchdog.expecting(ANSWERING):
                    await asyncio.shield(self._settle(batch))
            except Exception as error:
                await self.crash(error)
                return
            finally:
                self.intake.finish()

    async def _settle(self, batch: Batch) -> None:
        """Answer a batch, or drop it where its partitions are another worker's by now: that one answers it."""
        try:
            await self._answer(batch)
        except MovedOnError as error:
            log.warning("%s. The batch is dropped; its new owner answers it", error)
            self.intake.close()  # until the group has given out partitions again
            await self._pause()
            await asyncio.to_thread(self._forget)

    async def _answer(self, batch: Batch) -> None:
        """Answer a batch and make the answers safe. Where a step crashes, its event is found and set aside: `engine/poison.py`."""
        try:
            with metrics.PROCESSING.time():
                work = await asyncio.to_thread(self._work, batch)
        except UNRELATED:
            raise
        except Exception as error:
            await asyncio.to_thread(self._forget)
            self.watchdog.progress()
            for part in self.poison.parts(batch, error):
                await self._answer(part)
            return
        with metrics.CHECKPOINT.time():
            await self.checkpoint.commit(work, self.membership)
        self.knowledge.published()
        self.poison.passed(batch)
        metrics.EVENTS.inc(len(batch.entries))
        metrics.BATCH_SIZE.observe(len(batch.entries))
        metrics.CATALOGUE.set(len(self.knowledge.catalogue))
        for topic, count in Counter(output.topic for output in work.outputs).items():
            metrics.OUTPUTS.labels(topic).inc(count)

    def _work(self, batch: Batch) -> Work:
        self.knowledge.refresh()
        self.knowledge.save()
        work = self.pipeline.process(batch, self.states)
        work.outputs += self.knowledge.outputs()
        return work

    def _forget(self) -> None:
        """Take back what a batch that is not kept has changed in memory: go back to what is on disk and in the topics."""
        self.states.forget()
        self.knowledge.reload()
        self.pipeline.recommender = self.knowledge.recommender

    def _ready(self) -> Answer:
        serving = self.serving and not self.rebalancing
        body = {"ready": serving, "model": self.pipeline.model, "provider": self.pipeline.encoder.provider}
        return (200 if serving else 503), body

    def _profile(self, user_id: str) -> Answer:
        topic = self.settings.topics.name("clicks")
        partition = self.consumer.key_partition(topic, user_id.encode())
        if partition is None or TP(topic, partition) not in self.consumer.assignment():
            return 404, {"error": f"partition {partition} of {user_id} belongs to another worker; ask that one with --url"}
        state = self.states.peek(partition, user_id)
        if state is None:
            return 404, {"error": f"{user_id} has neither searched nor clicked yet"}
        return 200, describe(user_id, state, self.knowledge.catalogue, self.settings)

    @property
    def _coordinator(self) -> Any:
        return self.consumer._thread._ensure_consumer()._coordinator

    async def _commit_offsets(self, offsets: Mapping[Partition, int], member: Membership) -> bool:
        """Commit consumed offsets through the group; False if the group has moved on."""
        return bool(await self.consumer._thread.commit_as(offsets, member))
