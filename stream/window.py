"""The last behaviours of a user: what makes duplicates recognisable, reasons citable and a profile rebuildable."""

from __future__ import annotations

import struct
from bisect import bisect_left
from enum import Enum
from hashlib import blake2b

import msgspec

from stream.events import Click, Search

SEARCH, CLICK = 0, 1
_CLICK_AFTER_QUERY = 2  # in the binary form only: the query follows the item_id
_HEAD = struct.Struct("<qQBH")  # event time, event hash, kind, bytes of the subject
_LENGTH = struct.Struct("<H")
_HASHES = [blake2b(digest_size=8, salt=bytes([kind])) for kind in (SEARCH, CLICK)]  # to be copied: faster than to begin anew

Place = tuple[int, int]
"""A position in a user's history: event time in ms, then the event's hash."""


class Behaviour(msgspec.Struct, frozen=True, order=True, gc=False):
    """One search or click, as remembered.

    Attributes:
        time: event time, epoch ms.
        event: 64 bits of a hash of kind and event_id.
        kind: SEARCH or CLICK.
        subject: the query or the item_id.
        packed: the binary form of all of it, kept because it is written at every checkpoint.
        query: of a click, what was typed before it: the memory has learned the one from the other, and has to forget it with the user.
    """

    time: int
    event: int
    kind: int
    subject: str
    packed: bytes
    query: str | None = None


class Admission(Enum):
    """What a window makes of an event."""

    NEW = "new"
    DUPLICATE = "duplicate"
    LATE = "late"  # behind what is remembered: whether it was counted before cannot be told any more


def remembered(time: int, event: Search | Click, query: str | None = None) -> Behaviour:
    """Return an event as a window keeps it; `query` is what a click answered to."""
    kind, subject = (CLICK, event.item_id) if isinstance(event, Click) else (SEARCH, event.query)
    identity = _HASHES[kind].copy()
    identity.update(event.event_id.encode())
    digest = int.from_bytes(identity.digest(), "little")
    text = subject.encode()
    if kind == SEARCH or not query:
        return Behaviour(time, digest, kind, subject, _HEAD.pack(time, digest, kind, len(text)) + text)
    typed = query.encode()
    packed = _HEAD.pack(time, digest, _CLICK_AFTER_QUERY, len(text)) + text + _LENGTH.pack(len(typed)) + typed
    return Behaviour(time, digest, kind, subject, packed, query)


class Window:
    """A user's behaviours in event-time order: at most `size` of them, none older than `span_ms` before the newest.

    What has been forgotten has left its place in `floor`: an event at or below it may have been counted before, so it is not
    counted again. Whatever the order of arrival, the outcome is therefore the same as in event-time order, as long as no event comes
    later than `size` newer ones or `span_ms`.
    """

    __slots__ = ("behaviours", "floor")

    def __init__(self, behaviours: list[Behaviour] | None = None, floor: Place = (-(2**63), 0)) -> None:
        self.behaviours = behaviours if behaviours is not None else []
        self.floor = floor

    def admit(self, behaviour: Behaviour, size: int, span_ms: int) -> Admission:
        """Take an event in, in its place, and forget what no longer fits; or say why not."""
        kept = self.behaviours
        event = behaviour.event
        for known in reversed(kept):
            if known.event == event:
                return Admission.DUPLICATE
        place = (behaviour.time, event)
        if place <= self.floor:
            return Admission.LATE
        if not kept or (kept[-1].time, kept[-1].event) < place:
            kept.append(behaviour)
        elif behaviour.time < kept[-1].time - span_ms or (len(kept) >= size and place < (kept[0].time, kept[0].event)):
            return Admission.LATE
        else:
            kept.insert(bisect_left(kept, behaviour), behaviour)
        oldest = kept[-1].time - span_ms
        while len(kept) > size or kept[0].time < oldest:
            gone = kept.pop(0)
            self.floor = (gone.time, gone.event)
        return Admission.NEW

    def pack(self) -> bytes:
        """Return the behaviours in binary form; `unpack` reads it."""
        return b"".join([behaviour.packed for behaviour in self.behaviours])


def unpack(data: bytes, count: int) -> list[Behaviour]:
    """Read `count` behaviours.

    Raises:
        ValueError: the bytes are not that many behaviours.
    """
    behaviours, at = [], 0
    try:
        for _ in range(count):
            time, event, kind, length = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + length
            subject, query = data[at + _HEAD.size : end].decode(), None
            if kind == _CLICK_AFTER_QUERY:
                (length,) = _LENGTH.unpack_from(data, end)
                start, end = end + _LENGTH.size, end + _LENGTH.size + length
                kind, query = CLICK, data[start:end].decode()
            if end > len(data):
                raise ValueError("cut short")
            behaviours.append(Behaviour(time, event, kind, subject, data[at:end], query))
            at = end
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a window: {error}") from error
    if at != len(data):
        raise ValueError(f"not a window: {len(data) - at} bytes too many")
    return behaviours
