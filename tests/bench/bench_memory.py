"""How much memory does a worker hold after many users, and does it stay there?

    python tests/bench/bench_memory.py ../shared/data/bestbuy [--users 200000] [--minutes 2] [--rate 500]

The worker with the whole job, the log's catalogue and one click a user, as fast as it answers them; then clicks of the same users go on
for --minutes, --rate a second and every second (the soak). `ours` is the resident set, `theirs` the limit of 1,500 MB; for the soak,
`theirs` is the resident set when it begins and `ours` at its end, and `quarters` the medians of its quarters. --burst sends as many
clicks of the soak at once, with a pause after them, so that the rate is the same.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

from bench_job import click, send
from side_by_side import parser, report
from stage import OURS, Readable, fill, kafka, new_engine

from stream.replay.source import Recording, read_folder
from stream.settings import Topics

LIMIT_MB = 1500.0
PORTION = 5_000  # new users that click at once
FLAT = 0.95


def resident_mb(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def quarters(course: list[float]) -> list[list[float]]:
    """The four parts of a course, as long as each other as far as that goes."""
    ends = [len(course) * part // 4 for part in range(5)]
    return [course[begin:end] for begin, end in pairwise(ends)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--users", type=int, default=200_000)
    options.add_argument("--minutes", type=float, default=2.0)
    options.add_argument("--rate", type=int, default=500)
    options.add_argument("--burst", type=int, help="clicks of the soak that are sent at once; those of a second unless given")
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    recording = read_folder(chosen.data, Topics(), 1)
    ids = [(item.key or b"").decode() for item in recording.items]
    chance, sent = random.Random(7), 0
    with kafka() as (broker, folder):
        prefix = send(broker, Recording("", recording.items, [], 0), chosen.partitions)
        engine = new_engine(OURS, "job_ours.py", broker, folder, prefix, chosen.partitions)
        watch = Readable(broker, engine.output)

        def clicks(users: list[int]) -> None:
            nonlocal sent
            made = [click(prefix, sent + place, user, chance.choice(ids)) for place, user in enumerate(users, 1)]
            sent += len(made)
            fill(broker, made)

        with engine.running(0) as process:

            def wait_until_answered(count: int) -> None:
                while watch.committed() < count:
                    time.sleep(0.05)
                    if process.poll() is not None:
                        raise RuntimeError(engine.log.read_text()[-2000:])

            for at in range(0, chosen.users, PORTION):
                clicks(list(range(at, min(at + PORTION, chosen.users))))
                wait_until_answered(sent - 2 * PORTION)
            wait_until_answered(sent)
            filled = resident_mb(process.pid)
            report(f"resident set after {chosen.users:,} users", [filled], [LIMIT_MB], "MB", 1.0, more_is_better=False)
            burst = chosen.burst or chosen.rate
            course, begun = [filled], time.time()
            while (due := begun + len(course) * burst / chosen.rate) < begun + chosen.minutes * 60:
                clicks([chance.randrange(chosen.users) for _ in range(burst)])
                time.sleep(max(0.0, due - time.time()))
                course.append(resident_mb(process.pid))
                print(f"{(time.time() - begun) / 60:.1f} minutes: {course[-1]:.0f} MB", file=sys.stderr, flush=True)
            lasted = time.time() - begun
            wait_until_answered(sent)
            report(
                f"resident set after a soak of {chosen.minutes:g} minutes; against its beginning",
                [course[-1]],
                [course[0]],
                "MB",
                FLAT,
                more_is_better=False,
                highest=round(max(course), 1),
                quarters=[round(statistics.median(part)) for part in quarters(course) if part],
                events=sent,
                events_per_second=round((sent - chosen.users) / lasted),
            )


if __name__ == "__main__":
    main()
