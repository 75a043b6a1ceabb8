"""In which order the worker computes batches and makes them safe, and what becomes of the next one where one is not kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from stream.app import App, Batches
from stream.decode import Event, Reject
from stream.engine.checkpoint import Membership, MovedOnError, Output, Work
from stream.engine.embedded_broker import EmbeddedBroker
from stream.engine.intake import Batch, Intake, Partition
from stream.engine.pace import Pace
from stream.engine.reader import KafkaRecord
from stream.events import Search
from stream.settings import Broker, Engine, Settings, Web

CLICKS = Partition("clicks", 0)


def record(offset: int) -> KafkaRecord:
    return KafkaRecord(*CLICKS, offset, 0, b"u", b"")


def decode(record: Any) -> Event:
    return Event(0, Search(event_id="e", user_id="u", query="q", timestamp=0), record)


class World:
    """The worker's own app and intake, not started: pipeline, knowledge and checkpoint note what is asked of them, in `happened`.

    A commit waits for `let`; events whose offsets are in `poison` crash a step.
    """

    def __init__(self, broker: str, folder: Path) -> None:
        self.happened: list[str] = []
        self.poison: set[int] = set()
        self.seconds_an_event = 0.0
        self._outcomes: asyncio.Queue[Exception | None] = asyncio.Queue()
        note = self.happened.append
        decoders = dict.fromkeys(("decode_search", "decode_click", "decode_erasure"), decode)
        pipeline: Any = SimpleNamespace(
            **decoders,
            decode_state=bytes,
            model="none",
            encoder=SimpleNamespace(provider="none"),
            texts=lambda entries: [],
            process=self._compute,
        )
        knowledge: Any = SimpleNamespace(
            catalogue=(),
            recommender=None,
            overdue=lambda: False,
            refresh=lambda: None,
            save=lambda: None,
            outputs=list,
            published=lambda: None,
            reload=lambda: note("forget"),
        )
        settings = Settings(
            broker=Broker(servers=broker),
            engine=Engine(state_folder=folder, guarantee="at_least_once"),
            web=Web(enabled=False),
        )
        self.app = App(settings, pipeline, knowledge, "w")
        self.app.checkpoint = SimpleNamespace(commit=self._commit)  # type: ignore[assignment]
        self.intake: Intake = self.app.intake
        self.intake.assign({CLICKS: 0})

    def _compute(self, batch: Batch, states: Any) -> Work:
        offsets = [entry.record.offset for entry in batch.entries]
        self.happened.append(f"compute {offsets}")
        sleep(self.seconds_an_event * len(offsets))
        if any(entry.record.offset in self.poison and not isinstance(entry, Reject) for entry in batch.entries):
            raise ValueError("a step crashed")
        return Work(batch.offsets, [Output("out", str(offsets).encode(), None)])

    async def _commit(self, work: Work, member: Membership) -> None:
        outcome = await self._outcomes.get()
        [output] = work.outputs
        self.happened.append(f"{'refuse' if outcome else 'keep'} {(output.key or b'').decode()}")
        if outcome is not None:
            raise outcome

    def let(self, outcome: Exception | None = None) -> None:
        """Let the next commit come to this end."""
        self._outcomes.put_nowait(outcome)

    async def answer(self, first: int, count: int = 1) -> None:
        """Let events come, and the agent answer them as one batch."""
        self.intake.put(CLICKS, [record(offset) for offset in range(first, first + count)], 0)
        await self.app._answer(await self.intake.take(count))

    async def has_happened(self, *expected: str) -> None:
        """This, and nothing more within a moment."""
        while len(self.happened) < len(expected):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert self.happened == list(expected)
        self.happened.clear()


@pytest.fixture
def tell(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def tell(story: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            with EmbeddedBroker({}) as broker:
                await asyncio.wait_for(story(World(broker.address, tmp_path)), 20)

        asyncio.run(whole())

    return tell


def test_the_agent_is_given_batches_as_large_as_their_time_allows(tell: Any) -> None:
    async def story(world: World) -> None:
        world.app.pace = Pace(target=0.1, most=16)
        world.seconds_an_event = 0.05
        world.intake.put(CLICKS, [record(offset) for offset in range(21)], 0)
        for taken in (16, 4, 1):
            batch = await anext(Batches(world.app))
            assert len(batch.entries) == taken
            await world.app._answer(batch)
            world.let()

    tell(story)


def test_a_batch_is_computed_while_the_one_before_is_made_safe_and_made_safe_after_it(tell: Any) -> None:
    async def story(world: World) -> None:
        await world.answer(0)
        second = asyncio.create_task(world.answer(1))
        await world.has_happened("compute [0]", "compute [1]")
        draining = asyncio.create_task(world.intake.drain())
        world.let()
        await world.has_happened("keep [0]")
        assert second.done()
        assert not draining.done()
        world.let()
        await draining
        await world.has_happened("keep [1]")

    tell(story)


def test_what_rests_on_a_batch_that_is_not_kept_is_dropped_with_it(tell: Any) -> None:
    async def story(world: World) -> None:
        await world.answer(0)
        second = asyncio.create_task(world.answer(1))
        await world.has_happened("compute [0]", "compute [1]")
        world.let(MovedOnError("the group moved on"))
        await second
        await world.intake.drain()
        await world.has_happened("refuse [0]", "forget", "forget")
        world.app._saving = None  # as `begin` does, with the partitions of the next generation
        world.intake.assign({CLICKS: 0})
        world.let()
        await world.answer(0)
        await world.has_happened("compute [0]", "keep [0]")

    tell(story)


def test_the_batch_before_a_crash_is_made_safe_before_anything_is_forgotten(tell: Any) -> None:
    async def story(world: World) -> None:
        world.poison.add(2)
        await world.answer(0)
        second = asyncio.create_task(world.answer(1, 2))
        await world.has_happened("compute [0]", "compute [1, 2]")
        for _ in range(3):
            world.let()
        await second
        await world.intake.drain()
        tried = ["compute [2]", "forget"] * 2
        await world.has_happened("keep [0]", "forget", "compute [1]", "keep [1]", *tried, "compute [2]", "keep [2]")

    tell(story)


def test_the_knowledge_settles_only_when_nothing_is_on_its_way(tell: Any) -> None:
    async def story(world: World) -> None:
        knowledge: Any = world.app.knowledge
        knowledge.settle = lambda: world.happened.append("settle")
        await world.answer(0)
        knowledge.overdue = lambda: True
        second = asyncio.create_task(world.answer(1))
        await world.has_happened("compute [0]")
        world.let()
        await world.has_happened("keep [0]", "settle", "compute [1]")
        world.let()
        await second
        await world.has_happened("keep [1]")

    tell(story)
