"""One pass over a recording: this process follows the users, a second one answers, and both are at work at the same time.

The first half of the pipeline (windows, vectors, profiles, drift) needs no more than each user's own past, and the second (recommend,
publish) none of the users' states. So the second lags behind the first by some batches, in a fork of this process that has the
recording and the catalogue already. ONNX Runtime, which must not be used on both sides of a fork, is used in the first half only.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from stream.decode import Entry, Erasure, Event
from stream.engine.checkpoint import Output
from stream.profile import Vector
from stream.replay.variant import Followed, Variant

BATCH_SIZE = 8192  # entries, at most
AHEAD = 8192  # entries, at most, whose texts are encoded together: full micro-batches of every length
IN_FLIGHT = 16  # batches that the second half may be behind: longer than it takes to encode so many texts


def replay(
    variants: Sequence[Variant], entries: Sequence[Entry], batches: Iterable[slice] | None = None
) -> Iterator[tuple[int, list[list[Output]]]]:
    """Let all variants answer the events in one pass, batch by batch.

    Texts are encoded ahead, in full micro-batches: a text's vector does not depend on time. A batch ends where a user is erased, as
    what was learned from the user is forgotten then; a worker does so as soon as it reads its own record of that.

    Args:
        variants: answer in turn; afterwards they have the users' states, but what they learned across users is gone.
        entries: in the order in which they happened.
        batches: consecutive parts of them, at most of `batch_size` of the first variant; if not given, of that size.

    Yields:
        How many entries have been answered, and the outputs of each variant for the last batch of them.
    """
    size = batch_size(variants[0])
    batches = batches or (slice(start, min(start + size, len(entries))) for start in range(0, len(entries), size))
    rooms = [_shared(variant.room(IN_FLIGHT + 1, size)) for variant in variants]
    with ProcessPoolExecutor(1, get_context("fork"), _begin, (variants, entries, rooms)) as second:
        behind: deque[tuple[int, Future[list[list[Output]]]]] = deque()
        encoded = 0
        for number, batch in enumerate(_until_erasures(entries, batches)):
            if batch.stop > encoded:
                # Little at first, so that the second half soon has something to do.
                stop = max(batch.stop, encoded + min(AHEAD, encoded))
                _encode(variants, entries[encoded:stop])
                encoded = stop
            place = number % (IN_FLIGHT + 1)
            followed = [v.follow(entries[batch], room[place]) for v, room in zip(variants, rooms, strict=True)]
            behind.append((batch.stop, second.submit(_answer, batch, followed, place)))
            while behind and (len(behind) > IN_FLIGHT or behind[0][1].done()):
                answered, outputs = behind.popleft()
                yield answered, outputs.result()
        for answered, outputs in behind:
            yield answered, outputs.result()


def batch_size(variant: Variant) -> int:
    """Return how many entries a batch of a replay has: the two processes share room for some, so not as many as a worker's may."""
    return min(variant.settings.engine.batch_size, BATCH_SIZE)


def _shared(shape: tuple[int, ...]) -> Vector:
    """Return an array of zeros that a fork of this process will share."""
    return np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32).reshape(shape)


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
    global _variants, _entries, _rooms
    _variants, _entries, _rooms = inherited


def _answer(batch: slice, followed: Sequence[Followed], place: int) -> list[list[Output]]:
    """In the second process: answer a batch, all variants in turn."""
    halves = zip(_variants, followed, _rooms, strict=True)
    return [variant.answer(_entries[batch], told, room[place]) for variant, told, room in halves]


_variants: Sequence[Variant] = ()
_entries: Sequence[Entry] = ()
_rooms: Sequence[Vector] = ()
