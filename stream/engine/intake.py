"""One stream in event-time order out of the partitions that a worker owns.

Kafka orders records within a partition only. A search and the click that it led to sit in two topics, and in a backlog one may be
read long before the other. `Intake` holds what was fetched and always hands out the earliest head, as Kafka Streams' task idling
does: while a partition is empty but may still have something earlier to say, the others wait for it, for a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import NamedTuple

from stream.decode import Entry, Record, Reject

log = logging.getLogger("driftstream.intake")

Decode = Callable[[Record], Entry]

FULL_BYTES = 16 * 2**20  # that a partition may hold, however few records that is


class Partition(NamedTuple):
    """A topic's partition; compares equal to the tuples of the same fields that Faust and aiokafka use."""

    topic: str
    partition: int


class Batch(NamedTuple):
    """Events, erasures and rejects in event-time order. It may be cut anywhere: its parts, one after the other, lead to the same."""

    entries: Sequence[Entry]

    @property
    def offsets(self) -> dict[Partition, int]:
        """For each partition the offset to go on from after this batch."""
        records = [entry.record for entry in self.entries]
        following = {(record.topic, record.partition): record.offset + 1 for record in records}
        return {Partition(*place): offset for place, offset in following.items()}


@dataclass(slots=True)
class _Queue:
    decode: Decode
    entries: list[Entry] = field(default_factory=list)
    times: list[int] = field(default_factory=list)  # of each entry: when it is its turn
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)  # how many entries had come when
    came: int = 0  # entries so far
    empty_since: float = field(default_factory=monotonic)
    idle: bool = False  # it was waited for in vain
    lag: int | None = None  # records that the broker has beyond these; None while that is not known
    time: int = 0  # of the newest entry: what a reject, which has none, is ordered by
    next_offset: int = 0
    held_bytes: int = 0  # of the values of `entries`

    def add(self, entries: Sequence[Entry]) -> None:
        """Take in what has come."""
        self.entries += entries
        self.held_bytes += _size(entries)
        self.came += len(entries)
        self.arrivals.append((self.came, monotonic()))
        self._order(entries)

    def remove(self, count: int) -> Sequence[Entry]:
        """Hand out the first so many entries."""
        gone = self.entries[:count]
        del self.entries[:count]
        del self.times[:count]
        self.held_bytes -= _size(gone)
        while self.arrivals and self.arrivals[0][0] <= self.came - len(self.entries):
            self.arrivals.popleft()
        if not self.entries:
            self.empty_since = monotonic()
        elif not isinstance(head := self.entries[0], Reject) and head.time < self.times[0]:
            self.times.clear()  # it waited for one that is gone
            self._order(self.entries)
        return gone

    def _order(self, entries: Sequence[Entry]) -> None:
        """An entry has its turn at its event time, but not before those of its partition that came before it."""
        turn, time, times = self.times[-1] if self.times else 0, self.time, self.times
        for entry in entries:
            if not isinstance(entry, Reject):
                time = entry.time
            if time > turn:
                turn = time
            times.append(turn)
        self.time = time

    def end(self, count: int, until: float) -> float:
        """Up to which time all can be merged, if this gives its first so many entries: without end, where nobody waits for it then."""
        if count < len(self.times):
            return self.times[count]
        return inf if self.lag == 0 and until < inf else self.times[-1]

    def in_time(self, until: float) -> int:
        """How many entries had come by then."""
        if until == inf:
            return len(self.entries)
        came = max((count for count, when in self.arrivals if when <= until), default=0)
        return max(0, came - (self.came - len(self.entries)))


def _size(entries: Sequence[Entry]) -> int:
    return sum([len(entry.record.value or b"") for entry in entries])


class Intake:
    """Fetched records of the assigned partitions, merged by event time.

    Args:
        decoders: how to read each topic; their order breaks ties between events of the same millisecond.
        wait: seconds that an event waits, from its arrival, for earlier ones of a partition that is read to its end; one that has been
            empty for so long is not waited for.
        backlog_wait: seconds that the others wait for an empty partition of which the broker has more, or may have.
        capacity: entries to hold. A partition counts as full (back-pressure) once it holds its share of them, of those that hold any;
            16 MiB are enough too.
        arrived: is told of the entries that a fetch has brought.
    """

    def __init__(
        self,
        decoders: Mapping[str, Decode],
        *,
        wait: float,
        backlog_wait: float,
        capacity: int,
        arrived: Callable[[Sequence[Entry]], None] = lambda entries: None,
    ) -> None:
        self._decoders = decoders
        self._wait = wait
        self._backlog_wait = backlog_wait
        self._capacity = capacity
        self._tell = arrived
        self._queues: dict[Partition, _Queue] = {}
        self._held_since = -inf  # since when there is an event that others may have to be waited for
        self._arrived = asyncio.Event()
        self._in_flight = 0  # batches taken and not finished
        self._finished = asyncio.Event()
        self._finished.set()
        self._open = False

    @property
    def topics(self) -> list[str]:
        """The topics that are read."""
        return list(self._decoders)

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        """Start over with these partitions, each from its committed offset on."""
        ranks = {topic: rank for rank, topic in enumerate(self._decoders)}
        ours = sorted((p for p in offsets if p.topic in ranks), key=lambda p: (ranks[p.topic], p.partition))
        # In the order that decides where times are equal.
        self._queues = {p: _Queue(self._decoders[p.topic], next_offset=offsets[p]) for p in ours}
        self._open = True
        self._arrived.set()

    def close(self) -> None:
        """Hand out nothing more until `assign`, and forget what is held."""
        self._open = False
        self._queues = {}

    async def drain(self) -> None:
        """Close, and return when the batches in flight have finished."""
        self.close()
        await self._finished.wait()

    def put(self, partition: Partition, records: Sequence[Record], lag: int | None) -> None:
        """Add what a fetch returned for one partition, in offset order. Ignored where the partition is not assigned.

        Args:
            partition: the partition.
            records: any number of them.
            lag: how many more the broker has; None where that is not known.
        """
        queue = self._queues.get(partition)
        if queue is None:
            return
        queue.lag = lag
        # What was fetched before a seek lies below: take nothing twice.
        fresh = [record for record in records if record.offset >= queue.next_offset]
        if fresh:
            entries = list(map(queue.decode, fresh))
            self._tell(entries)
            if not self._held():
                self._held_since = monotonic()
            queue.add(entries)
            queue.next_offset = fresh[-1].offset + 1
            queue.idle = False
        self._arrived.set()

    def full(self) -> set[Partition]:
        """The partitions that should not be fetched for now."""
        share = self._capacity / max(1, sum(bool(q.entries) for q in self._queues.values()))
        return {p for p, q in self._queues.items() if q.entries and (len(q.entries) >= share or q.held_bytes >= FULL_BYTES)}

    def starved(self) -> bool:
        """Return whether what is held cannot be handed out before more of some partition has come."""
        return any(self._behind(p, q) > 0 for p, q in self._queues.items())

    async def take(self, limit: int) -> Batch:
        """Wait for events and return up to `limit` of them. Call `finish` for each batch when its results are safe."""
        while True:
            self._arrived.clear()
            batch = self._merge(limit)
            if batch.entries:
                self._in_flight += 1
                self._finished.clear()
                return batch
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout=self._patience())
            except TimeoutError:
                continue

    def finish(self) -> None:
        """Say that a batch is done with, whether or not its results were kept."""
        self._in_flight -= 1
        if not self._in_flight:
            self._finished.set()

    def _held(self) -> list[_Queue]:
        return [queue for queue in self._queues.values() if queue.entries]

    def _merge(self, limit: int) -> Batch:
        """Take the earliest heads, one after the other, until one has to wait: in strokes, as that costs least.

        A stroke ends where a partition has given its share, or what it may give yet, or all that it has, if others may have to wait for
        it then. Up to there what is next in each is known, and comes into order by sorting.
        """
        merged: list[Entry] = []
        until = self._until()
        while len(merged) < limit and (held := self._held()):
            share = max(1, (limit - len(merged)) // len(held))
            counts = [min(share, queue.in_time(until)) for queue in held]
            ends = [queue.end(count, until) for queue, count in zip(held, counts, strict=True)]
            end = min(ends)
            last = ends.index(end)
            for place, queue in enumerate(held):
                if place != last:
                    find = bisect_right if place < last else bisect_left
                    counts[place] = find(queue.times, end, 0, counts[place])
            times = [time for queue, count in zip(held, counts, strict=True) for time in queue.times[:count]]
            entries = [entry for queue, count in zip(held, counts, strict=True) for entry in queue.remove(count)]
            merged += [entries[place] for place in sorted(range(len(times)), key=times.__getitem__)]
            if not counts[last]:  # it came too late to be handed out yet
                break
            if not held[last].entries:
                until = self._until()
        return Batch(merged)

    def _until(self) -> float:
        """The arrival of the latest events that may be handed out: nothing earlier is expected any more."""
        if not self._open or self.starved():
            return -inf
        late = monotonic() - self._wait
        return late if self._emptied() > late else inf

    def _emptied(self) -> float:
        """When the last of the empty partitions had something."""
        return max((queue.empty_since for queue in self._queues.values() if not queue.entries), default=-inf)

    def _behind(self, partition: Partition, queue: _Queue) -> float:
        """Seconds that events still wait for what the broker has of a partition. Waited for in vain, it is idle until more comes."""
        if queue.entries or queue.idle or queue.lag == 0 or not self._held():
            return 0.0
        remaining = max(queue.empty_since, self._held_since) + self._backlog_wait - monotonic()
        if remaining <= 0:
            queue.idle = True
            log.warning("%s[%d] says nothing, and others go on without it. What it still has will be late", *partition)
        return remaining

    def _patience(self) -> float | None:
        """Seconds until something may be handed out, though nothing more comes; None where nothing is held."""
        held = self._held()
        if not held:
            return None
        behind = max(self._behind(p, q) for p, q in self._queues.items())
        next_came = min(held, key=lambda queue: queue.times[0]).arrivals[0][1]
        wait = behind if behind > 0 else min(next_came, self._emptied()) + self._wait - monotonic()
        return max(wait, 0.001)
