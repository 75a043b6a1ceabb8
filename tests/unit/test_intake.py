"""What `Intake` promises: event-time order across partitions, bounded waiting, nothing twice, nothing lost."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.decode import Event, Reject
from stream.engine.intake import Intake, Partition
from stream.events import Click, Search


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None = b"u"
    value: bytes | None = b""


def decode_search(record: Record) -> Event:
    return Event(record.timestamp, Search(event_id="e", user_id="u", query="q", timestamp=record.timestamp), record)


def decode_click(record: Record) -> Event | Reject:
    if record.value is None:
        return Reject("value: null", record)
    return Event(record.timestamp, Click(event_id="e", user_id="u", item_id="i", timestamp=record.timestamp), record)


def new_intake(
    offsets: Mapping[Partition, int], *, wait: float = 0.0, backlog_wait: float = 5.0, capacity: int = 100, lag: int | None = 0
) -> Intake:
    """An intake of these partitions, each of which is known to have so much more."""
    intake = Intake({"searches": decode_search, "clicks": decode_click}, wait=wait, backlog_wait=backlog_wait, capacity=capacity)
    intake.assign(offsets)
    for partition in offsets:
        intake.put(partition, [], lag)
    return intake


SEARCHES, CLICKS = Partition("searches", 0), Partition("clicks", 0)


def records(partition: Partition, times: list[int], start: int = 0) -> list[Record]:
    return [Record(partition.topic, partition.partition, start + n, time) for n, time in enumerate(times)]


async def take_all(intake: Intake, count: int, limit: int = 1000) -> list[Event | Reject]:
    taken: list[Event | Reject] = []
    while len(taken) < count:
        batch = await asyncio.wait_for(intake.take(limit), 5)
        taken += batch.entries
        intake.finish()
    return taken


@given(st.lists(st.lists(st.integers(0, 50)).map(sorted), min_size=1, max_size=6), st.integers(min_value=1, max_value=7))
def test_partitions_that_are_each_in_order_come_out_in_order_and_whole(times: list[list[int]], limit: int) -> None:
    async def run() -> None:
        partitions = [Partition("searches" if n % 2 else "clicks", n) for n in range(len(times))]
        intake = new_intake(dict.fromkeys(partitions, 0))
        for partition, stamps in zip(partitions, times, strict=True):
            intake.put(partition, records(partition, stamps), 0)
        taken = await take_all(intake, sum(map(len, times)), limit)
        seen = [entry.record.timestamp for entry in taken]
        assert seen == sorted(seen)
        assert len({(e.record.topic, e.record.partition, e.record.offset) for e in taken}) == sum(map(len, times))

    asyncio.run(run())


def earliest_heads(partitions: Mapping[Partition, list[Record]]) -> list[Record]:
    """What is promised, event by event: the earliest head, a broken record being as early as the one before it."""
    left, merged = {partition: list(some) for partition, some in partitions.items()}, []
    times = dict.fromkeys(partitions, 0)
    while any(left.values()):
        for partition, some in left.items():
            if some and some[0].value is not None:
                times[partition] = some[0].timestamp
        first = min((p for p, some in left.items() if some), key=lambda p: (times[p], p.topic != "searches", p.partition))
        merged.append(left[first].pop(0))
    return merged


disordered = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12)


@given(st.lists(disordered, min_size=1, max_size=5), st.integers(min_value=1, max_value=9), st.integers(min_value=1, max_value=5))
def test_the_earliest_head_is_next_also_where_partitions_are_not_in_order(
    given: list[list[tuple[int, bool]]], limit: int, fetched: int
) -> None:
    async def run() -> None:
        history = {
            partition: [
                Record(*partition, offset, time, value=None if broken and partition.topic == "clicks" else b"")
                for offset, (time, broken) in enumerate(some)
            ]
            for number, some in enumerate(given)
            for partition in [Partition("clicks" if number % 2 else "searches", number // 2)]
        }
        intake = new_intake(dict.fromkeys(reversed(history), 0))
        for begin in range(0, 12, fetched):
            for partition, some in history.items():
                intake.put(partition, some[begin : begin + fetched], 0)
        taken = await take_all(intake, sum(map(len, given)), limit)
        assert [entry.record for entry in taken] == earliest_heads(history)

    asyncio.run(run())


def test_who_has_waited_for_one_of_its_partition_that_is_gone_waits_no_longer() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0))
        intake.put(CLICKS, records(CLICKS, [10, 7]), 0)
        assert [entry.record.timestamp for entry in await take_all(intake, 1, limit=1)] == [10]
        intake.put(SEARCHES, records(SEARCHES, [8]), 0)
        assert [entry.record.timestamp for entry in await take_all(intake, 2)] == [7, 8]

    asyncio.run(run())


async def _put_later(intake: Intake, partition: Partition, times: list[int], delay: float) -> None:
    await asyncio.sleep(delay)
    intake.put(partition, records(partition, times), 0)


def test_an_earlier_event_that_arrives_a_little_later_comes_first() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), wait=2.0)
        intake.put(CLICKS, records(CLICKS, [20]), 0)
        late = asyncio.create_task(_put_later(intake, SEARCHES, [10], 0.05))
        taken = await take_all(intake, 2)
        await late
        assert [entry.record.topic for entry in taken] == ["searches", "clicks"]

    asyncio.run(run())


def test_a_partition_with_known_lag_is_waited_for_longer_than_one_read_to_its_end() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), backlog_wait=0.5, lag=7)
        intake.put(CLICKS, records(CLICKS, [20]), 0)
        late = asyncio.create_task(_put_later(intake, SEARCHES, [10], 0.2))
        taken = await take_all(intake, 2)
        await late
        assert [entry.record.topic for entry in taken] == ["searches", "clicks"]

    asyncio.run(run())


def test_waiting_ends_and_a_silent_partition_then_costs_nothing_until_it_speaks_again() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), wait=0.2)
        loop = asyncio.get_running_loop()
        intake.put(CLICKS, records(CLICKS, [20]), 0)
        begun = loop.time()
        await take_all(intake, 1)
        first = loop.time() - begun
        intake.put(CLICKS, records(CLICKS, [30], start=1), 0)
        begun = loop.time()
        await take_all(intake, 1)
        assert first >= 0.15
        assert loop.time() - begun < 0.1

    asyncio.run(run())


def test_who_has_waited_long_enough_does_not_wait_for_a_partition_that_becomes_empty_before_it() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), wait=0.2)
        intake.put(SEARCHES, records(SEARCHES, [10]), 0)
        intake.put(CLICKS, records(CLICKS, [20, 30]), 0)
        await asyncio.sleep(0.25)
        intake.put(CLICKS, records(CLICKS, [40], start=2), 0)
        batch = await asyncio.wait_for(intake.take(10), 5)
        assert [entry.record.timestamp for entry in batch.entries] == [10, 20, 30]
        begun = asyncio.get_running_loop().time()
        assert [entry.record.timestamp for entry in (await asyncio.wait_for(intake.take(10), 5)).entries] == [40]
        assert asyncio.get_running_loop().time() - begun >= 0.15

    asyncio.run(run())


def test_others_wait_for_a_partition_only_until_it_is_known_to_have_nothing_more() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), lag=None)
        intake.put(CLICKS, records(CLICKS, [20]), 0)
        taking = asyncio.create_task(intake.take(10))
        await asyncio.sleep(0.1)
        assert not taking.done()
        assert intake.starved()
        intake.put(SEARCHES, [], 0)
        assert not intake.starved()
        assert [entry.record.timestamp for entry in (await asyncio.wait_for(taking, 1)).entries] == [20]

    asyncio.run(run())


def test_a_partition_that_says_nothing_though_it_should_have_more_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), backlog_wait=0.2, lag=7)
        await asyncio.sleep(0.3)  # with nothing to answer nobody waits
        begun = asyncio.get_running_loop().time()
        intake.put(CLICKS, records(CLICKS, [20]), 0)
        assert intake.starved()
        assert len(await take_all(intake, 1)) == 1
        assert asyncio.get_running_loop().time() - begun >= 0.15
        intake.put(CLICKS, records(CLICKS, [30], start=1), 0)
        assert not intake.starved()
        assert caplog.messages == ["searches[0] says nothing, and others go on without it. What it still has will be late"]
        assert len(await asyncio.wait_for(take_all(intake, 1), 0.1)) == 1
        intake.put(SEARCHES, records(SEARCHES, [40]), 5)
        intake.put(CLICKS, records(CLICKS, [50], start=2), 0)
        assert len(await take_all(intake, 1)) == 1
        assert intake.starved()

    asyncio.run(run())


def test_what_is_fetched_again_after_a_seek_is_taken_once() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([CLICKS], 0))
        intake.put(CLICKS, records(CLICKS, [1, 2, 3]), 0)
        intake.put(CLICKS, records(CLICKS, [1, 2, 3, 4]), 0)
        assert [entry.record.offset for entry in await take_all(intake, 4)] == [0, 1, 2, 3]

    asyncio.run(run())


def test_what_a_fetch_brings_is_told_once_and_before_it_is_handed_out() -> None:
    told: list[list[int]] = []
    intake = Intake(
        {"clicks": decode_search},
        wait=0.0,
        backlog_wait=0.0,
        capacity=10,
        arrived=lambda entries: told.append([entry.record.offset for entry in entries]),
    )
    intake.assign({CLICKS: 1})
    intake.put(CLICKS, records(CLICKS, [5, 6, 7]), 0)
    intake.put(CLICKS, records(CLICKS, [6, 7, 8], start=1), 0)
    intake.put(SEARCHES, records(SEARCHES, [9]), 0)
    assert told == [[1, 2], [3]]


def test_a_reject_keeps_its_place_between_the_events_around_it() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0))
        broken = Record("clicks", 0, 1, 0, value=None)
        intake.put(CLICKS, [Record("clicks", 0, 0, 10), broken, Record("clicks", 0, 2, 30)], 0)
        intake.put(SEARCHES, records(SEARCHES, [5, 20]), 0)
        taken = await take_all(intake, 5)
        assert [e.record.timestamp for e in taken] == [5, 10, 0, 20, 30]

    asyncio.run(run())


def test_a_full_partition_is_named_until_it_has_room() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), capacity=4)
        intake.put(CLICKS, records(CLICKS, [1, 2]), 0)
        assert intake.full() == set()
        intake.put(SEARCHES, records(SEARCHES, [3]), 0)  # now each has half of the room
        assert intake.full() == {CLICKS}
        await take_all(intake, 1)
        assert intake.full() == set()

    asyncio.run(run())


def test_a_partition_that_holds_nothing_is_never_full_however_many_share_the_room() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([SEARCHES, CLICKS], 0), capacity=1)
        intake.put(CLICKS, records(CLICKS, [1, 2]), 0)
        assert intake.full() == {CLICKS}
        intake.put(SEARCHES, records(SEARCHES, [3]), 0)
        assert intake.full() == {CLICKS, SEARCHES}
        assert [e.record.timestamp for e in await take_all(intake, 3)] == [1, 2, 3]
        assert intake.full() == set()

    asyncio.run(run())


def test_draining_waits_for_the_batch_in_flight_and_hands_out_nothing_more() -> None:
    async def run() -> None:
        intake = new_intake(dict.fromkeys([CLICKS], 0))
        intake.put(CLICKS, records(CLICKS, [1, 2, 3]), 0)
        batch = await intake.take(1)
        assert batch.offsets == {CLICKS: 1}
        draining = asyncio.create_task(intake.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        intake.finish()
        await draining
        waiting = asyncio.create_task(intake.take(10))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        intake.assign(dict.fromkeys([CLICKS], 0))
        intake.put(CLICKS, records(CLICKS, [2, 3], start=1), 0)
        assert (await waiting).offsets == {CLICKS: 3}

    asyncio.run(run())
