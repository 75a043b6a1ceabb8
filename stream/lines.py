"""JSON-lines files as lines to send to Kafka: raw bytes, the key that they belong under, and their event time.

Lines stay byte for byte as they are: a broken one reaches the worker, and from there `dead-letters`, as any producer
would have sent it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from stream.decode import EARLIEST, LATEST, UNREADABLE
from stream.events import EventTime
from stream.settings import Topics


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
    """A folder with `items`, `clicks` and perhaps `searches` and `erasures`, each `.jsonl`, `.jsonl.gz` or `.parquet`.

    `erasures` has lines of user_id and timestamp, the moment at which an erasure was asked for; only a replay reads it.
    """

    items: Path
    clicks: Path
    searches: Path | None
    erasures: Path | None

    @classmethod
    def find(cls, folder: Path) -> DataFolder:
        """Look for the files.

        Raises:
            LinesError: there is no such folder, or items or clicks are missing in it.
        """
        if not folder.is_dir():
            raise LinesError(f"{folder} is not a folder")
        found = {name: one_of(folder, name) for name in ("items", "clicks", "searches", "erasures")}
        missing = [f"{name}.jsonl" for name in ("items", "clicks") if found[name] is None]
        items, clicks = found["items"], found["clicks"]
        if items is None or clicks is None:
            raise LinesError(f"{folder} lacks {' and '.join(missing)} (each may also end in .jsonl.gz or .parquet)")
        return cls(items, clicks, found["searches"], found["erasures"])


def one_of(folder: Path, name: str) -> Path | None:
    """Return the file of this name in a folder, as JSON lines, compressed or not, or as Parquet; None where there is none.

    Raises:
        LinesError: there are several.
    """
    present = [path for suffix in (".jsonl", ".jsonl.gz", ".parquet") if (path := folder / f"{name}{suffix}").exists()]
    if len(present) > 1:
        raise LinesError(f"{folder} has {present[0].name} and {present[1].name}; remove one")
    return present[0] if present else None


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield a file's lines as raw bytes without their line ends; blank ones are left out. `.gz` is unpacked.

    Rows of a `.parquet` file become lines of JSON; a null is a field that is not there.

    Raises:
        LinesError: the file is missing, not readable, or not a whole gzip or Parquet file.
    """
    if path.suffix == ".parquet":
        yield from _read_rows(path)
        return
    try:
        with io.BufferedReader(gzip.GzipFile(path)) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                stripped = line.rstrip(b"\r\n")
                if stripped:
                    yield stripped
    except (OSError, EOFError, zlib.error) as error:
        raise LinesError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read_rows(path: Path) -> Iterator[bytes]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise LinesError(f"{path}: reading Parquet needs pyarrow; install driftstream[replay]") from error
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield msgspec.json.encode({name: value for name, value in row.items() if value is not None})
    except (OSError, pyarrow.ArrowException) as error:
        raise LinesError(f"{path} cannot be read: {error}") from error


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
    except UNREADABLE:
        return Line(topic, behaviour_key(value), value, None)
    return Line(topic, event.user_id.encode() or None, value, _epoch_ms(event.timestamp))


def item_line(topic: str, value: bytes) -> Line:
    """Return an item as a line to send, keyed by its `item_id`."""
    return Line(topic, item_key(value), value, None)


def behaviour_key(value: bytes) -> bytes | None:
    """Return the key of a search or a click: its `user_id`, None where it has none."""
    return _key(value, lambda: _user.decode(value).user_id)


def item_key(value: bytes) -> bytes | None:
    """Return the key of an item: its `item_id`, None where it has none."""
    return _key(value, lambda: _item.decode(value).item_id)


def _key(value: bytes, read: Callable[[], str]) -> bytes | None:
    try:
        return read().encode() or None
    except UNREADABLE:
        return None


def _epoch_ms(stamp: int | datetime) -> int | None:
    """Return the time that the worker would read, None where it would refuse it."""
    if isinstance(stamp, datetime):
        if stamp.tzinfo is None:
            return None
        stamp = round(stamp.timestamp() * 1000)
    return stamp if EARLIEST <= stamp < LATEST else None


def read_folder(folder: Path, topics: Topics) -> tuple[list[Line], list[Line]]:
    """Return a data folder's items, and its searches and clicks in event-time order, as lines to send.

    Raises:
        LinesError: the folder lacks a file, or one cannot be read.
    """
    files = DataFolder.find(folder)
    items = [item_line(topics.name("items"), line) for line in read_lines(files.items)]
    searches = read_lines(files.searches) if files.searches else iter(())
    events = in_event_time(
        (behaviour_line(topics.name("searches"), line) for line in searches),
        (behaviour_line(topics.name("clicks"), line) for line in read_lines(files.clicks)),
    )
    return items, events


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
