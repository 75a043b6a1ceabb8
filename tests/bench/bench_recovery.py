"""How long does it take to restore users' states from the changelog? Ours beside Quix Streams.

    python tests/bench/bench_recovery.py [--users 1000000]

Each engine first makes the states by itself: the tally job with one event a user. Then it is stopped, its disk is emptied, and it
is started again with one more event of a known user waiting: from the start of the process until that event's answer is readable.
The same with its disk left alone is the warm restart. What restoring takes is the difference: neither imports nor joining count. Of
fewer than some hundred thousand users it is too small to be told from them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_engine import FIRST_TIME
from side_by_side import parser, report, take_turns
from stage import OURS, PEERS, Engine, Readable, fill, kafka, make_topic, new_engine, read, run_engine, unique


def click(user: str, number: int) -> bytes:
    return json.dumps(
        {"event_id": f"{number:016x}", "user_id": user, "item_id": "item", "timestamp": FIRST_TIME + number}
    ).encode()


class Restarts:
    """An engine with the states of so many users, to be started again and again."""

    def __init__(self, engine: Engine, users: int) -> None:
        self._engine = engine
        self._sent = users
        fill(engine.broker, ((engine.events, f"user-{n}", click(f"user-{n}", n), 0) for n in range(users)))
        run_engine(engine, users)
        self._probes = 0
        self.warm: list[float] = []
        self.cold: list[float] = []

    def both(self) -> float:
        """Start warm, then cold, and return the difference in seconds."""
        self.warm.append(self._start())
        shutil.rmtree(self._engine.folder / "state")
        self.cold.append(self._start())
        return self.cold[-1] - self.warm[-1]

    def _start(self) -> float:
        engine = self._engine
        self._probes += 1
        fill(engine.broker, [(engine.events, "user-0", click("user-0", self._sent + self._probes), 0)])
        watch = Readable(engine.broker, engine.output)
        watch.start()
        began = time.time()
        with engine.running(1) as process:
            watch.wait_for(1, process, engine.log)
        return watch.seen[-1][0] - began

    def check(self) -> None:
        """Every probe was answered with all that came before it: the state was there."""
        counts = [json.loads(m.value())["count"] for m in read(self._engine.broker, self._engine.output) if m.key() == b"user-0"]
        if counts != list(range(1, self._probes + 2)):
            raise RuntimeError(f"{self._engine.program}: user-0 was counted {counts}")


@contextmanager
def stored(broker: str, folder: Path, python: str, program: str, users: int, partitions: int) -> Iterator[Restarts]:
    events = make_topic(broker, unique("events"), partitions)
    made = Restarts(new_engine(python, program, broker, folder, events, partitions), users)
    yield made
    made.check()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--users", type=int, default=1_000_000)
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    size = chosen.users, chosen.partitions
    with (
        kafka() as (broker, folder),
        stored(broker, folder, OURS, "engine_ours.py", *size) as ours,
        stored(broker, folder, PEERS, "engine_quix.py", *size) as theirs,
    ):
        mine, other = take_turns(chosen.rounds, ours.both, theirs.both)
    report(
        f"recovery of {chosen.users:,} users of 1.5 KB from the changelog on an empty disk; against Quix Streams",
        mine,
        other,
        "seconds",
        1.5,
        more_is_better=False,
        warm_restart={"ours": round(statistics.median(ours.warm), 2), "theirs": round(statistics.median(theirs.warm), 2)},
        cold_start={"ours": round(statistics.median(ours.cold), 2), "theirs": round(statistics.median(theirs.cold), 2)},
    )


if __name__ == "__main__":
    main()
