"""From the bytes of a record to an event, or to a reason why not.

Failure is a value here: `decode` returns an `Event` or a `Reject`, and never raises for what a producer sent.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from stream.events import Click, Item, Search

EARLIEST = 946_684_800_000  # 2000-01-01: whatever is older was sent in seconds, or by mistake
LATEST = 4_102_444_800_000  # 2100-01-01
AHEAD = 86_400_000  # a day: how far a producer's clock may run ahead of the broker's


class Record(Protocol):
    """What any Kafka client hands over, as far as we read it."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Event(msgspec.Struct, frozen=True, gc=False):
    """A search or a click with the place that it came from. `time` is its event time in epoch milliseconds."""

    time: int
    behaviour: Search | Click
    record: Record


class Reject(msgspec.Struct, frozen=True, gc=False):
    """A record that cannot be used, and why: goes to the dead-letter topic. `error` names the field at fault."""

    error: str
    record: Record


class Erasure(msgspec.Struct, frozen=True, gc=False):
    """Everything of a user is to go. `time` is when it was asked for: the record's Kafka timestamp, epoch milliseconds."""

    time: int
    user_id: str
    record: Record


Entry = Event | Erasure | Reject
"""What a record of the topics that a user's history is made of comes to."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be; the last for what is nested a thousand deep."""

_search = msgspec.json.Decoder(Search)
_click = msgspec.json.Decoder(Click)
_item = msgspec.json.Decoder(Item)


def decode_search(record: Record) -> Event | Reject:
    """Decode a record of the `searches` topic."""
    return _decode(record, _search)


def decode_click(record: Record) -> Event | Reject:
    """Decode a record of the `clicks` topic."""
    return _decode(record, _click)


def decode_erasure(record: Record) -> Erasure | Reject:
    """Decode a record of the `erasures` topic: a tombstone under a user_id."""
    if record.value is not None:
        return Reject("value: must be null, as an erasure has nothing to say but the user_id, its key", record)
    if not record.key:
        return Reject("key: missing; it must be the user_id", record)
    try:
        user_id = record.key.decode()
    except UnicodeDecodeError as error:
        return Reject(f"key: not UTF-8 ({error.reason} at byte {error.start}), so no user_id", record)
    return Erasure(max(0, record.timestamp), user_id, record)


def decode_item(record: Record) -> Item | str | Reject:
    """Decode a record of the `items` topic: the item, the id of one that was removed, or the reason why neither."""
    if record.key is None:
        return Reject("key: missing; it must be the item_id", record)
    try:
        key = record.key.decode()
        if record.value is None:
            return key
        item = _item.decode(record.value)
    except UNREADABLE as error:
        return Reject(_reason(error), record)
    if item.item_id != key:
        return Reject(f"key: {_short(key)} is not the item_id {_short(item.item_id)}", record)
    return item


def _decode(record: Record, decoder: msgspec.json.Decoder[Search] | msgspec.json.Decoder[Click]) -> Event | Reject:
    if record.value is None:
        return Reject("value: null; a search or a click is never removed", record)
    try:
        behaviour = decoder.decode(record.value)
    except UNREADABLE as error:
        return Reject(_reason(error), record)
    if record.key is None:
        return Reject("key: missing; it must be the user_id, so that a user's events stay in one partition", record)
    if record.key != behaviour.user_id.encode():
        key = record.key.decode(errors="backslashreplace")
        return Reject(f"key: {_short(key)} is not the user_id {_short(behaviour.user_id)}", record)
    stamp = behaviour.timestamp
    if isinstance(stamp, datetime):
        if stamp.tzinfo is None:
            return Reject("timestamp: has no zone; append Z or an offset such as +02:00", record)
        stamp = round(stamp.timestamp() * 1000)
    if stamp < EARLIEST:
        return Reject(f"timestamp: {stamp} is before the year 2000; is it in seconds? Send milliseconds", record)
    if stamp >= LATEST or 0 < record.timestamp < stamp - AHEAD:
        return Reject(f"timestamp: {stamp} is more than a day ahead of the broker's clock", record)
    return Event(stamp, behaviour, record)


def _reason(error: Exception) -> str:
    """Put the field's name first: `$.query` in msgspec's message becomes `query: …`."""
    if isinstance(error, UnicodeDecodeError):
        return f"value: not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, RecursionError):
        return "value: nested too deeply"
    message, found, path = str(error).rpartition(" - at `$")
    if found:
        return f"{path.strip('`').lstrip('.') or 'value'}: {message}"
    if "missing required field" in str(error):
        return f"{str(error).split('`')[1]}: missing"
    return f"value: {error}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
