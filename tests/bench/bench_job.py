"""How fast is the whole job? A recorded log as a backlog, every event answered: our worker beside the same pipeline in other
engines.

    python tests/bench/bench_job.py ../shared/data/bestbuy [--peer faust] [--peer quix] [--events 20000]

Ours and Quix Streams run exactly-once, stock Faust at its own guarantee. The catalogue is encoded before; queries are not. A run
counts from the first event that comes to the pipeline until the last recommendation is readable. Each engine must answer each
event once, under the same recommendation_id. The items may differ where several partitions are read: what was learned across
users when an event is answered depends on how the partitions are merged. The share of equal first items is reported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench_engine import FLOORS as ENGINES
from bench_engine import NAMES
from side_by_side import parser, report, take_turns
from stage import OURS, PEERS, EndedError, Engine, fill, kafka, make_topic, new_engine, read, run_engine, unique

from stream.decode import Event
from stream.replay.source import Recording, read_folder
from stream.settings import Topics

FLOORS = {"faust": 8.0, "quix": 1.5}
ATTEMPTS = 3


def send(broker: str, recording: Recording, partitions: int) -> str:
    """Send catalogue and events, the latter at their event times, and return the prefix of their topics."""
    prefix = unique("log")
    forever = {"retention.ms": "-1"}  # the log is older than what Kafka keeps by default
    for name in ("searches", "clicks"):
        make_topic(broker, f"{prefix}-{name}", partitions, forever)
    make_topic(broker, f"{prefix}-items", 1, {"cleanup.policy": "compact"})
    fill(broker, ((f"{prefix}-items", (item.key or b"").decode(), item.value or b"", 0) for item in recording.items))
    fill(
        broker,
        (
            (f"{prefix}-{event.record.topic}", event.behaviour.user_id, event.record.value or b"", event.time)
            for event in recording.events
        ),
    )
    return prefix


def click(prefix: str, number: int, user: int, item_id: str) -> tuple[str, str, bytes, int]:
    """One click, now, as `fill` takes it."""
    made = {"event_id": f"{number:x}", "user_id": f"user-{user}", "item_id": item_id, "timestamp": time.time_ns() // 1_000_000}
    return f"{prefix}-clicks", f"user-{user}", json.dumps(made).encode(), 0


class Side:
    """One engine with the job; keeps what it answered, to be compared."""

    def __init__(
        self, python: str, program: str, broker: str, folder: Path, prefix: str, events: list[Event], parts: int
    ) -> None:
        self._make: Callable[[], Engine] = lambda: new_engine(python, program, broker, folder, prefix, parts)
        self._events = {(f"{prefix}-{e.record.topic}", e.behaviour.user_id, e.behaviour.event_id) for e in events}
        self.first: dict[str, str] = {}
        self.again = 0  # runs that had to be done again

    def __call__(self) -> float:
        """Run it and return events/s. An engine that ends by itself before it has answered all, since it counted wrong, runs again."""
        for _ in range(ATTEMPTS):
            engine = self._make()
            try:
                done = run_engine(engine, len(self._events))
            except EndedError as error:
                self.again += 1
                print(f"{engine.program}: {error}", file=sys.stderr, flush=True)
                continue
            answers = [json.loads(message.value()) for message in read(engine.broker, engine.output)]
            answered = {(a["trigger"]["topic"], a["user_id"], a["trigger"]["event_id"]) for a in answers}
            if len(answers) != len(self._events) or answered != self._events:
                missing, strange = len(self._events - answered), len(answered - self._events)
                raise RuntimeError(f"{engine.program}: {len(answers)} answers, {missing} missing, {strange} strange")
            self.first = {a["recommendation_id"]: a["items"][0]["item_id"] for a in answers}
            return len(self._events) / done.seconds
        raise RuntimeError(f"{engine.program} did not answer every event in {ATTEMPTS} runs")


def agreement(ours: Side, theirs: Side) -> float:
    """The share of events with the same first item.

    Raises:
        RuntimeError: the recommendations' ids differ.
    """
    if ours.first.keys() != theirs.first.keys():
        raise RuntimeError("the engines' recommendations have other ids")
    return sum(ours.first[name] == theirs.first[name] for name in ours.first) / len(ours.first)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--peer", action="append", choices=sorted(ENGINES))
    options.add_argument("--events", type=int, default=20_000)
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    recording = read_folder(chosen.data, Topics(), chosen.events)
    with kafka() as (broker, folder):
        prefix = send(broker, recording, chosen.partitions)
        side: Callable[[str, str], Side] = lambda python, program: Side(  # noqa: E731
            python, program, broker, folder, prefix, recording.events, chosen.partitions
        )
        ours = side(OURS, "job_ours.py")
        for peer in chosen.peer or sorted(FLOORS):
            theirs = side(PEERS, f"job_{peer}.py")
            mine, other = take_turns(chosen.rounds, ours, theirs)
            report(
                f"the whole job on a recorded log, every event, exactly_once; against the same pipeline in {NAMES[peer]}",
                mine,
                other,
                "events/s",
                FLOORS[peer],
                events=len(recording.events),
                done_again=[ours.again, theirs.again],
                same_first_item=round(agreement(ours, theirs), 4),
            )


if __name__ == "__main__":
    main()
