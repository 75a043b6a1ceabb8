"""A real Kafka for the benchmarks, events in it, and a clock that is the same for every engine."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.append(str(HERE.parent / "kafka"))
from broker import JVM, KafkaBroker  # noqa: E402

OURS = sys.executable
PEERS = str(REPOSITORY / ".venv-bench/bin/python")  # `make bench` builds it from requirements/bench.txt

POLL = 0.02  # seconds between two looks at what is committed
SETTLED = 1.5  # seconds without a change before the outputs are counted
PATIENCE = 120.0
AFTERWARDS = 10.0  # seconds until the last outputs of an engine that has ended are certainly seen


@contextmanager
def kafka(jvm: Sequence[str] = JVM) -> Iterator[tuple[str, Path]]:
    """A broker of one's own and a folder; yields the address and the folder. Ended by SIGTERM, the benchmark ends the broker first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with TemporaryDirectory(prefix="bench-") as folder, KafkaBroker(Path(folder) / "kafka", jvm=jvm) as broker:
        yield broker.address, Path(folder)


def unique(name: str) -> str:
    """A name that was not used before."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def make_topic(broker: str, name: str, partitions: int, config: Mapping[str, str] = MappingProxyType({})) -> str:
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(name, partitions, 1, config=dict(config))])[name].result(30)
    return name


def fill(broker: str, records: Iterable[tuple[str, str, bytes, int]]) -> None:
    """Send (topic, key, value, timestamp) in their order, placed as Java clients would. A timestamp of 0 is now."""
    producer = Producer(
        {"bootstrap.servers": broker, "partitioner": "murmur2_random", "linger.ms": 5, "enable.idempotence": True}
    )
    for topic, key, value, timestamp in records:
        while True:
            try:
                producer.produce(topic, value, key, timestamp=timestamp)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("the broker did not take the events")


def read(broker: str, topic: str, begin: Mapping[int, int] = MappingProxyType({}), timeout: float = 60.0) -> Iterator[Message]:
    """Everything committed in a topic, of each partition from its beginning or from the offset in `begin` on."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": unique("read"),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    try:
        open_ends = set(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, begin.get(number, OFFSET_BEGINNING)) for number in open_ends])
        deadline = time.monotonic() + timeout
        while open_ends and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 0.2):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_ends.discard(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()


class EndedError(RuntimeError):
    """An engine that ends after so many events has counted those whose transaction was aborted, and has not answered all."""


class Readable(threading.Thread):
    """Watches a topic as consumers see it that read committed records only: `seen` says when, `committed` says how many.

    When is told by offsets, up to where the topic can be read: asking for them costs every engine the same, and what is committed in
    one stroke is seen at once. A clock that reads would take time from the two cores for each record, so most from the fastest engine,
    and would see the end of a large transaction, as Quix Streams has, only when it has read it: 0.8 s later for 200,000 records. But
    aborted records and the markers of transactions have offsets too: how many is told by reading, when no more offsets come.
    """

    def __init__(self, broker: str, topic: str) -> None:
        super().__init__(daemon=True)
        self._broker, self._topic = broker, topic
        self._admin = AdminClient({"bootstrap.servers": broker})
        partitions = self._admin.list_topics(topic, timeout=10).topics[topic].partitions
        self._asked = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
        self._done = threading.Event()
        self._next = self._ends()  # to be counted, by partition
        self._count = 0
        self.seen = [(time.time(), sum(self._next.values()))]

    def run(self) -> None:
        while not self._done.wait(POLL):
            end = sum(self._ends().values())
            if end != self.seen[-1][1]:
                self.seen.append((time.time(), end))

    def _ends(self) -> dict[int, int]:
        deadline = time.time() + PATIENCE
        while True:
            answers = self._admin.list_offsets(self._asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=10)
            try:
                return {place.partition: future.result().offset for place, future in answers.items()}
            except KafkaException:  # a topic that has just been made has no leader yet; a busy broker does not answer in time
                if time.time() > deadline:
                    raise
                time.sleep(POLL)

    def committed(self) -> int:
        """How many records have come since the watch began. Reads those that have come since it was last asked."""
        for message in read(self._broker, self._topic, self._next):
            self._next[message.partition()] = message.offset() + 1
            self._count += 1
        return self._count

    def wait_for(self, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
        """Return when at least so many more records are committed and nothing more comes.

        Raises:
            EndedError: the engine has ended before.
            RuntimeError: it has failed, or nothing comes.
        """
        begin, deadline = self.seen[0][1], time.time() + PATIENCE
        while self.seen[-1][1] < begin + count or time.time() - self.seen[-1][0] < SETTLED or self.committed() < count:
            status = process.poll()
            if status == 0:
                deadline = min(deadline, time.time() + AFTERWARDS)
            if status not in (None, 0) or time.time() > deadline:
                kind = EndedError if status == 0 else RuntimeError
                raise kind(f"{self.committed()} of {count} outputs, status {status}: {_tail(log)}")
            time.sleep(0.05)
        self._done.set()
        self.join()


class Run(NamedTuple):
    """What came of a run.

    `seconds` from the first event that came to the job until the last output could be read (committed); `cpu` is the engine's own
    processor time from there on, in seconds, stopping included.
    """

    seconds: float
    cpu: float


class Engine(NamedTuple):
    """An engine's program, and what stays the same when it is started again: its group, its topics and its folder."""

    python: str
    program: str
    broker: str
    group: str
    events: str
    output: str
    partitions: int
    folder: Path

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "log"

    def running(self, count: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The engine for the length of a block; one that has to be told how many events to wait for is told `count`."""
        own = self.folder
        arguments = [self.broker, self.group, self.events, self.output, self.partitions, own / "state", own / "start", count]
        return started([self.python, str(HERE / self.program), *map(str, arguments)], self.log)

    def cpu_seconds(self) -> float:
        """Processor time of the running engine since its first event; 0 for one that has had none."""
        if not (self.folder / "start").exists():
            return 0.0
        starting, pid = (self.folder / "start").read_text().split()[1:]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") - float(starting)


def new_engine(python: str, program: str, broker: str, folder: Path, events: str, partitions: int) -> Engine:
    """An engine in a group of its own, with an empty disk and an empty topic for its outputs."""
    group = unique(Path(program).stem)
    own = folder / group
    own.mkdir()
    return Engine(python, program, broker, group, events, make_topic(broker, f"{group}-out", partitions), partitions, own)


def run_engine(engine: Engine, count: int) -> Run:
    """Let a new engine do its job on `count` events, from the first one on."""
    watch = Readable(engine.broker, engine.output)
    watch.start()
    before = _cpu_of_children()
    with engine.running(count) as process:
        watch.wait_for(count, process, engine.log)
    began, starting, _ = map(float, (engine.folder / "start").read_text().split())
    return Run(watch.seen[-1][0] - began, _cpu_of_children() - before - starting)


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of a block; ended as an operator would, and killed if it stays."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)]), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cpu_of_children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-60:])
