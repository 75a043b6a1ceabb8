"""What sends: `driftstream produce` a file to a topic, `feed` a folder or the sample, `erase` users to the topic of erasures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stream import sample
from stream.connection import BrokerError, connect
from stream.feed import Feeder, FeedError
from stream.lines import Line, LinesError, behaviour_line, item_line, read_folder, read_lines
from stream.settings import Settings


class ProduceError(Exception):
    """The file could not be sent in full; the message says why."""


def erase_users(settings: Settings, user_ids: Sequence[str]) -> None:
    """Ask for the erasure of users: a tombstone for each on the erasures topic.

    Raises:
        ProduceError: the broker did not take every one.
    """
    topic, client = settings.topics.name("erasures"), settings.broker.librdkafka()
    failures: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    try:
        connect(client)
        producer = Producer({**client, "partitioner": "murmur2_random", "enable.idempotence": True})
        for user_id in user_ids:
            producer.produce(topic, None, user_id.encode(), on_delivery=delivered)
        unsent = producer.flush(30)
    except (BrokerError, KafkaException) as error:
        raise ProduceError(str(error)) from error
    if failures or unsent:
        raise ProduceError(
            f"{topic} did not take every erasure: {failures[0] if failures else 'no answer for 30 s'}. Send them again"
        )


def produce_file(settings: Settings, file: Path, topic: str, speed: float | None) -> None:
    """Send a file's lines, each under the key that the worker expects: `item_id` for the items topic, else `user_id`.

    Raises:
        ProduceError: the file cannot be read, or the broker did not take every line.
    """
    topics = settings.topics
    if topic in ("searches", "clicks", "items"):
        topic = topics.name(topic)
    as_line = item_line if topic == topics.name("items") else behaviour_line
    try:
        total = sum(1 for _ in read_lines(file))
        _send(settings, topic, (as_line(topic, line) for line in read_lines(file)), total, speed)
    except (FeedError, LinesError) as error:
        raise ProduceError(str(error)) from error


def feed(settings: Settings, folder: Path | None, speed: float | None) -> None:
    """Send a folder's items, then its searches and clicks in event-time order; the bundled sample where none is given.

    Raises:
        ProduceError: a file cannot be read, or the broker did not take every line.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="driftstream-sample-") as scratch:
            if folder is None:
                folder = Path(scratch)
                sample.write(folder)
            items, events = read_folder(folder, settings.topics)
        _send(settings, "items", items, len(items), None)
        _send(settings, "events", events, len(events), speed)
    except (FeedError, LinesError) as error:
        raise ProduceError(str(error)) from error


def _send(settings: Settings, what: str, lines: Iterable[Line], total: int, speed: float | None) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        closing(Feeder(settings.broker.librdkafka(), speed=speed)) as feeder,
        Progress(*columns, console=console) as progress,
    ):
        sent = feeder.send(progress.track(lines, total=total, description=what))
    console.print(f"{sent} lines sent: {what}")
