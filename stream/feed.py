"""Sends lines to Kafka: each one acknowledged, at the pace wished for, and not too far ahead of the consumer."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from stream.connection import BrokerError, connect
from stream.lines import Line

RECORD_OVERHEAD = 72
"""Bytes that a record takes beside key and value, at most: a batch header of 61 for a batch of one, and its own."""

CONNECT_SECONDS = 10
"""How long a broker may take to answer at all."""

Place = tuple[str, int]
"""Topic and partition."""


class FeedError(Exception):
    """Lines cannot be sent, or nobody consumes them; the message says what to do."""


class CommittedOffsets:
    """Where a consumer group stands, asked for without joining it. `close` when done.

    Args:
        connection: librdkafka's settings of the cluster.
        group: the group, which need not exist yet.
    """

    def __init__(self, connection: Mapping[str, Any], group: str) -> None:
        # With read_committed an offset that an open transaction is about to move would be waited for. The one before
        # it, which this answers at once, is the right one here: what has been consumed for certain.
        settings = {**connection, "group.id": group, "enable.auto.commit": False, "isolation.level": "read_uncommitted"}
        self._consumer = Consumer(settings)

    def __call__(self, places: Collection[Place]) -> dict[Place, int]:
        """Return the committed offset of each place that has one.

        Raises:
            FeedError: the broker did not tell in ten seconds.
        """
        try:
            found = self._consumer.committed([TopicPartition(*place) for place in sorted(places)], timeout=CONNECT_SECONDS)
        except KafkaException as error:
            raise FeedError(f"the broker does not tell the worker's offsets ({error.args[0].str()})") from error
        return {(tp.topic, tp.partition): tp.offset for tp in found if tp.error is None and tp.offset >= 0}

    def close(self) -> None:
        """Give up the connection."""
        self._consumer.close()


@dataclass(frozen=True)
class Ahead:
    """How far a feeder may run ahead of what has been consumed.

    Args:
        consumed: tells for each place up to which offset (exclusive) its records have been consumed.
        limit_bytes: what may wait in a partition; 5 MiB is where the embedded broker starts to lose records.
        patience: seconds without any progress of the consumer after which the feeder gives up.
        interval: seconds between two questions.
    """

    consumed: Callable[[Collection[Place]], Mapping[Place, int]]
    limit_bytes: int = 512 * 1024
    patience: float = 120.0
    interval: float = 0.1


class Feeder:
    """Sends lines to Kafka, and makes sure of each one. `close` when done, by `contextlib.closing` for example.

    A key goes to the partition that Java clients, aiokafka and Faust would choose, so that a user's searches and clicks
    meet in the same partition number. A line without a key goes to partition 0.

    Args:
        connection: librdkafka's settings of the cluster.
        speed: None for as fast as possible, or how many times as fast as event time.
        ahead: flow control; None sends regardless of consumers.

    Raises:
        FeedError: on creation, where no broker answers in ten seconds.
    """

    def __init__(self, connection: Mapping[str, Any], *, speed: float | None = None, ahead: Ahead | None = None) -> None:
        if speed is not None and not speed > 0:
            raise ValueError(f"speed must be positive, not {speed}")
        self._speed = speed
        self._ahead = ahead
        self._connection = connection
        self._topics = self._list_topics()  # first: a producer that finds no broker says so twenty times a second
        self._producer = Producer(
            {
                **connection,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,  # a retry neither repeats a line nor changes the order
                "linger.ms": 5,
                "on_delivery": self._delivered,
            }
        )
        self.sent = 0
        """Lines handed to the producer."""
        self.delivered = 0
        """Lines that the broker has acknowledged."""
        self._failure: str | None = None
        self._stop = threading.Event()
        self._start: tuple[float, int] | None = None
        self._in_flight = 0
        # What was delivered and not consumed yet: offset and bytes of each record, and the sum.
        self._waiting: dict[Place, deque[tuple[int, int]]] = defaultdict(deque)
        self._waiting_bytes: dict[Place, int] = defaultdict(int)
        self._asked = self._progress = monotonic()

    @property
    def lag(self) -> int:
        """Lines sent with flow control and not consumed yet, as far as known."""
        return self.sent - self.delivered + sum(map(len, tuple(self._waiting.values())))

    def stop(self) -> None:
        """Make `send` or `drain`, running in another thread, return early."""
        self._stop.set()

    def close(self) -> None:
        """Give up the connection; what an interrupted `send` left unacknowledged is dropped."""
        self._producer.purge()
        self._producer.close()

    def send(self, lines: Iterable[Line]) -> int:
        """Send lines in their order, and return how many once the broker has acknowledged them all.

        Raises:
            FeedError: a topic does not exist, a line was not accepted, or the consumer stands still.
        """
        before = self.sent
        room = 0
        self._progress = monotonic()
        for line in lines:
            self._pace(line.time)
            size = len(line.value) + len(line.key or b"") + RECORD_OVERHEAD
            if self._ahead is not None and size > room:
                room = self._wait_for_room(self._ahead, size)
            if self._stop.is_set():
                break
            room -= size
            self._produce(line, size)
        self._producer.flush()
        self._check()
        if self.delivered != self.sent:
            raise FeedError(f"{self.sent - self.delivered} lines were not acknowledged")
        return self.sent - before

    def drain(self) -> None:
        """Return when all that was sent with flow control has been consumed.

        Raises:
            FeedError: the consumer stands still.
        """
        if self._ahead is None:
            raise ValueError("a feeder without flow control does not know what has been consumed")
        self._progress = monotonic()
        while self.lag and not self._stop.is_set():
            self._turn(0.005)

    def _list_topics(self) -> set[str]:
        try:
            admin = connect(self._connection)
        except BrokerError as error:
            raise FeedError(str(error)) from error
        return set(admin.list_topics(timeout=CONNECT_SECONDS).topics)

    def _produce(self, line: Line, size: int) -> None:
        if line.topic not in self._topics:
            self._topics = self._list_topics()
            if line.topic not in self._topics:
                raise FeedError(f"topic {line.topic} does not exist; make it, or let a worker make it by starting one")
        self._in_flight += size
        while True:
            try:
                if line.key is None:
                    self._producer.produce(line.topic, line.value, partition=0)
                else:
                    self._producer.produce(line.topic, line.value, key=line.key)
                break
            except BufferError:  # the producer's own queue is full: the broker is slower than the file
                self._turn(0.05)
            except KafkaException as error:
                reason = error.args[0].str()
                raise FeedError(f"line {self.sent + 1} cannot be sent to {line.topic}: {reason}") from error
        self.sent += 1
        if self.sent % 256 == 0:
            self._turn(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        size = len(message) + len(message.key() or b"") + RECORD_OVERHEAD
        self._in_flight -= size
        if error is not None:
            self._failure = self._failure or f"a line was not accepted by {message.topic()}: {error.str()}"
            return
        self.delivered += 1
        if self._ahead is not None:
            place = (message.topic(), message.partition())
            self._waiting[place].append((message.offset(), size))
            self._waiting_bytes[place] += size

    def _turn(self, seconds: float) -> None:
        """Take in delivery reports, for at most `seconds`, and now and then what has been consumed."""
        self._producer.poll(seconds)
        self._check()
        if self._ahead is not None and monotonic() - self._asked >= self._ahead.interval:
            self._ask(self._ahead)

    def _check(self) -> None:
        if self._failure is not None:
            raise FeedError(self._failure)

    def _pace(self, time: int | None) -> None:
        """Wait until a line's time has come."""
        if self._speed is None or time is None:
            return
        if self._start is None:
            self._start = (monotonic(), time)
        begun, first = self._start
        while (left := begun + (time - first) / 1000 / self._speed - monotonic()) > 0 and not self._stop.is_set():
            self._turn(min(left, 0.1))

    def _wait_for_room(self, ahead: Ahead, size: int) -> int:
        """Wait until every partition has room for a line, and return the bytes that may follow at once."""
        while not self._stop.is_set():
            self._turn(0)
            # Where the lines in flight will end up is not known yet: they count for every partition.
            room = ahead.limit_bytes - self._in_flight - max(self._waiting_bytes.values(), default=0)
            if room >= size:
                return room
            if self._in_flight == 0 and not any(self._waiting_bytes.values()):
                return size  # larger than the limit, so it goes alone
            self._turn(0.005)
        return 0

    def _ask(self, ahead: Ahead) -> None:
        """Learn what has been consumed, and notice a consumer that stands still."""
        places = [place for place, records in self._waiting.items() if records]
        consumed = ahead.consumed(places) if places else {}
        self._asked = monotonic()
        if not places:
            self._progress = self._asked
        for place in places:
            records = self._waiting[place]
            while records and records[0][0] < consumed.get(place, 0):
                self._waiting_bytes[place] -= records.popleft()[1]
                self._progress = self._asked
        if self._asked - self._progress > ahead.patience:
            raise FeedError(f"nothing was consumed for {ahead.patience:.0f} seconds; is the worker running?")
