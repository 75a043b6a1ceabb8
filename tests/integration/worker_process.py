"""A real worker in a process of its own, on a broker inside the test's process, and what goes in and comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.connection import Broker
from stream.engine.embedded_broker import EmbeddedBroker
from stream.settings import Settings, Topics
from stream.topics import ensure, plan
from stream.web import free_port

START_SECONDS = 60
ANSWER_SECONDS = 30
TOKEN = "the-token-of-the-tests"


class Sent(NamedTuple):
    """A record for an input topic."""

    topic: str
    key: bytes | None
    value: bytes | None


class Place(NamedTuple):
    """Where the broker put a record."""

    topic: str
    partition: int
    offset: int


@contextmanager
def running_broker(partitions: int) -> Iterator[str]:
    """Run a broker with every topic that a worker needs, and give its address."""
    topics = plan(Settings(topics=Topics(partitions=partitions)))
    with EmbeddedBroker({topic.name: topic.partitions for topic in topics}) as broker:
        yield broker.address


def make_topics(broker: str, partitions: int) -> None:
    """Make every topic that a worker needs on a real broker."""
    ensure(Settings(broker=Broker(servers=broker), topics=Topics(partitions=partitions)))


@dataclass
class Worker:
    """A worker's process."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def get(self, path: str) -> Any:
        """Ask one of the worker's HTTP endpoints."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def stop(self) -> int:
        """Send SIGTERM, as an operator would, and return the exit status."""
        self.check()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def check(self) -> None:
        """Fail with the end of the log if the worker has ended by itself."""
        assert self.process.poll() is None, f"the worker ended by itself:\n{self.log.read_text()[-4000:]}"

    def wait_until_ready(self) -> None:
        """Return when the worker answers events."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            try:
                self.get("/readyz")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"the worker was not ready within {START_SECONDS} s:\n{self.log.read_text()[-4000:]}")


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with these settings of ours, named without the prefix, and no others."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")}
    return outside | {f"DRIFTSTREAM_{name}": str(value) for name, value in settings.items()}


PROGRAM = ("-m", "stream")


def command(
    settings: Mapping[str, object], *arguments: str, program: Sequence[str | Path] = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run one of the program's commands to its end, as from a terminal."""
    line = [sys.executable, *program, *arguments]
    return subprocess.run(line, env=environment(settings), capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def running_worker(
    broker: str,
    model: Path,
    folder: Path,
    partitions: int,
    more: Mapping[str, object] | None = None,
    log_level: str = "info",
    program: Sequence[str | Path] = PROGRAM,
    **engine: int | str | float,
) -> Iterator[Worker]:
    """Start a worker that keeps its state in `folder`, and wait until it serves. Killed at the end if it still runs.

    Args:
        broker: its address.
        model: folder of an exported model.
        folder: for state and log; one that is used again is gone on from.
        partitions: of the input topics.
        more: settings as in the environment, without the prefix.
        log_level: debug, info, warning or error.
        program: what Python runs: a script, perhaps, that breaks something first.
        engine: settings of the group `engine`.
    """
    port = free_port()
    settings = {
        "BROKER__SERVERS": broker,
        "TOPICS__PARTITIONS": partitions,
        "BROKER__SESSION_TIMEOUT_MS": 3000,  # the embedded broker lets a new member wait for it after another has left
        "MODEL__FOLDER": model,
        "MODEL__THREADS": 1,
        "ENGINE__GUARANTEE": "at_least_once",  # the embedded broker has no transactions
        "ENGINE__STATE_FOLDER": folder / "state",
        "ENGINE__ORDER_WAIT_MS": 200,
        "ENGINE__BACKLOG_WAIT_MS": 500,
        "WEB__PORT": port,
        "WEB__TOKEN": TOKEN,
        **{f"ENGINE__{name.upper()}": value for name, value in engine.items()},
        **(more or {}),
    }
    log = folder / "worker.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *program, "worker", "--log-level", log_level],
            env=environment(settings),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    worker = Worker(process, log, f"http://127.0.0.1:{port}")
    try:
        worker.wait_until_ready()
        yield worker
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def send(broker: str, records: Iterable[Sent], **client: str) -> list[Place]:
    """Produce records as they are, in their order, and return where each one lies. One without a key goes to partition 0."""
    places: dict[int, Place] = {}
    producer = Producer(
        {
            "bootstrap.servers": broker,
            **client,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "message.max.bytes": 2_000_000,
            "linger.ms": 5,
        }
    )
    sent = list(records)
    # Raised below: confluent-kafka never frees an exception that leaves a callback, nor therefore the producer in its frames.
    failures: list[KafkaError] = []
    for number, record in enumerate(sent):

        def delivered(error: KafkaError | None, message: Message, number: int = number) -> None:
            if error is not None:
                failures.append(error)
                return
            places[number] = Place(message.topic(), message.partition(), message.offset())

        where = {"partition": 0} if record.key is None else {}
        producer.produce(record.topic, record.value, record.key, on_delivery=delivered, **where)
    assert producer.flush(30) == 0
    if failures:
        raise KafkaException(failures[0])
    return [places[number] for number in range(len(sent))]


def read(broker: str, topic: str, at_least: int = 0, timeout: float = ANSWER_SECONDS, **client: str) -> list[Message]:
    """Return all that a topic holds, in the order of its partitions and offsets, once it holds `at_least` records.

    Fewer are returned where no more have come after `timeout` seconds: what a test says about that is clearer.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            **client,
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        messages: list[Message] = []
        at_end: set[int] = set()
        deadline = time.monotonic() + timeout
        while (len(messages) < at_least or at_end != set(partitions)) and time.monotonic() < deadline:
            for message in consumer.consume(1000, 0.1):
                error = message.error()
                if error is None:
                    messages.append(message)
                    at_end.discard(message.partition())
                elif error.code() == KafkaError._PARTITION_EOF:
                    at_end.add(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return sorted(messages, key=lambda m: (m.partition(), m.offset()))


def recommendations(broker: str, at_least: int = 0) -> list[dict[str, Any]]:
    """Return every recommendation that was published, decoded, once there are `at_least` so many."""
    return [json.loads(message.value()) for message in read(broker, "recommendations", at_least)]


def places(answers: Sequence[dict[str, Any]]) -> list[Place]:
    """Return the record that each recommendation answers."""
    return [Place(a["trigger"]["topic"], a["trigger"]["partition"], a["trigger"]["offset"]) for a in answers]
