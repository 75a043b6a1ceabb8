"""One pass over a recording: this process follows the users, a second one answers, and both are at work at the same time.

The first half of the pipeline (windows, vectors, profiles, drift) needs no more than each user's own past, and the second (recommend,
publish) none of the users' states. So the second lags behind the first by some batches, in a fork of this process that has the
recording and the catalogue already. ONNX Runtime, which must not be used on both sides of a fork, is used in the first half only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from stream.decode import Entry, Erasure, Event
from stream.engine.checkpoint import Output
from stream.replay.variant import Followed, Room, Variant

BATCH_SIZE = 1024  # entries, at most: the second half soon has something to do, and is soon done after the first
AHEAD = 8192  # entries, at most, whose texts are encoded together: full micro-batches of every length
IN_FLIGHT = 16  # batches that the second half may be behind: longer than it takes to encode so many texts


class Reader(Protocol):
    """Takes up what a variant answers, in the second process; afterwards it is brought into the first one."""

    def take(self, outputs: Sequence[Output]) -> None:
        """Take up what was answered to the next batch."""

    def close(self) -> None:
        """Get ready to be pickled: nothing more comes."""


R = TypeVar("R", bound=Reader)


def replay(
    variants: Sequence[Variant],
    entries: Sequence[Entry],
    readers: Sequence[R],
    batches: Iterable[slice] | None = None,
    progress: Callable[[int], object] = lambda answered: None,
) -> Sequence[R]:
    """Let all variants answer the events in one pass, batch by batch.

    Texts are encoded ahead, in full micro-batches: a text's vector does not depend on time. A batch ends where a user is erased, as
    what was learned from the user is forgotten then; a worker does so as soon as it reads its own record of that.

    Args:
        variants: answer in turn; afterwards they have the users' states, but what they learned across users is gone.
        entries: in the order in which they happened.
        readers: of each variant's answers.
        batches: consecutive parts of `entries`, at most of `batch_size` of the first variant; if not given, of that size.
        progress: told now and then how many entries have been answered.

    Returns:
        The readers with what they took; those that were given are as they were.
    """
    size = batch_size(variants[0])
    batches = batches or (slice(start, min(start + size, len(entries))) for start in range(0, len(entries), size))
    rooms = [[variant.room(size) for variant in variants] for _ in range(IN_FLIGHT + 1)]
    with ProcessPoolExecutor(1, get_context("fork"), _begin, (variants, entries, readers, rooms)) as second:
        behind: deque[tuple[int, Future[None]]] = deque()
        encoded = 0
        for number, batch in enumerate(_until_erasures(entries, batches)):
            if batch.stop > encoded:
                # Little at first, so that the second half soon has something to do.
                stop = max(batch.stop, encoded + min(AHEAD, encoded))
                _encode(variants, entries[encoded:stop])
                encoded = stop
            place = number % (IN_FLIGHT + 1)
            followed = [v.follow(entries[batch], room) for v, room in zip(variants, rooms[place], strict=True)]
            behind.append((batch.stop, second.submit(_answer, batch, followed, place)))
            while behind and (len(behind) > IN_FLIGHT or behind[0][1].done()):
                answered, done = behind.popleft()
                done.result()
                progress(answered)
        for answered, done in behind:
            done.result()
            progress(answered)
        return second.submit(_end).result()


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
    global _variants, _entries, _readers, _rooms
    _variants, _entries, _readers, _rooms = inherited


def _answer(batch: slice, followed: Sequence[Followed], place: int) -> None:
    """In the second process: answer a batch, all variants in turn."""
    for variant, reader, told, room in zip(_variants, _readers, followed, _rooms[place], strict=True):
        reader.take(variant.answer(_entries[batch], told, room))


def _end() -> Sequence[Any]:
    """In the second process: give up what was read."""
    for reader in _readers:
        reader.close()
    return _readers


_variants: Sequence[Variant] = ()
_entries: Sequence[Entry] = ()
_readers: Sequence[Reader] = ()
_rooms: Sequence[Sequence[Room]] = ()
