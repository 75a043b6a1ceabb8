"""How long from producing an event until its recommendation can be read, at half the measured capacity, exactly_once?

    python tests/bench/bench_latency.py ../shared/data/bestbuy [--warm-up 60] [--seconds 10] [--share 0.5]

The broker is started as Kafka's own script starts it, and is under load for --warm-up seconds first, since Java compiles what it runs
often: the log's first --known events come over and over, each time from other users, 1,500 a second. The next --backlog events, all
there before the worker goes on, give its capacity. The rest go on at a share of that rate, evenly, and a `read_committed` consumer
notes when each answer arrives. The time that the producer lingers is part of it. A round is a window of --seconds, or of less where
the log is too short. Peers have no part in this: `theirs` is the floor, in ms. The worker commits after every batch: there is no
commit interval beside the time that a batch takes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from bench_job import send
from broker import JVM_TO_LAST
from confluent_kafka import Consumer, Producer
from side_by_side import parser, report
from stage import OURS, PATIENCE, fill, kafka, new_engine, unique

from stream.decode import Event
from stream.engine.reader import KafkaRecord
from stream.replay.source import Recording, read_folder
from stream.settings import Topics

FLOORS = {"p50": 40.0, "p99": 150.0}
WEB_PORT = "16066"
WARM_RATE = 1_500


class Arrivals(threading.Thread):
    """Notes when each recommendation can be read, and when it was produced, by its event's id."""

    def __init__(self, broker: str, topic: str) -> None:
        super().__init__(daemon=True)
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": unique("arrivals"),
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.subscribe([topic])
        self._done = threading.Event()
        self.at: dict[str, tuple[float, float]] = {}  # event_id: produced by the worker, readable; epoch seconds

    def run(self) -> None:
        while not self._done.is_set():
            first = self._consumer.poll(0.1)
            now = time.time()
            for message in [first, *self._consumer.consume(1000, 0.0)] if first is not None else []:
                if message.error() is None:
                    name = json.loads(message.value())["trigger"]["event_id"]
                    self.at[name] = message.timestamp()[1] / 1000, now
        self._consumer.close()

    def wait_for(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Return when so many events have been answered since the beginning."""
        deadline = time.time() + PATIENCE
        while len(self.at) < count:
            if process.poll() is not None or time.time() > deadline:
                raise RuntimeError(f"{len(self.at)} of {count} events are answered; the worker's status is {process.poll()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self._done.set()
        self.join()


def of_others(events: Sequence[Event], number: int) -> list[Event]:
    """The same behaviour of other users, over and over and each time later, up to where the events themselves begin."""
    span, made = events[-1].time - events[0].time + 1, list[Event]()
    for turn in range(-(-number // len(events)), 0, -1):
        for event in events:
            ids = {name: f"{getattr(event.behaviour, name)}-{turn}" for name in ("event_id", "user_id")}
            moment = event.time - turn * span
            behaviour = msgspec.structs.replace(event.behaviour, timestamp=moment, **ids)
            key, value = behaviour.user_id.encode(), msgspec.json.encode(behaviour)
            made.append(Event(moment, behaviour, KafkaRecord(event.record.topic, 0, 0, moment, key, value)))
    return made[-number:]


def paced(broker: str, prefix: str, events: Sequence[Event], rate: float, linger: float) -> dict[str, float]:
    """Send events evenly at this rate; return when each was given to the client, epoch seconds."""
    producer = Producer({"bootstrap.servers": broker, "partitioner": "murmur2_random", "linger.ms": linger})
    sent, began = {}, time.time()
    for number, event in enumerate(events):
        wait = began + number / rate - time.time()
        if wait > 0:
            producer.poll(wait)
            time.sleep(max(0.0, began + number / rate - time.time()))
        sent[event.behaviour.event_id] = time.time()
        key, topic = event.behaviour.user_id, f"{prefix}-{event.record.topic}"
        producer.produce(topic, event.record.value, key, timestamp=event.time)
    producer.flush(30)
    return sent


def means() -> dict[str, float]:
    """What the worker says of itself: sums and counts so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{WEB_PORT}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {name: float(value) for name, value in re.findall(r"^driftstream_(\w+_(?:sum|count)) (\S+)$", text, re.M)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--warm-up", type=float, default=60.0, help="seconds")
    options.add_argument("--known", type=int, default=10_000, help="events of the log that the warm-up consists of")
    options.add_argument("--backlog", type=int, default=10_000)
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--share", type=float, default=0.5, help="of the capacity")
    options.add_argument("--linger", type=float, default=5.0, help="ms that the producer waits for company; 5 is its default")
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    os.environ["BENCH_WEB_PORT"] = WEB_PORT
    recording = read_folder(chosen.data, Topics())
    known, later = recording.events[: chosen.known], recording.events[chosen.known :]
    warm_up = of_others(known, int(chosen.warm_up * WARM_RATE))
    backlog, rest = later[: chosen.backlog], later[chosen.backlog :]
    with kafka(JVM_TO_LAST) as (broker, folder):
        prefix = send(broker, Recording("", recording.items, [], 0), chosen.partitions)
        engine = new_engine(OURS, "job_ours.py", broker, folder, prefix, chosen.partitions)
        arrivals = Arrivals(broker, engine.output)
        arrivals.start()
        with engine.running(0) as process:
            paced(broker, prefix, warm_up, WARM_RATE, chosen.linger)
            arrivals.wait_for(len(warm_up), process)
            process.send_signal(signal.SIGSTOP)
            fill(broker, ((f"{prefix}-{e.record.topic}", e.behaviour.user_id, e.record.value or b"", e.time) for e in backlog))
            began = time.time()
            process.send_signal(signal.SIGCONT)
            arrivals.wait_for(len(warm_up) + len(backlog), process)
            capacity = len(backlog) / (max(arrivals.at[event.behaviour.event_id][1] for event in backlog) - began)
            rate, rounds, before = capacity * chosen.share, [], means()
            count = min(int(rate * chosen.seconds), len(rest) // chosen.rounds)
            for number in range(chosen.rounds):
                window = rest[number * count : (number + 1) * count]
                sent = paced(broker, prefix, window, rate, chosen.linger)
                time.sleep(2.0)
                lost = sent.keys() - arrivals.at.keys()
                if lost:
                    raise RuntimeError(f"{len(lost)} of {count} events have no answer 2 s after the last was sent")
                rounds.append([(sent[name], *arrivals.at[name]) for name in sent])
            after = means()
        arrivals.stop()
    times = np.array([place for one in rounds for place in one]) * 1000
    spent = {name: after[name] - before[name] for name in after}
    where = {
        "until_produced_p50": round(float(np.median(times[:, 1] - times[:, 0])), 1),
        "commit_and_read_p50": round(float(np.median(times[:, 2] - times[:, 1])), 1),
        "batch_events": round(spent["batch_events_sum"] / spent["batch_events_count"], 1),
        "computing_a_batch": round(spent["processing_seconds_sum"] / spent["processing_seconds_count"] * 1000, 1),
        "checkpoint_of_a_batch": round(spent["checkpoint_seconds_sum"] / spent["checkpoint_seconds_count"] * 1000, 1),
    }
    for name, floor in FLOORS.items():
        found = [float(np.percentile([readable - sent for sent, _, readable in one], float(name[1:]))) * 1000 for one in rounds]
        report(
            f"latency from produce to recommendation readable, exactly_once, {chosen.share:g} of capacity: {name}",
            found,
            [floor] * len(found),
            "ms",
            1.0,
            more_is_better=False,
            warm_up_s=chosen.warm_up,
            capacity=round(capacity),
            rate=round(rate),
            commit_interval="every batch",
            linger_ms=chosen.linger,
            where_ms=where,
            worst_round=round(max(found), 1),
            median_of_rounds=round(statistics.median(found), 1),
        )


if __name__ == "__main__":
    main()
