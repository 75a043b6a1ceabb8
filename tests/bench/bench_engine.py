"""How fast is the engine alone? The tally job (tests/bench/tally.py) on a backlog, ours beside stock Faust and Quix Streams.

    python tests/bench/bench_engine.py [--peer faust] [--peer quix] [--events 200000] [--users 10000]

Ours and Quix Streams run exactly-once, stock Faust at its own guarantee. A run counts from the first event that comes to the job
until the last output is readable for `read_committed` consumers; starting up does not count. Stock Faust gets a shorter backlog
from the same users, since it takes so much longer: rates are compared. Every run's outputs are compared with what they must be.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import tally
from side_by_side import parser, report, take_turns
from stage import OURS, PEERS, fill, kafka, make_topic, new_engine, read, run_engine, unique

FLOORS = {"faust": 15.0, "quix": 1.5}
NAMES = {"faust": "stock Faust", "quix": "Quix Streams"}
FIRST_TIME = 1_700_000_000_000

Event = tuple[str, bytes]


def events(count: int, users: int, seed: int = 7) -> list[Event]:
    """Clicks of `users` users who take part alike: (user_id, the record's value)."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        user = f"user-{chance.randrange(users)}"
        click = {"event_id": f"{chance.getrandbits(64):016x}", "user_id": user, "item_id": f"item-{number % 997}"}
        made.append((user, json.dumps({**click, "timestamp": FIRST_TIME + number}).encode()))
    return made


def expected(sent: list[Event]) -> set[bytes]:
    """The outputs, each of which differs from all others."""
    states: dict[str, bytes] = {}
    answers = set()
    for user, value in sent:
        event_id = json.loads(value)["event_id"]
        states[user] = tally.advance(states.get(user), user, event_id)
        answers.add(tally.answer(user, event_id, states[user]))
    return answers


def side(python: str, program: str, broker: str, folder: Path, sent: list[Event], partitions: int) -> Callable[[], float]:
    """Return a run of one engine on these events, which gives its events/s."""
    topic = make_topic(broker, unique("events"), partitions)
    fill(broker, ((topic, user, value, 0) for user, value in sent))
    right = expected(sent)

    def run() -> float:
        engine = new_engine(python, program, broker, folder, topic, partitions)
        done = run_engine(engine, len(sent))
        found = [message.value() for message in read(broker, engine.output)]
        if len(found) != len(sent) or set(found) != right:
            missing, strange = len(right - set(found)), len(set(found) - right)
            raise RuntimeError(f"{program}: {len(found)} outputs, {missing} missing, {strange} wrong")
        return len(sent) / done.seconds

    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--peer", action="append", choices=sorted(FLOORS))
    options.add_argument("--events", type=int, default=200_000)
    options.add_argument("--faust-events", type=int, default=20_000)
    options.add_argument("--users", type=int, default=10_000)
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    sent = events(chosen.events, chosen.users)
    for peer in chosen.peer or sorted(FLOORS):
        theirs_sent = sent[: chosen.faust_events] if peer == "faust" else sent
        with kafka() as (broker, folder):  # of its own: it goes on compacting the changelogs of all that was run on it
            ours = side(OURS, "engine_ours.py", broker, folder, sent, chosen.partitions)
            theirs = side(PEERS, f"engine_{peer}.py", broker, folder, theirs_sent, chosen.partitions)
            mine, other = take_turns(chosen.rounds, ours, theirs)
        guarantee = "at_least_once" if peer == "faust" else "exactly_once"
        report(
            f"engine: 1.5 KB state a user with changelog, one record an event, exactly_once; against {NAMES[peer]}, {guarantee}",
            mine,
            other,
            "events/s",
            FLOORS[peer],
            events=[len(sent), len(theirs_sent)],
            users=chosen.users,
        )


if __name__ == "__main__":
    main()
