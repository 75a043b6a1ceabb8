"""Recorded searches, clicks and items: all of them, in the order in which they happened.

The order is the worker's: event time; of equal times searches before clicks, then partition, then offset (docs/decisions/0003).
But where a worker goes by the heads of its partitions, nothing is late here: an event that is out of order within its partition is
moved to its place. How many there were is counted, because a worker met those later than they happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream.decode import LATEST, Event, Record, Reject, decode_click, decode_search
from stream.engine.broadcast import BroadcastRecord
from stream.lines import DataFolder, Line, behaviour_line, item_line, read_lines
from stream.settings import Topics

DECODERS = {"searches": decode_search, "clicks": decode_click}  # their order breaks ties


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        source: where it comes from, in words.
        items: records of the `items` topic, to be read in full before the first event, as a worker does.
        entries: events and rejects of `searches` and `clicks` in the order in which they happened.
        late: how many events stood behind a newer one in their own partition.
    """

    source: str
    items: Sequence[Record]
    entries: list[Event | Reject]
    late: int

    @property
    def events(self) -> list[Event]:
        """Return the entries that are events."""
        return [entry for entry in self.entries if isinstance(entry, Event)]


def read_folder(
    folder: Path, topics: Topics, limit: int | None = None, *, begin: int | None = None, end: int | None = None
) -> Recording:
    """Read a folder with `items`, `clicks` and perhaps `searches`; each file stands for partition 0 of its topic.

    Args:
        folder: files end in `.jsonl`, `.jsonl.gz` or `.parquet`.
        topics: the names that the records get.
        limit: take only the first so many entries.
        begin: leave out events before this time, ms.
        end: leave out events at this time or later.

    Raises:
        LinesError: files are missing or cannot be read.
    """
    files = DataFolder.find(folder)
    records = {"clicks": _records(topics.name("clicks"), files.clicks, behaviour_line)}
    if files.searches is not None:
        records["searches"] = _records(topics.name("searches"), files.searches, behaviour_line)
    entries, late = in_event_time(records)
    low, high = begin or 0, LATEST if end is None else end
    entries = [entry for entry in entries if not isinstance(entry, Event) or low <= entry.time < high]
    return Recording(str(folder), list(_records(topics.name("items"), files.items, item_line)), entries[:limit], late)


def in_event_time(records: Mapping[str, Iterable[Record]]) -> tuple[list[Event | Reject], int]:
    """Decode the records of `searches` and of `clicks` and merge all partitions by event time.

    A reject, which has no time, stays behind the record that it follows in its partition. All entries are held in memory.

    Args:
        records: by kind of behaviour; those of a partition in offset order.

    Returns:
        The entries, and how many of them are late in their partition.
    """
    placed: list[tuple[int, int, int, int, Event | Reject]] = []
    late = 0
    for rank, (kind, decode) in enumerate(DECODERS.items()):
        newest: dict[int, int] = {}
        behind: dict[int, int] = {}
        for record in records.get(kind, ()):
            entry = decode(record)
            if isinstance(entry, Event):
                time = entry.time
                late += time < newest.get(record.partition, 0)
                newest[record.partition] = max(time, newest.get(record.partition, 0))
                behind[record.partition] = time
            else:
                time = behind.get(record.partition, 0)
            placed.append((time, rank, record.partition, record.offset, entry))
    placed.sort(key=lambda place: place[:4])
    return [entry for *_, entry in placed], late


def _records(topic: str, path: Path, line_of: Callable[[str, bytes], Line]) -> Iterator[Record]:
    for offset, value in enumerate(read_lines(path)):
        yield BroadcastRecord(topic, 0, offset, 0, line_of(topic, value).key, value)
