"""JSON-lines files as lines to send to Kafka: raw bytes, the key that they belong under, and their event time.

Lines stay byte for byte as they are: a broken one reaches the worker, and from there `dead-letters`, as any producer
would have sent it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from stream.decode import EARLIEST, LATEST
from stream.events import EventTime


class LinesError(Exception):
    """A file or folder cannot be read as lines to send; the message says what is wrong."""


class Line(NamedTuple):
    """One line to send; `key`, and `time` in epoch milliseconds, are None where the line has no usable one."""

    topic: str
    key: bytes | None
    value: bytes
    time: int | None


@dataclass(frozen=True)
class DataFolder:
    """A folder with `items`, `clicks` and perhaps `searches`, each `.jsonl` or `.jsonl.gz`."""

    items: Path
    clicks: Path
    searches: Path | None

    @classmethod
    def find(cls, folder: Path) -> DataFolder:
        """Look for the three files.

        Raises:
            LinesError: there is no such folder, or items or clicks are missing in it.
        """
        if not folder.is_dir():
            raise LinesError(f"{folder} is not a folder")
        found = {name: one_of(folder, name) for name in ("items", "clicks", "searches")}
        missing = [f"{name}.jsonl" for name in ("items", "clicks") if found[name] is None]
        items, clicks = found["items"], found["clicks"]
        if items is None or clicks is None:
            raise LinesError(f"{folder} lacks {' and '.join(missing)} (each may also end in .gz)")
        return cls(items, clicks, found["searches"])


def one_of(folder: Path, name: str) -> Path | None:
    """Return the file `name.jsonl` or `name.jsonl.gz` of a folder, None where there is neither.

    Raises:
        LinesError: it has both.
    """
    present = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.exists()]
    if len(present) > 1:
        raise LinesError(f"{folder} has {present[0].name} and {present[1].name}; remove one")
    return present[0] if present else None


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield a file's lines as raw bytes without their line ends; blank ones are left out. `.gz` is unpacked.

    Raises:
        LinesError: the file is missing, not readable, or not a whole gzip file.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                stripped = line.rstrip(b"\r\n")
                if stripped:
                    yield stripped
    except (OSError, EOFError, zlib.error) as error:
        raise LinesError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class _User(msgspec.Struct):
    user_id: str


class _TimedUser(_User):
    timestamp: EventTime


class _Item(msgspec.Struct):
    item_id: str


_user = msgspec.json.Decoder(_User)
_timed_user = msgspec.json.Decoder(_TimedUser)
_item = msgspec.json.Decoder(_Item)


def behaviour_line(topic: str, value: bytes) -> Line:
    """Return a search or a click as a line to send, keyed by its `user_id`."""
    try:
        event = _timed_user.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Line(topic, _key(value, lambda: _user.decode(value).user_id), value, None)
    return Line(topic, event.user_id.encode() or None, value, _epoch_ms(event.timestamp))


def item_line(topic: str, value: bytes) -> Line:
    """Return an item as a line to send, keyed by its `item_id`."""
    return Line(topic, _key(value, lambda: _item.decode(value).item_id), value, None)


def _key(value: bytes, read: Callable[[], str]) -> bytes | None:
    try:
        return read().encode() or None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _epoch_ms(stamp: int | datetime) -> int | None:
    """Return the time that the worker would read, None where it would refuse it."""
    if isinstance(stamp, datetime):
        if stamp.tzinfo is None:
            return None
        stamp = round(stamp.timestamp() * 1000)
    return stamp if EARLIEST <= stamp < LATEST else None


def in_event_time(*files: Iterable[Line]) -> list[Line]:
    """Merge files by timestamp; of equal ones the earlier file's come first, then the earlier line.

    A line without a usable timestamp stays behind the line that it follows in its file. All lines are held in memory.
    """
    timed: list[tuple[int, Line]] = []
    for file in files:
        time = 0
        for line in file:
            time = time if line.time is None else line.time
            timed.append((time, line))
    timed.sort(key=lambda pair: pair[0])  # a stable sort keeps files and lines in order
    return [line for _, line in timed]
