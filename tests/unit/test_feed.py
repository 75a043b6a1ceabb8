import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from aiokafka.partitioner import murmur2
from confluent_kafka import Consumer, TopicPartition

from stream.engine.embedded_broker import PARTITION_BYTES, EmbeddedBroker
from stream.feed import Ahead, CommittedOffsets, Feeder, FeedError
from stream.lines import Line

T = 1_700_000_000_000
PARTITIONS = 4


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def topic(broker: EmbeddedBroker, request: pytest.FixtureRequest) -> str:
    name = request.node.name[:200]
    broker.create_topic(name, PARTITIONS)
    return name


@pytest.fixture
def connection(broker: EmbeddedBroker) -> dict[str, object]:
    return {"bootstrap.servers": broker.address, "log_level": 0}


def read_all(connection: dict[str, object], topic: str, count: int) -> list[tuple[int, bytes | None, bytes]]:
    """Read partition, key and value of `count` records and of those that may follow."""
    consumer = Consumer({**connection, "group.id": "reader"})
    consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITIONS)])
    seen = []
    deadline = time.monotonic() + 10
    while len(seen) < count and time.monotonic() < deadline:
        seen += [(m.partition(), m.key(), m.value()) for m in consumer.consume(1000, 0.1)]
    seen += [(m.partition(), m.key(), m.value()) for m in consumer.consume(1000, 0.3)]
    consumer.close()
    return seen


class SlowWorker(threading.Thread):
    """Consumes in a group and commits what it has consumed, a batch at a time."""

    def __init__(self, connection: dict[str, object], topic: str, group: str, pause: float) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.furthest_behind = 0
        self._pause = pause
        self._done = threading.Event()
        settings = {"group.id": group, "auto.offset.reset": "error", "enable.auto.commit": False}
        # No prefetching: what waits in this consumer's memory would not be lost by the broker.
        self._consumer = Consumer(
            {
                **connection,
                **settings,
                "queued.max.messages.kbytes": 16,
                "fetch.queue.backoff.ms": 1,
                "fetch.max.bytes": 65_536,
                "message.max.bytes": 65_536,
            }
        )
        self._consumer.assign([TopicPartition(topic, n, 0) for n in range(PARTITIONS)])

    def run(self) -> None:
        while not self._done.is_set():
            for message in self._consumer.consume(100, 0.05):
                assert message.error() is None
                self.seen.append(message.value())
            position = [place for place in self._consumer.position(self._consumer.assignment()) if place.offset >= 0]
            if position:
                self._consumer.commit(offsets=position, asynchronous=False)
            time.sleep(self._pause)
        self._consumer.close()

    def end(self) -> None:
        self._done.set()
        self.join()


def test_keys_go_where_aiokafka_and_faust_put_them_and_keyless_lines_to_partition_0(
    connection: dict[str, object], topic: str
) -> None:
    keyed = [Line(topic, f"benutzer-ü-{n}".encode(), b"%d" % n, None) for n in range(200)]
    keyless = [Line(topic, None, b"{broken %d" % n, None) for n in range(20)]
    with closing(Feeder(connection)) as feeder:
        assert feeder.send(keyed + keyless) == 220
        assert feeder.sent == feeder.delivered == 220
    found = read_all(connection, topic, 220)
    assert sorted((key, value) for _, key, value in found if key) == sorted((line.key, line.value) for line in keyed)
    assert all(partition == (murmur2(key) & 0x7FFFFFFF) % PARTITIONS for partition, key, _ in found if key)
    assert [value for partition, key, value in found if key is None and partition == 0] == [k.value for k in keyless]


def test_lines_of_a_key_keep_their_order(connection: dict[str, object], topic: str) -> None:
    with closing(Feeder(connection)) as feeder:
        feeder.send(Line(topic, b"u%d" % (n % 7), b"%d" % n, None) for n in range(5000))
    found = read_all(connection, topic, 5000)
    for user in {key for _, key, _ in found}:
        numbers = [int(value) for _, key, value in found if key == user]
        assert numbers == sorted(numbers)
    assert len(found) == 5000


def test_with_flow_control_nothing_is_lost_though_a_partition_gets_more_than_the_broker_keeps(
    connection: dict[str, object], topic: str
) -> None:
    lines = [Line(topic, b"one user", b"%2000d" % n, None) for n in range(2 * PARTITION_BYTES // 2000)]
    worker = SlowWorker(connection, topic, "slow", pause=0.02)
    worker.start()
    limit, most = 256 * 1024, 0
    with closing(CommittedOffsets(connection, "slow")) as committed:

        def consumed(places):  # type: ignore[no-untyped-def]
            nonlocal most
            most = max(most, feeder.delivered - len(worker.seen))
            return committed(places)

        with closing(Feeder(connection, ahead=Ahead(consumed, limit_bytes=limit, interval=0.02))) as feeder:
            feeder.send(lines)
            feeder.drain()
            assert feeder.lag == 0
    worker.end()
    assert worker.seen == [line.value for line in lines]
    assert 0 < most * 2000 <= limit


def test_a_line_larger_than_the_limit_goes_alone(connection: dict[str, object], topic: str) -> None:
    worker = SlowWorker(connection, topic, "alone", pause=0)
    worker.start()
    with closing(CommittedOffsets(connection, "alone")) as committed:
        ahead = Ahead(committed, limit_bytes=1000, interval=0.01)
        with closing(Feeder(connection, ahead=ahead)) as feeder:
            feeder.send([Line(topic, b"u", b"x" * 3000, None)] * 3)
            feeder.drain()
    worker.end()
    assert len(worker.seen) == 3


def test_a_worker_that_consumes_nothing_is_noticed(connection: dict[str, object], topic: str) -> None:
    lines = [Line(topic, b"u", b"x" * 100, None)] * 100
    with closing(CommittedOffsets(connection, "nobody")) as committed:
        ahead = Ahead(committed, limit_bytes=2000, patience=0.3, interval=0.01)
        with (
            closing(Feeder(connection, ahead=ahead)) as feeder,
            pytest.raises(FeedError, match="is the worker running"),
        ):
            feeder.send(lines)
    assert len(read_all(connection, topic, 11)) == 2000 // (100 + 1 + 72)


def test_speed_is_relative_to_event_time_and_untimed_lines_do_not_wait(connection: dict[str, object], topic: str) -> None:
    lines = [Line(topic, b"u", b"x", time) for time in (T, None, T + 3000, T + 1000, T + 6000)]
    with closing(Feeder(connection, speed=10)) as feeder:
        begun = time.monotonic()
        feeder.send(lines)
        assert 0.6 <= time.monotonic() - begun < 2
    with pytest.raises(ValueError, match="speed"):
        Feeder(connection, speed=0)


def test_sending_can_be_stopped_from_another_thread(connection: dict[str, object], topic: str) -> None:
    lines = [Line(topic, b"u", b"x", T), Line(topic, b"u", b"x", T + 3_600_000)]
    with closing(Feeder(connection, speed=1)) as feeder:
        threading.Timer(0.3, feeder.stop).start()
        assert feeder.send(lines) == 1


def test_a_topic_that_does_not_exist_and_a_line_that_is_too_large_are_named(connection: dict[str, object], topic: str) -> None:
    with closing(Feeder(connection)) as feeder:
        with pytest.raises(FeedError, match="topic absent does not exist"):
            feeder.send([Line("absent", b"u", b"x", None)])
        with pytest.raises(FeedError, match="line 2 cannot be sent"):
            feeder.send([Line(topic, b"u", b"x", None), Line(topic, b"u", b"x" * 2_000_000, None)])


def test_a_line_that_the_broker_does_not_acknowledge_is_an_error() -> None:
    with EmbeddedBroker({"clicks": 1}) as broker:
        feeder = Feeder({"bootstrap.servers": broker.address, "log_level": 0, "message.timeout.ms": 3000})
        feeder.send([Line("clicks", b"u", b"x", None)])
    with closing(feeder), pytest.raises(FeedError, match="not accepted by clicks"):
        feeder.send([Line("clicks", b"u", b"y", None)])


def test_no_broker_is_an_error_that_names_the_address_and_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stream.connection.ANSWER_SECONDS", 0.5)
    with pytest.raises(FeedError, match=r"no broker answers at 127\.0\.0\.1:1"):
        Feeder({"bootstrap.servers": "127.0.0.1:1"})
    assert capfd.readouterr().err == ""
