"""How does the cost of an event grow with workers, partitions and users? The tally job (tests/bench/tally.py), ours alone.

    python tests/bench/bench_scaling.py [--what workers] [--what partitions] [--what users] [--most-users 1000000] [--log DIR]

Cost is the workers' own processor time, in µs an event: unlike a rate it does not depend on what else runs on the machine.
`theirs` is the small end of the range and `ours` the large one, so that a ratio of 2/3 is a growth of 1.5. How it grows with the
catalogue is asked of the recommender: tests/bench/bench_catalogue.py. With --log, users are asked of the whole job too: clicks on the
items of a data folder.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench_engine import events
from bench_job import click, send
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient
from side_by_side import GROWTH, parser, report, take_turns
from stage import OURS, Readable, fill, kafka, make_topic, new_engine, run_engine, unique

from stream.decode import Record
from stream.replay.source import Recording, read_folder
from stream.settings import Topics

PORTION = 200_000  # clicks of the whole job that are answered in one run
JOINED = 60.0  # seconds that workers may take to join and to share the partitions


def cost(broker: str, folder: Path, count: int, users: int, partitions: int) -> Callable[[], float]:
    """Return a measurement of a worker that has a state of every user on its disk: µs an event."""
    topic = make_topic(broker, unique("events"), partitions)
    engine = new_engine(OURS, "engine_ours.py", broker, folder, topic, partitions)
    known = [(f"user-{n}", value) for n, (_, value) in enumerate(events(users, 1))]
    fill(broker, ((topic, user, value.replace(b'"user-0"', f'"{user}"'.encode()), 0) for user, value in known))
    run_engine(engine, users)

    def measure() -> float:
        fill(broker, ((topic, user, value, 0) for user, value in events(count, users, time.time_ns())))
        return run_engine(engine, count).cpu / count * 1e6

    return measure


def job_cost(broker: str, folder: Path, items: Sequence[Record], count: int, users: int) -> Callable[[], float]:
    """The same for the whole job: each user has clicked once, and then users of all of them do."""
    chance, number = random.Random(7), itertools.count()
    ids = [(item.key or b"").decode() for item in items]
    prefix = send(broker, Recording("", items, [], 0), 4)
    engine = new_engine(OURS, "job_ours.py", broker, folder, prefix, 4)

    def clicks(of: Iterable[int]) -> float:
        made = [click(prefix, next(number), user, chance.choice(ids)) for user in of]
        fill(broker, made)
        return run_engine(engine, len(made)).cpu / len(made) * 1e6

    for at in range(0, users, PORTION):
        clicks(range(at, min(at + PORTION, users)))
    return lambda: clicks([chance.randrange(users) for _ in range(count)])


def wait_until_shared(broker: str, group: str, workers: int) -> None:
    """Return when each of so many workers has partitions, and has had the time to restore their states."""
    admin, deadline = AdminClient({"bootstrap.servers": broker}), time.monotonic() + JOINED
    while True:
        holding = []
        try:
            found = admin.describe_consumer_groups([group])[group].result(10)
            holding = [member for member in found.members if member.assignment and member.assignment.topic_partitions]
            if found.state == ConsumerGroupState.STABLE and len(holding) == workers:
                break
        except KafkaException:  # a coordinator that is just coming up
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(holding)} of {workers} workers have partitions after {JOINED:g} s")
        time.sleep(0.2)
    time.sleep(2.0)


def shared(broker: str, folder: Path, count: int, users: int, workers: int) -> Callable[[], float]:
    """Return a measurement of so many workers of one group that find a backlog when all have joined: µs an event, of all together."""

    def measure() -> float:
        topic = make_topic(broker, unique("events"), 4)
        first = new_engine(OURS, "engine_ours.py", broker, folder, topic, 4)
        engines = [first._replace(folder=folder / unique("worker")) for _ in range(workers)]
        watch = Readable(broker, first.output)
        watch.start()
        with ExitStack() as stack:
            for engine in engines:
                engine.folder.mkdir()
                process = stack.enter_context(engine.running(count))
            wait_until_shared(broker, first.group, workers)
            fill(broker, ((topic, user, value, 0) for user, value in events(count, users)))
            watch.wait_for(count, process, engines[-1].log)
            spent = sum(engine.cpu_seconds() for engine in engines)
        return spent / count * 1e6

    return measure


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--what", action="append", choices=("workers", "partitions", "users"))
    options.add_argument("--events", type=int, default=100_000)
    options.add_argument("--users", type=int, default=10_000)
    options.add_argument("--most-users", type=int, default=200_000)
    options.add_argument("--log", type=Path, help="data folder with items: the whole job is asked too")
    chosen = options.parse_args()
    count, users = chosen.events, chosen.users
    with kafka() as (broker, folder):
        for what in chosen.what or ("workers", "partitions", "users"):
            if what == "workers":
                ends, small, large = (1, 2), *(shared(broker, folder, count, users, n) for n in (1, 2))
            elif what == "partitions":
                ends, small, large = (4, 64), *(cost(broker, folder, count, users, n) for n in (4, 64))
            else:
                most = chosen.most_users
                ends, small, large = (users, most), *(cost(broker, folder, count, n, 4) for n in (users, most))
            after, before = take_turns(chosen.rounds, large, small)
            question = f"cost of an event with {ends[1]:,} {what}; against {ends[0]:,}"
            report(question, after, before, "CPU us/event", GROWTH, more_is_better=False)
            if what == "users" and chosen.log is not None:
                items = read_folder(chosen.log, Topics(), 1).items
                small, large = (
                    job_cost(broker, folder, items, count // 5, n) for n in ends
                )  # an event of it costs ten times as much
                after, before = take_turns(chosen.rounds, large, small)
                report(f"{question}: the whole job", after, before, "CPU us/event", GROWTH, more_is_better=False)


if __name__ == "__main__":
    main()
