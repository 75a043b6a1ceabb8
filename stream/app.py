"""The worker: a Faust app whose one agent turns batches of events into recommendations.

Faust keeps the group, the assignment, the table and its recovery. The intake orders the events, the pipeline answers them, the
checkpoint makes the answers safe, while the pipeline is at the next batch already.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.types import TP

from stream import metrics
from stream.encoder.ahead import Ahead
from stream.engine.assignor import Assignor
from stream.engine.checkpoint import Checkpoint, Membership, MovedOnError, Work
from stream.engine.credentials import credentials
from stream.engine.intake import Batch, Intake, Partition
from stream.engine.pace import Pace
from stream.engine.poison import Poison
from stream.engine.recovery import TableManager
from stream.engine.store import StateStore, StoreError, TableOptions
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
SAVING = "making a batch's results safe"

# Of Python's collector of cycles: what a worker makes has next to none, and looking through all users' states takes long.
COLLECT_AFTER = 20_000, 20, 50

NEVER = 1e9  # seconds in which aiokafka, which is not what reads here, may read nothing before it leaves the group

LAST_SECONDS = 10.0  # to leave the group in order, once nothing is in flight any more

# Faults that no event causes: setting events aside would not help.
UNRELATED = (StoreError, KafkaException, TimeoutError, MemoryError)


class Batches(faust.Channel[Batch]):
    """The channel that the agent reads: one item is a batch of events in event-time order."""

    async def __anext__(self) -> Any:
        app = self.app
        assert isinstance(app, App)
        return await app.intake.take(app.pace.limit)


class App(faust.App):
    """A Faust app that reads in batches and checkpoints by itself."""

    def __init__(self, settings: Settings, pipeline: Pipeline, knowledge: Knowledge, worker_id: str) -> None:
        topics, engine = settings.topics, settings.engine
        self.settings = settings
        self.pipeline = pipeline
        self.knowledge = knowledge
        self.ahead = Ahead(pipeline.encoder)
        self.intake = Intake(
            {
                topics.name("searches"): pipeline.decode_search,
                topics.name("clicks"): pipeline.decode_click,
                topics.name("erasures"): pipeline.decode_erasure,  # last: of the same millisecond, events are erased too
            },
            wait=engine.order_wait_ms / 1000,
            backlog_wait=engine.backlog_wait_ms / 1000,
            capacity=engine.buffer,
            arrived=lambda entries: self.ahead.want(pipeline.texts(entries)),
        )
        self.pace = Pace(engine.batch_ms / 1000, engine.batch_size)
        super().__init__(
            settings.broker.group,
            broker=[f"kafka://{server}" for server in settings.broker.servers.split(",")],
            broker_credentials=credentials(settings.broker),
            store="rocksdb://",
            TableManager=TableManager,
            PartitionAssignor=Assignor,
            datadir=str(settings.engine.state_folder),
            topic_partitions=topics.partitions,
            topic_allow_declare=False,  # topics are made before the worker starts: stream/topics.py
            topic_disable_leader=True,
            table_standby_replicas=0,  # recovery reads the changelog at full speed instead
            key_serializer="raw",
            value_serializer="raw",
            web_enabled=False,  # Faust's own pages show tables to anybody: stream/web.py serves what we mean to
            stream_wait_empty=True,
            broker_max_poll_interval=NEVER,
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
        self.users.data.rocksdb_options = TableOptions(engine.rocksdb_mb * 2**20)
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
        self._saving: asyncio.Task[bool] | None = None  # the batch before; tells whether its results were kept
        self._memory = asyncio.Lock()  # states and knowledge are one thread's at a time
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
        gc.collect()
        gc.freeze()  # catalogue, memory and model stay
        gc.set_threshold(*COLLECT_AFTER)
        self.watchdog.expect(JOINING)
        self.watchdog.start()
        await super().on_start()

    async def on_stop(self) -> None:
        """Let what is in flight become safe, then leave the group, but not at any price.

        aiokafka waits for a join to end. That can take as long as the session of a member that is dead, and has taken for ever.
        """
        await self.intake.drain()
        self.watchdog.end_within(LAST_SECONDS, status=0)
        await super().on_stop()

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
        self._saving = None
        self.membership = Membership(str(self.conf.id), generation, str(self._coordinator.member_id))
        self.intake.assign(offsets)
        self.serving = True
        self.watchdog.done(JOINING)

    async def _recommend(self, batches: faust.Stream[Batch]) -> None:
        async for batch in batches:
            try:
                await asyncio.shield(self._answer(batch))
            except Exception as error:
                await self.crash(error)
                return

    async def _answer(self, batch: Batch) -> None:
        """Answer a batch while the one before it is made safe; then this one is, in its turn."""
        saving = None
        try:
            if self.knowledge.overdue():
                await self._settle_knowledge()
            answered = await self._try(batch)
            if not await self._kept():  # this one rests on it
                await self._forget()
            elif isinstance(answered, Exception):
                await self._set_aside(batch, answered)
            else:
                self.states.advance()
                saving = self._saving = asyncio.create_task(self._save(batch, answered))
        finally:
            if saving is None:
                self.intake.finish()
            else:
                saving.add_done_callback(lambda _: self.intake.finish())

    async def _try(self, batch: Batch) -> Work | Exception:
        """Return what a batch leads to, or what it crashed with where that may be some event's fault."""
        try:
            with self.watchdog.expecting(ANSWERING), metrics.PROCESSING.time():
                async with self._memory:
                    begun = monotonic()
                    work = await asyncio.to_thread(self._work, batch)
                    self.pace.took(len(batch.entries), monotonic() - begun)
                    return work
        except UNRELATED:
            raise
        except Exception as error:
            return error

    async def _kept(self) -> bool:
        """Wait until the batch before is safe; return False if its results were not kept."""
        return self._saving is None or await self._saving

    async def _save(self, batch: Batch, work: Work) -> bool:
        """Make a batch's results safe; return False if they are not kept: its partitions are another worker's, or this one stops."""
        try:
            with self.watchdog.expecting(SAVING), metrics.CHECKPOINT.time():
                await self.checkpoint.commit(work, self.membership)
        except MovedOnError as error:
            log.warning("%s. What was not safe is dropped; its new owner answers it", error)
            self.intake.close()  # until the group has given out partitions again
            await self._pause()
            await self._forget()
            return False
        except Exception as error:
            await self.crash(error)
            return False
        self.knowledge.published()
        self.poison.passed(batch)
        metrics.EVENTS.inc(len(batch.entries))
        metrics.BATCH_SIZE.observe(len(batch.entries))
        metrics.CATALOGUE.set(len(self.knowledge.catalogue))
        for topic, count in Counter(output.topic for output in work.outputs).items():
            metrics.OUTPUTS.labels(topic).inc(count)
        return True

    async def _set_aside(self, batch: Batch, error: Exception) -> None:
        """Answer a batch in which a step crashed, part by part, so that the event is found and set aside: `engine/poison.py`."""
        await self._forget()
        self.watchdog.progress()
        for part in self.poison.parts(batch, error):
            answered = await self._try(part)
            if isinstance(answered, Exception):
                await self._set_aside(part, answered)
            else:
                self.states.advance()
                self._saving = asyncio.create_task(self._save(part, answered))
            if not await self._kept():
                return

    async def _settle_knowledge(self) -> None:
        """Make a moment in which nothing is on its way, so that what was learned can be written to disk."""
        if await self._kept():
            async with self._memory:
                await asyncio.to_thread(self.knowledge.settle)

    def _work(self, batch: Batch) -> Work:
        self.knowledge.refresh()
        self.knowledge.save()
        work = self.pipeline.process(batch, self.states)
        work.outputs += self.knowledge.outputs()
        return work

    async def _forget(self) -> None:
        """Take back what batches that are not kept have changed in memory: go back to what is on disk and in the topics."""
        async with self._memory:
            await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
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
