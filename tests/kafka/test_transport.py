"""Under at_least_once, whose offsets the group takes."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import cast

from aiokafka import AIOKafkaConsumer
from confluent_kafka.admin import AdminClient, NewTopic

from stream.engine.checkpoint import Membership
from stream.engine.intake import Partition
from stream.engine.transport import CommittedReader

SECONDS = 60


def test_offsets_read_in_an_earlier_generation_are_refused_though_the_consumer_is_in_the_group_again(kafka: str) -> None:
    topic, group = f"in-{uuid.uuid4().hex[:8]}", f"g-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)

    async def scenario() -> None:
        first, second = (AIOKafkaConsumer(topic, bootstrap_servers=kafka, group_id=group, enable_auto_commit=False) for _ in "ab")
        reader = cast(CommittedReader, SimpleNamespace(_ensure_consumer=lambda: first))
        await first.start()
        try:
            async with asyncio.timeout(SECONDS):
                while len(first.assignment()) < 2:
                    await first.getmany(timeout_ms=100)
                before = membership(first, group)
                offsets = {Partition(topic, p): 0 for p in (0, 1)}
                assert await CommittedReader._commit_as(reader, offsets, before)
                await second.start()
                while len(first.assignment()) != 1:
                    await first.getmany(timeout_ms=100)
            assert membership(first, group) != before
            ours, theirs = first.assignment(), second.assignment()
            assert not await CommittedReader._commit_as(reader, {Partition(*tp): 5 for tp in (*ours, *theirs)}, before)
            assert [await first.committed(tp) for tp in (*ours, *theirs)] == [0, 0]
            assert await CommittedReader._commit_as(reader, {Partition(*tp): 5 for tp in ours}, membership(first, group))
            assert [await first.committed(tp) for tp in ours] == [5]
        finally:
            await first.stop()
            await second.stop()

    asyncio.run(scenario())


def membership(consumer: AIOKafkaConsumer, group: str) -> Membership:
    coordinator = consumer._coordinator
    return Membership(group, coordinator.generation, coordinator.member_id)
