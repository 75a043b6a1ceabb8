"""Workers and brokers die at random moments while events come in; afterwards everything has to be as if they had not.

    python tests/chaos/chaos.py [--events 200000] [--seed N] [--guarantee exactly_once|at_least_once]

Prints one JSON line: events, kills, restarts, rebalances, lost, duplicated, state_mismatches and more. `make chaos` runs it.
Exit status 1 where a promise of docs/guarantees.md does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "kafka")]

from broker import KafkaBroker  # noqa: E402
from cluster import Workers  # noqa: E402
from scenario import Sent, events, items  # noqa: E402
from verify import verify  # noqa: E402

from stream import topics  # noqa: E402
from stream.connection import Broker  # noqa: E402
from stream.settings import Settings  # noqa: E402

QUIET_SECONDS = 120  # without any progress at the end: then something hangs


@dataclass(frozen=True)
class Plan:
    """How much happens. `pause` is the mean time between two blows, in seconds."""

    events: int = 200_000
    users: int = 2_000
    workers: int = 3
    kills: int = 20
    restarts: int = 3
    resizes: int = 6
    pause: float = 4.0


def run(plan: Plan, seed: int, guarantee: str, model: Path, folder: Path, kafka: KafkaBroker) -> dict[str, object]:
    """Run the events through workers under attack, and verify the outcome."""
    rng = random.Random(seed)
    with kafka as broker:
        settings = Settings(broker=Broker(servers=broker.address))
        topics.ensure(settings)
        produce(broker.address, items())
        environment = {
            "DRIFTSTREAM_BROKER__SERVERS": broker.address,
            "DRIFTSTREAM_BROKER__SESSION_TIMEOUT_MS": "6000",
            "DRIFTSTREAM_MODEL__FOLDER": str(model),
            "DRIFTSTREAM_MODEL__THREADS": "1",
            "DRIFTSTREAM_ENGINE__GUARANTEE": guarantee,
            "DRIFTSTREAM_ENGINE__BATCH_SIZE": "256",
            "DRIFTSTREAM_WEB__ENABLED": "false",
        }
        workers = Workers(folder / "workers", environment)
        feeder = threading.Thread(target=produce, args=(broker.address, events(plan.events, seed=seed, users=plan.users)))
        begun = time.monotonic()
        try:
            for _ in range(plan.workers):
                workers.add()
            feeder.start()
            attack(plan, rng, broker, workers)
            feeder.join()
            wait_until_consumed(settings, workers)
            workers.stop()
        finally:
            workers.close()
        outcome = verify(broker.address, model, settings)
    return {
        "events": plan.events,
        "guarantee": guarantee,
        "seed": seed,
        "seconds": round(time.monotonic() - begun),
        "kills": plan.kills,
        "restarts": plan.restarts,
        "resizes": plan.resizes,
        "rebalances": workers.rebalances(),
        "ended_by_themselves": workers.ended_by_themselves,
        **outcome,
    }


def attack(plan: Plan, rng: random.Random, broker: KafkaBroker, workers: Workers) -> None:
    """Kill, restart, add and remove, in an order and at moments that the seed decides."""
    blows = ["kill"] * plan.kills + ["restart"] * plan.restarts + ["resize"] * plan.resizes
    rng.shuffle(blows)
    restarts = resizes = 0
    for blow in blows:
        pause = time.monotonic() + rng.expovariate(1 / plan.pause)
        while time.monotonic() < pause:
            time.sleep(0.1)
            workers.supervise()
        if blow == "kill":
            workers.kill(rng.choice(workers.names), lose_disk=rng.random() < 0.2)
        elif blow == "restart":
            if restarts == 0:
                broker.kill()
                broker.start()
            else:
                broker.restart()
            restarts += 1
        else:
            if resizes % 2 == 0:
                workers.add()
            else:
                workers.remove(rng.choice(workers.names))
            resizes += 1
        print(f"{blow}: {', '.join(workers.names)}", file=sys.stderr, flush=True)


def produce(address: str, records: Sequence[Sent]) -> None:
    """Send everything, whatever happens to the broker meanwhile."""
    failures: list[str] = []

    def delivered(error: object, message: object) -> None:
        if error is not None:
            failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": address,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "message.timeout.ms": 600_000,
            "on_delivery": delivered,
            "log_level": 0,
        }
    )
    for record in records:
        while True:
            try:
                producer.produce(record.topic, record.value, record.key)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    if failures:
        raise RuntimeError(f"{len(failures)} records could not be sent: {failures[0]}")


def lag(settings: Settings) -> int:
    """How many input records the group has not committed yet."""
    admin = AdminClient({"bootstrap.servers": settings.broker.servers, "log_level": 0})
    names = settings.topics.name("searches"), settings.topics.name("clicks")
    inputs = [TopicPartition(name, p) for name in names for p in range(settings.topics.partitions)]
    asked = {tp: OffsetSpec.latest() for tp in inputs}
    ends = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED)
    end = {(tp.topic, tp.partition): future.result().offset for tp, future in ends.items()}
    group = settings.broker.group
    answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, inputs)])[group].result()
    return sum(end[tp.topic, tp.partition] - max(0, tp.offset) for tp in answer.topic_partitions)


def wait_until_consumed(settings: Settings, workers: Workers) -> None:
    """Return when the group has committed the end of both input topics."""
    last, behind = time.monotonic(), -1
    while True:
        try:
            now = lag(settings)
        except KafkaException:  # a broker that has just been restarted does not lead its partitions yet
            now = behind
        if now == 0:
            return
        if now != behind:
            last, behind = time.monotonic(), now
        elif time.monotonic() - last > QUIET_SECONDS:
            raise AssertionError(f"nothing was consumed for {QUIET_SECONDS} s, {now} records are left")
        time.sleep(0.5)
        workers.supervise()


def broken_promises(result: dict[str, object]) -> list[str]:
    """Return which numbers should be zero and are not."""
    zero = ["lost", "state_mismatches", "other_id", "strangers"]
    if result["guarantee"] == "exactly_once":
        zero += ["duplicated", "popularity_mismatches"]
    return [name for name in zero if result[name]]


def all_but_internal_topics(folder: str, names: list[str]) -> set[str]:
    """Name what need not be kept of a broker's folder: the topics whose names do not begin with two underscores."""
    return {name for name in names if Path(folder).name == "data" and not name.startswith("__")}


def main() -> None:
    """Run from the command line."""
    from tiny_model import write_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=Plan.events)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--guarantee", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument(
        "--keep", type=Path, help="keep the workers' logs there, the broker's, and what it knows of offsets and transactions"
    )
    arguments = parser.parse_args()
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep}: exists already; name a folder that does not, so that no run's logs are mixed up")
    print(f"seed {arguments.seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = Path(scratch)
        try:
            plan, kafka = Plan(events=arguments.events), KafkaBroker(folder / "kafka")
            result = run(plan, arguments.seed, arguments.guarantee, write_model(folder / "model"), folder, kafka)
        finally:
            if arguments.keep:
                shutil.copytree(folder / "workers", arguments.keep, ignore=shutil.ignore_patterns("*.db", "knowledge"))
                shutil.copytree(folder / "kafka", arguments.keep / "kafka", ignore=all_but_internal_topics)
    print(json.dumps(result), flush=True)
    if broken := broken_promises(result):
        sys.exit(f"not as promised: {', '.join(broken)}")


if __name__ == "__main__":
    main()
