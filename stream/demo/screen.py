"""What the demo shows: live progress, and at the end a summary, in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from stream.demo.reader import Reader
from stream.feed import Feeder
from stream.lines import Line
from stream.sample import Shift

RATE_WINDOW = 2.0  # seconds over which events/s is measured
LATE = 30  # events after a shift within which an alarm counts as having found it


class _Identity(msgspec.Struct):
    user_id: str
    event_id: str


class Screen:
    """Live progress on standard error; nothing at all if quiet."""

    def __init__(self, titles: Mapping[str, str], total: int, *, quiet: bool) -> None:
        self._titles = titles
        self._quiet = quiet
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[rate]:,.0f} events/s"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("lag {task.fields[lag]:,}"),
            TextColumn("{task.fields[shifts]:,} shifts of interest"),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("events", total=total, rate=0.0, lag=0, shifts=0)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._samples: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        """Begin to show."""
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear what was shown."""
        if not self._quiet:
            self._live.stop()

    def update(self, feeder: Feeder, reader: Reader) -> None:
        """Show how far things are."""
        if self._quiet:
            return
        done, now = reader.recommendations + reader.dead_letters, monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        begun, before = self._samples[0]
        shifts = sum(change.after == "shifted" for change in tuple(reader.changes))
        self._progress.update(
            self._task, completed=done, rate=(done - before) / max(0.1, now - begun), lag=feeder.lag, shifts=shifts
        )
        self._live.update(Group(self._progress, self._recommended(reader), self._shifting(reader)))

    def _recommended(self, reader: Reader) -> Table:
        table = Table("user", "state", "recommended now", title="Recommendations", title_justify="left", expand=True)
        for latest in list(reader.latest)[-6:]:
            names = " · ".join(self._titles.get(item.item_id, item.item_id) for item in latest.items[:3])
            table.add_row(latest.user_id[:16], latest.drift.state, names)
        return table

    def _shifting(self, reader: Reader) -> Table:
        table = Table("user", "was", "is", "score", title="Interests that shift", title_justify="left", expand=True)
        for change in reader.changes[-4:]:
            table.add_row(change.user_id[:16], change.before, change.after, f"{change.score:.2f}")
        return table


def print_summary(result: Mapping[str, Any], reader: Reader, events: list[Line], truth: Mapping[str, Shift]) -> None:
    """Say what happened; where the shifts are known, which of them were found and after how many events."""
    console = Console(highlight=False)
    console.print(
        f"{result['events']:,} events in {result['seconds']:.1f} s ({result['events_per_second']:,.0f} events/s): "
        f"{result['recommendations']:,} recommendations, {result['drift_events']:,} changes of drift state, "
        f"{result['dead_letters']:,} dead letters"
    )
    if reader.rejected:
        console.print("dead letters by field: " + ", ".join(f"{k} {n}" for k, n in reader.rejected.most_common()))
    console.print(f"model {result['model']} on {result['provider']}")
    if truth:
        _print_shifts(console, reader, events, truth)


def _print_shifts(console: Console, reader: Reader, events: list[Line], truth: Mapping[str, Shift]) -> None:
    order: dict[str, list[str]] = {}
    for line in events:
        event = msgspec.json.decode(line.value, type=_Identity)
        order.setdefault(event.user_id, []).append(event.event_id)
    alarms: dict[str, list[int]] = {}
    for change in reader.changes:
        if change.before == "stable":
            place = order[change.user_id].index(change.trigger.event_id)
            alarms.setdefault(change.user_id, []).append(place)
    delays: dict[str, int] = {}
    false = 0
    for user, places in alarms.items():
        shift = order[user].index(truth[user].event_id) if user in truth and truth[user].event_id in order[user] else None
        for place in places:
            if shift is not None and 0 <= place - shift < LATE:
                delays.setdefault(user, place - shift + 1)
            else:
                false += 1
    known = [user for user, shift in truth.items() if shift.event_id in order.get(user, [])]
    console.print(
        f"{len(known)} users changed interest; {len(delays)} changes were found within {LATE} events, "
        f"{_average(delays)}; {false} other alarms in {sum(map(len, order.values())):,} events"
    )
    table = Table("user", "from", "to", "found after")
    for user in sorted(delays, key=lambda user: delays[user])[:8]:
        table.add_row(user, truth[user].from_category, truth[user].to_category, f"{delays[user]} events")
    if delays:
        console.print(table)


def _average(delays: Mapping[str, int]) -> str:
    return f"after {sum(delays.values()) / len(delays):.1f} events on average" if delays else "none"
