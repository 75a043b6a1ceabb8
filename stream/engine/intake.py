"""One stream in event-time order out of the partitions that a worker owns.

Kafka orders records within a partition only. A search and the click that it led to sit in two topics, and in a backlog one may be
read long before the other. `Intake` holds what was fetched and always hands out the earliest head, as Kafka Streams' task idling
does: while a partition is empty but may still have something earlier to say, the others wait for it, for a bounded time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
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
        return {Partition(record.topic, record.partition): record.offset + 1 for record in records}


@dataclass(slots=True)
class _Queue:
    rank: int
    decode: Decode
    entries: deque[Entry] = field(default_factory=deque)
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)  # up to which offset records came when
    empty_since: float = field(default_factory=monotonic)
    idle: bool = False  # it was waited for in vain
    lag: int | None = None  # records that the broker has beyond these; None while that is not known
    time: int = 0  # of the newest head: what a reject, which has none, is ordered by
    next_offset: int = 0
    held_bytes: int = 0  # of the values of `entries`


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
        self._heads: list[tuple[int, int, int, int, float, Partition]] = []  # when each came is the last but one
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
        self._queues = {
            p: _Queue(ranks[p.topic], self._decoders[p.topic], next_offset=offset)
            for p, offset in offsets.items()
            if p.topic in ranks
        }
        self._heads = []
        self._open = True
        self._arrived.set()

    def close(self) -> None:
        """Hand out nothing more until `assign`, and forget what is held."""
        self._open = False
        self._queues = {}
        self._heads = []

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
            was_empty = not queue.entries
            entries = list(map(queue.decode, fresh))
            self._tell(entries)
            queue.entries.extend(entries)
            queue.next_offset = fresh[-1].offset + 1
            queue.arrivals.append((queue.next_offset, monotonic()))
            queue.held_bytes += sum(len(record.value or b"") for record in fresh)
            queue.idle = False
            if not self._heads:
                self._held_since = monotonic()
            if was_empty:
                self._push_head(partition, queue)
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

    def _merge(self, limit: int) -> Batch:
        entries: list[Entry] = []
        until = self._until()
        while self._heads and len(entries) < limit and self._heads[0][-2] <= until:
            *_, partition = heapq.heappop(self._heads)
            queue = self._queues[partition]
            entry = queue.entries.popleft()
            entries.append(entry)
            queue.held_bytes -= len(entry.record.value or b"")
            if queue.entries:
                self._push_head(partition, queue)
            else:
                queue.arrivals.clear()
                queue.empty_since = monotonic()
                until = self._until()
        return Batch(entries)

    def _push_head(self, partition: Partition, queue: _Queue) -> None:
        head = queue.entries[0]
        if not isinstance(head, Reject):
            queue.time = head.time
        while queue.arrivals[0][0] <= head.record.offset:
            queue.arrivals.popleft()
        heapq.heappush(
            self._heads, (queue.time, queue.rank, partition.partition, head.record.offset, queue.arrivals[0][1], partition)
        )

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
        if not self._heads or queue.entries or queue.idle or queue.lag == 0:
            return 0.0
        remaining = max(queue.empty_since, self._held_since) + self._backlog_wait - monotonic()
        if remaining <= 0:
            queue.idle = True
            log.warning("%s[%d] says nothing, and others go on without it. What it still has will be late", *partition)
        return remaining

    def _patience(self) -> float | None:
        """Seconds until something may be handed out, though nothing more comes; None where nothing is held."""
        if not self._heads:
            return None
        behind = max(self._behind(p, q) for p, q in self._queues.items())
        wait = behind if behind > 0 else min(self._heads[0][-2], self._emptied()) + self._wait - monotonic()
        return max(wait, 0.001)
