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
from faust.types import TP

from stream import metrics
from stream.engine.checkpoint import Checkpoint, Work
from stream.engine.credentials import credentials
from stream.engine.intake import Batch, Intake, Partition
from stream.engine.recovery import TableManager
from stream.engine.store import StateStore
from stream.engine.transport import BatchTransport
from stream.interests import describe
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings
from stream.state import UserState
from stream.web import Answer, WebServer

log = logging.getLogger("driftstream")


class Batches(faust.Channel[Batch]):
    """The channel that the agent reads: one item is a batch of events in event-time order."""

    async def __anext__(self) -> Any:
        app = self.app
        assert isinstance(app, App)
        return await app.intake.take(app.settings.engine.batch_size)


class App(faust.App):
    """A Faust app that reads in batches and checkpoints by itself."""

    def __init__(self, settings: Settings, pipeline: Pipeline, knowledge: Knowledge) -> None:
        topics, engine = settings.topics, settings.engine
        self.settings = settings
        self.pipeline = pipeline
        self.knowledge = knowledge
        self.intake = Intake(
            {topics.name("searches"): pipeline.decode_search, topics.name("clicks"): pipeline.decode_click},
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
        for name in ("searches", "clicks"):
            self.topics.add(self.topic(topics.name(name), key_type=bytes, value_type=bytes))
        self.users = self.Table(
            "users",
            partitions=topics.partitions,
            key_type=bytes,
            value_type=bytes,
            options={"driver": "rocksdict", "block_cache_size": engine.block_cache_mb * 2**20},
        )
        self.states: StateStore[UserState] = StateStore(self.users.data, pipeline.decode_state, capacity=engine.states_in_memory)
        self.checkpoint = Checkpoint(
            settings.broker.librdkafka(),
            guarantee=engine.guarantee,
            transactional_id=f"{settings.broker.group}-{engine.worker_id}",
            changelog=self.users.changelog_topic.get_topic_name(),
            persist=self.states.write,
        )
        self.on_rebalance_complete.connect(self._begin)
        self.agent(Batches(self), name="recommend")(self._recommend)
        self.serving = False
        metrics.MODEL.info({"version": pipeline.model, "provider": pipeline.encoder.provider})
        if settings.web.enabled:
            self.service(WebServer(settings.web, self._ready, self._profile))

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    async def _begin(self, *_: Any, **__: Any) -> None:
        """The state is recovered: start with the partitions that this worker now owns."""
        self.states.forget()
        self.serving = True
        self.intake.assign(Partition(tp.topic, tp.partition) for tp in self.consumer.assignment())

    async def _recommend(self, batches: faust.Stream[Batch]) -> None:
        async for batch in batches:
            try:
                await asyncio.shield(self._answer(batch))
            except Exception as error:
                await self.crash(error)
                raise
            finally:
                self.intake.finish()

    async def _answer(self, batch: Batch) -> None:
        with metrics.PROCESSING.time():
            work = await asyncio.to_thread(self._work, batch)
        with metrics.CHECKPOINT.time():
            await self.checkpoint.commit(work, self)
        metrics.EVENTS.inc(len(batch.entries))
        metrics.BATCH_SIZE.observe(len(batch.entries))
        metrics.CATALOGUE.set(len(self.knowledge.catalogue))
        for topic, count in Counter(output.topic for output in work.outputs).items():
            metrics.OUTPUTS.labels(topic).inc(count)

    def _work(self, batch: Batch) -> Work:
        rejected_items = self.knowledge.refresh()
        self.knowledge.save()
        work = self.pipeline.process(batch, self.states)
        work.outputs += rejected_items
        learned = self.knowledge.contribution()
        if learned is not None:
            work.outputs.append(learned)
        return work

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
    def group(self) -> str:
        """The consumer group."""
        return str(self.conf.id)

    @property
    def generation(self) -> int:
        """The group's generation that this worker last joined."""
        return int(self._coordinator.generation)

    @property
    def member_id(self) -> str:
        """The worker's id within the group."""
        return str(self._coordinator.member_id)

    @property
    def _coordinator(self) -> Any:
        return self.consumer._thread._ensure_consumer()._coordinator

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit consumed offsets through the group; False if the group has moved on."""
        return bool(await self.consumer._thread.commit({TP(*p): offset for p, offset in offsets.items()}))
