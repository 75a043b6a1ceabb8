"""One pass over a recording: this process follows the users and publishes, a second one recommends, and both are at work together.

The first steps of the pipeline (windows, vectors, profiles, drift) need no more than each user's own past, and recommending none of
the users' states. So the second process lags behind by some batches, in a fork of this one that has the catalogue already. ONNX
Runtime, which must not be used on both sides of a fork, is used in this one only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.decode import Entry, Erasure, Event
from stream.pipeline import Turn
from stream.replay.variant import Asked, Published, Room, Variant

BATCH_SIZE = 1024  # entries, at most: the second process soon has something to do, and is soon done after the first
AHEAD = 8192  # entries, at most, whose texts are encoded together: full micro-batches of every length
IN_FLIGHT = 16  # batches that the second process may be behind: longer than it takes to encode so many texts


def replay(
    variants: Sequence[Variant], entries: Sequence[Entry], batches: Iterable[slice] | None = None
) -> Iterator[tuple[int, list[Published]]]:
    """Let all variants answer the events in one pass, batch by batch.

    Texts are encoded ahead, in full micro-batches: a text's vector does not depend on time. A batch ends where a user is erased, as
    what was learned from the user is forgotten then; a worker does so as soon as it reads its own record of that.

    Args:
        variants: answer in turn; afterwards they have the users' states, but what they learned across users is gone.
        entries: in the order in which they happened.
        batches: consecutive parts of them, at most of `batch_size` of the first variant; if not given, of that size.

    Yields:
        How many entries have been answered, and what each variant published for the last batch of them; to be read at once.
    """
    size = batch_size(variants[0])
    batches = batches or (slice(start, min(start + size, len(entries))) for start in range(0, len(entries), size))
    rooms = [[variant.room(size) for variant in variants] for _ in range(IN_FLIGHT + 1)]

    def published(batch: _Behind) -> tuple[int, list[Published]]:
        told = zip(variants, batch.turns, batch.counts.result(), rooms[batch.place], strict=True)
        return batch.part.stop, [v.publish(entries[batch.part], turns, counts, room) for v, turns, counts, room in told]

    with ProcessPoolExecutor(1, get_context("fork"), _begin, (variants, rooms)) as second:
        behind: deque[_Behind] = deque()
        encoded = 0
        for number, part in enumerate(_until_erasures(entries, batches)):
            if part.stop > encoded:
                # Little at first, so that the second process soon has something to do.
                stop = max(part.stop, encoded + min(AHEAD, encoded))
                _encode(variants, entries[encoded:stop])
                encoded = stop
            place = number % (IN_FLIGHT + 1)
            followed = [v.follow(entries[part], room) for v, room in zip(variants, rooms[place], strict=True)]
            counts = second.submit(_recommend, [asked for _, asked in followed], place)
            behind.append(_Behind(part, place, [turns for turns, _ in followed], counts))
            while len(behind) > IN_FLIGHT or (behind and behind[0].counts.done()):
                yield published(behind.popleft())
        for batch in behind:
            yield published(batch)


class _Behind(NamedTuple):
    part: slice  # of the entries
    place: int  # of its rooms
    turns: list[list[Turn]]  # of each variant
    counts: Future[list[NDArray[np.intp]]]


def batch_size(variant: Variant) -> int:
    """Return how many entries a batch of a replay has: the two processes share room for some, so not as many as a worker's may."""
    return min(variant.settings.engine.batch_size, BATCH_SIZE)


def _until_erasures(entries: Sequence[Entry], batches: Iterable[slice]) -> Iterator[slice]:
    for batch in batches:
        start = batch.start
        for place in range(start, batch.stop):
            if isinstance(entries[place], Erasure):
                yield slice(start, place + 1)
                start = place + 1
        if start < batch.stop:
            yield slice(start, batch.stop)


def _encode(variants: Sequence[Variant], entries: Sequence[Entry]) -> None:
    texts = sorted({entry.behaviour.query for entry in entries if isinstance(entry, Event) and entry.behaviour.query})
    for encoder in {id(variant.encoder): variant.encoder for variant in variants}.values():
        encoder.encode(texts)


def _begin(*inherited: Any) -> None:
    """In the second process: take over what the first one had at the fork."""
    global _variants, _rooms
    _variants, _rooms = inherited


def _recommend(asked: Sequence[Asked], place: int) -> list[NDArray[np.intp]]:
    """In the second process: recommend for a batch, all variants in turn."""
    return [variant.recommend(some, room) for variant, some, room in zip(_variants, asked, _rooms[place], strict=True)]


_variants: Sequence[Variant] = ()
_rooms: Sequence[Sequence[Room]] = ()
