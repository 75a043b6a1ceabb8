"""Committed offsets: under at_least_once, whose the group takes; under exactly_once, that they are waited for, but not for ever."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from faust.types import TP

from stream.connection import Broker
from stream.engine import transport
from stream.engine.checkpoint import Membership, group_metadata
from stream.engine.intake import Partition
from stream.engine.reader import Fetched
from stream.engine.transport import BatchConsumer, GroupMember, stable_offsets

SECONDS = 60


def test_offsets_read_in_an_earlier_generation_are_refused_though_the_consumer_is_in_the_group_again(kafka: str) -> None:
    topic, group = f"in-{uuid.uuid4().hex[:8]}", f"g-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)

    async def scenario() -> None:
        first, second = (AIOKafkaConsumer(topic, bootstrap_servers=kafka, group_id=group, enable_auto_commit=False) for _ in "ab")
        reader = cast(GroupMember, SimpleNamespace(_ensure_consumer=lambda: first))
        await first.start()
        try:
            async with asyncio.timeout(SECONDS):
                while len(first.assignment()) < 2:
                    await first.getmany(timeout_ms=100)
                before = membership(first, group)
                offsets = {Partition(topic, p): 0 for p in (0, 1)}
                assert await GroupMember._commit_as(reader, offsets, before)
                await second.start()
                while len(first.assignment()) != 1:
                    await first.getmany(timeout_ms=100)
            assert membership(first, group) != before
            ours, theirs = first.assignment(), second.assignment()
            assert not await GroupMember._commit_as(reader, {Partition(*tp): 5 for tp in (*ours, *theirs)}, before)
            assert [await first.committed(tp) for tp in (*ours, *theirs)] == [0, 0]
            assert await GroupMember._commit_as(reader, {Partition(*tp): 5 for tp in ours}, membership(first, group))
            assert [await first.committed(tp) for tp in ours] == [5]
        finally:
            await first.stop()
            await second.stop()

    asyncio.run(scenario())


def test_offsets_that_a_transaction_may_still_move_are_waited_for_while_they_are_needed(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = f"in-{uuid.uuid4().hex[:8]}", f"g-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    broker, partition = Broker(servers=kafka, group=group), TP(topic, 0)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": group, "transaction.timeout.ms": 60_000})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], group_metadata(group, -1, ""), 30)
    monkeypatch.setattr(transport, "ASKED_SECONDS", 1.0)

    assert stable_offsets(broker, [partition], iter([True, True, False]).__next__) == {}
    monkeypatch.setattr(transport, "COMMITTED_SECONDS", 2.0)
    with pytest.raises(TimeoutError, match=rf"{group} has committed of {topic}\[0\].*kafka-transactions\.sh"):
        stable_offsets(broker, [partition])
    producer.commit_transaction(30)
    assert stable_offsets(broker, [partition]) == {partition: 7}


def test_a_group_member_that_fetches_nothing_keeps_its_place_and_moves_its_positions(kafka: str) -> None:
    topic = f"in-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": kafka})
    for partition in (0, 1):
        producer.produce(topic, b"value", partition=partition)
    producer.flush(30)
    times = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 500, "max_poll_interval_ms": 10**12}

    async def scenario() -> None:
        group = uuid.uuid4().hex
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, auto_offset_reset="earliest", **times)
        member = object.__new__(GroupMember)  # all of it but Faust
        vars(member).update(_create_consumer=lambda loop: consumer, thread_loop=asyncio.get_running_loop())
        await GroupMember.on_start(member)
        assert consumer._fetcher._fetch_task.done()
        try:
            async with asyncio.timeout(SECONDS):
                consumer.subscribe([topic])
                while len(consumer.assignment()) < 2:
                    await asyncio.sleep(0.1)
                before = membership(consumer, group)
                for tp in consumer.assignment():
                    consumer.seek(tp, 1)
                    assert await consumer.position(tp) == 1
                await asyncio.sleep(7)  # longer than a session without heartbeats
            assert membership(consumer, group) == before
            assert not consumer._fetcher._records
        finally:
            await consumer.stop()

    asyncio.run(scenario())


def test_what_a_read_has_brought_is_not_lost_when_faust_cancels_who_waits_for_it() -> None:
    async def scenario() -> list[int]:
        taken: list[int] = []
        reading, may_end = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def read(full: set[Partition]) -> dict[Partition, Fetched]:
            loop.call_soon_threadsafe(reading.set)
            asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(SECONDS)
            return {Partition("clicks", 0): Fetched([], 7)}

        intake = SimpleNamespace(full=set, starved=lambda: False, put=lambda partition, records, lag: taken.append(lag))
        consumer = cast(
            BatchConsumer,
            SimpleNamespace(
                app=SimpleNamespace(intake=intake, should_stop=False),
                flow_active=True,
                _stopped=asyncio.Event(),
                _positions=asyncio.Lock(),
                _next=read,
            ),
        )
        consumer._read = partial(BatchConsumer._read, consumer)  # type: ignore[method-assign]
        draining = asyncio.create_task(BatchConsumer._drain_messages(consumer, SimpleNamespace(_stopped=asyncio.Event())))
        await reading.wait()
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        assert consumer._positions.locked()  # so that nothing is moved before it has ended
        may_end.set()
        async with consumer._positions:
            return taken

    assert asyncio.run(scenario()) == [7]


def membership(consumer: AIOKafkaConsumer, group: str) -> Membership:
    coordinator = consumer._coordinator
    return Membership(group, coordinator.generation, coordinator.member_id)
