"""What the models learn from: items, searches and clicks, from JSON lines or straight from the Kafka topics.

Every record goes through the worker's own decoder: what the worker would send to `dead-letters` is not learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaException

from stream.decode import EARLIEST, LATEST, Event, Record, Reject, decode_click, decode_item, decode_search
from stream.engine.broadcast import Broadcast
from stream.engine.reader import KafkaRecord
from stream.events import Click, Item
from stream.lines import DataFolder, Line, LinesError, behaviour_line, item_line, read_lines
from stream.settings import Settings, read_settings

PATIENCE = 60.0  # seconds that a broker may stay silent before a topic is given up


class DataError(Exception):
    """There is nothing to learn from; the message says what to do."""


@dataclass(frozen=True)
class Span:
    """Event time from `since` up to, but not including, `until`; epoch milliseconds."""

    since: int = EARLIEST
    until: int = LATEST

    def __contains__(self, time: int) -> bool:
        """Return whether an event of that time is inside."""
        return self.since <= time < self.until

    @classmethod
    def parse(cls, since: str | None, until: str | None) -> Span:
        """Read dates (`2011-09-20`: its midnight in UTC), RFC 3339 times or epoch milliseconds; None leaves a side open.

        Raises `DataError` for what is no time, and where nothing lies between the two.
        """
        span = cls(EARLIEST if since is None else _milliseconds(since), LATEST if until is None else _milliseconds(until))
        if span.since >= span.until:
            raise DataError(f"nothing is from {since} on and before {until}")
        return span


@dataclass(frozen=True)
class Log:
    """What happened.

    Attributes:
        items: the catalogue, by id. Items have no event time: it is always the whole one.
        events: searches and clicks in event time; of equal times the searches come first. Each (user, event id) once.
        refused: how many records could not be used.
    """

    items: dict[str, Item]
    events: list[Event]
    refused: int

    def before(self, time: int) -> Log:
        """Return the part with the events before `time` (ms)."""
        return Log(self.items, [event for event in self.events if event.time < time], self.refused)

    def since(self, time: int) -> Log:
        """Return the part with the events from `time` (ms) on."""
        return Log(self.items, [event for event in self.events if event.time >= time], self.refused)

    def time_at(self, share: float) -> int:
        """Return the time (ms) before which about `share` of the events lie: where to split past from future.

        Raises `DataError` for a log without events.
        """
        if not self.events:
            raise DataError("there are no usable searches or clicks in that time")
        return self.events[min(len(self.events) - 1, int(share * len(self.events)))].time


@dataclass(frozen=True)
class Source:
    """Where the log is: a folder, or the topics that the worker's settings name if it is None."""

    folder: Path | None
    span: Span = Span()

    def read(self) -> Log:
        """Return the log. Raises `DataError`, and `SettingsError` where the settings of the topics cannot be read."""
        return read_topics(read_settings(), self.span) if self.folder is None else read_folder(self.folder, self.span)


def read_folder(folder: Path, span: Span) -> Log:
    """Read `items`, `clicks` and perhaps `searches`, each `.jsonl` or `.jsonl.gz`, and keep the events within `span`.

    Raises `DataError` if a file is missing or broken.
    """
    try:
        data = DataFolder.find(folder)
        items = [_numbered(n, item_line("items", value)) for n, value in enumerate(read_lines(data.items))]
        clicks = [_numbered(n, behaviour_line("clicks", value)) for n, value in enumerate(read_lines(data.clicks))]
        searches: list[KafkaRecord] = []
        if data.searches is not None:
            searches = [_numbered(n, behaviour_line("searches", value)) for n, value in enumerate(read_lines(data.searches))]
    except LinesError as error:
        raise DataError(str(error)) from error
    return _log(items, searches, clicks, span)


def read_topics(settings: Settings, span: Span) -> Log:
    """Read the topics `items`, `searches` and `clicks` from their beginning to their present end; keep the events within `span`.

    Raises `DataError` if a topic is missing or the broker falls silent.
    """
    return _log(_topic(settings, "items"), _topic(settings, "searches"), _topic(settings, "clicks"), span)


def _numbered(number: int, line: Line) -> KafkaRecord:
    return KafkaRecord(line.topic, 0, number, line.time or 0, line.key, line.value)


def _topic(settings: Settings, name: str) -> list[Record]:
    topic = settings.topics.name(name)
    try:
        reader = Broadcast(settings.broker.librdkafka(), topic)
        try:
            return list(reader.read_to_end(PATIENCE))
        finally:
            reader.close()
    except (KafkaException, TimeoutError) as error:
        raise DataError(f"topic {topic} at {settings.broker.servers} cannot be read: {error}") from error


def _log(items: Iterable[Record], searches: Iterable[Record], clicks: Iterable[Record], span: Span) -> Log:
    catalogue: dict[str, Item] = {}
    refused = 0
    for record in items:
        found = decode_item(record)
        if isinstance(found, Reject):
            refused += 1
        elif isinstance(found, str):
            catalogue.pop(found, None)
        else:
            catalogue[found.item_id] = found
    events: dict[tuple[str, str], Event] = {}
    decoders: list[tuple[Callable[[Record], Event | Reject], Iterable[Record]]] = [
        (decode_search, searches),
        (decode_click, clicks),
    ]
    for decode, records in decoders:
        for record in records:
            entry = decode(record)
            if isinstance(entry, Reject):
                refused += 1
            elif entry.time in span:
                events.setdefault((entry.behaviour.user_id, entry.behaviour.event_id), entry)
    # Partitions of a topic are read in any order: places, not arrival, decide among events of one instant.
    ordered = sorted(
        events.values(),
        key=lambda e: (e.time, isinstance(e.behaviour, Click), e.record.partition, e.record.offset),
    )
    return Log(catalogue, ordered, refused)


def _milliseconds(text: str) -> int:
    if text.isdecimal() and len(text) > 8:  # shorter ones are dates such as 20110920
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{text!r} is no time: write 2011-09-20, 2011-09-20T08:00:00Z, or epoch milliseconds") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
