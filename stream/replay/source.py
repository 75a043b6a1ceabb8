"""Recorded searches, clicks, erasures and items: all of them, in the order in which they happened.

The order is the worker's: event time, which is Kafka's for an erasure (docs/decisions/0021); of equal times searches before clicks
before erasures, then partition, then offset (docs/decisions/0003).
But where a worker goes by the heads of its partitions, nothing is late here: an event that is out of order within its partition is
moved to its place. How many there were is counted, because a worker met those later than they happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream.decode import LATEST, Entry, Event, Record, Reject, decode_click, decode_erasure, decode_search
from stream.engine.reader import KafkaRecord
from stream.lines import DataFolder, behaviour_key, behaviour_line, item_key, read_lines
from stream.settings import Topics

# What happened to users, by kind; their order breaks ties.
DECODERS: dict[str, Callable[[Record], Entry]] = {"searches": decode_search, "clicks": decode_click, "erasures": decode_erasure}


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        source: where it comes from, in words.
        items: records of the `items` topic, to be read in full before the first event, as a worker does.
        entries: events, erasures and rejects in the order in which they happened.
        late: how many events stood behind a newer one in their own partition.
    """

    source: str
    items: Sequence[Record]
    entries: list[Entry]
    late: int

    @property
    def events(self) -> list[Event]:
        """Return the entries that are events."""
        return [entry for entry in self.entries if isinstance(entry, Event)]


def read_folder(
    folder: Path, topics: Topics, limit: int | None = None, *, begin: int | None = None, end: int | None = None
) -> Recording:
    """Read a folder with `items`, `clicks` and perhaps `searches` and `erasures`; each file stands for partition 0 of its topic.

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
    records = {"clicks": _records(topics.name("clicks"), files.clicks, behaviour_key)}
    if files.searches is not None:
        records["searches"] = _records(topics.name("searches"), files.searches, behaviour_key)
    if files.erasures is not None:
        records["erasures"] = _erasures(topics.name("erasures"), files.erasures)
    entries, late = in_event_time(records)
    low, high = begin or 0, LATEST if end is None else end
    entries = [entry for entry in entries if isinstance(entry, Reject) or low <= entry.time < high]
    return Recording(str(folder), list(_records(topics.name("items"), files.items, item_key)), entries[:limit], late)


def in_event_time(records: Mapping[str, Iterable[Record]]) -> tuple[list[Entry], int]:
    """Decode records and merge all partitions by event time.

    A reject, which has no time, stays behind the record that it follows in its partition. All entries are held in memory.

    Args:
        records: by kind, one of `DECODERS`; those of a partition in offset order.

    Returns:
        The entries, and how many of them are late in their partition.
    """
    placed: list[tuple[int, int, int, int, Entry]] = []
    late = 0
    for rank, (kind, decode) in enumerate(DECODERS.items()):
        newest: dict[int, int] = {}
        behind: dict[int, int] = {}
        for record in records.get(kind, ()):
            entry = decode(record)
            if not isinstance(entry, Reject):
                time = entry.time
                late += time < newest.get(record.partition, 0)
                newest[record.partition] = max(time, newest.get(record.partition, 0))
                behind[record.partition] = time
            else:
                time = behind.get(record.partition, 0)
            placed.append((time, rank, record.partition, record.offset, entry))
    placed.sort(key=lambda place: place[:4])
    return [entry for *_, entry in placed], late


def _records(topic: str, path: Path, key_of: Callable[[bytes], bytes | None]) -> Iterator[Record]:
    for offset, value in enumerate(read_lines(path)):
        yield KafkaRecord(topic, 0, offset, 0, key_of(value), value)


def _erasures(topic: str, path: Path) -> Iterator[Record]:
    """Yield what a producer would have sent; a line without user_id or timestamp stays as it is, and is rejected."""
    for offset, value in enumerate(read_lines(path)):
        line = behaviour_line(topic, value)
        usable = line.key is not None and line.time is not None
        yield KafkaRecord(topic, 0, offset, line.time or 0, line.key, None if usable else value)
