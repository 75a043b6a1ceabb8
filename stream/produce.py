"""`driftstream produce`: a file of JSON lines onto a topic; `driftstream erase`: users onto the topic of erasures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stream.connection import BrokerError, connect
from stream.feed import Feeder, FeedError
from stream.lines import LinesError, behaviour_line, item_line, read_lines
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
    console = Console(stderr=True)
    try:
        total = sum(1 for _ in read_lines(file))
        feeder = Feeder(settings.broker.librdkafka(), speed=speed)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            lines = progress.track(read_lines(file), total=total, description=topic)
            sent = feeder.send(as_line(topic, line) for line in lines)
    except (FeedError, LinesError) as error:
        raise ProduceError(str(error)) from error
    console.print(f"{sent} lines sent to {topic}")
