"""The popularity of every item of a large catalogue, and the most popular ones, event by event."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.recommend.catalogue import Catalogue
from stream.recommend.memory import Memory

LEADERS = 16  # of the most popular, at least
FADES = 64  # half-lives after which the unit of the popularity is renewed

Floats = NDArray[np.float64]


class Popular:
    """Popularity by row, kept in the unit of an earlier time, which one factor brings to an event's.

    All of it fades alike, so that the order of the most popular changes with clicks only.

    Args:
        catalogue: a large one.
        memory: knows the popularity of items.
        half_life: ms.
        least: how many of the most popular are known at least.
    """

    def __init__(self, catalogue: Catalogue, memory: Memory, half_life: float, least: int) -> None:
        self._catalogue = catalogue
        self._memory = memory
        self._half_life = half_life
        self._most = max(LEADERS, least)
        self._since = 0
        self._now = np.zeros(0)  # as of the last event noted
        self._at = np.zeros(0)  # as of the last event asked for
        self._total = 0.0
        self._leaders: dict[int, float] = {}
        self._first = np.zeros(0, np.int64)
        self._rows: NDArray[np.int64] | None = None

    def follow(self, changes: Sequence[tuple[str, int]] | None) -> None:
        """Follow a catalogue that has changed: by these items and rows, or altogether."""
        memory, size = self._memory, len(self._catalogue.ids)
        if changes is None:
            self._now = np.zeros(size)
            self._total, self._leaders = 0.0, {}
            memory.popularity_changed.update(memory.popular_items())
        else:
            if size > len(self._now):
                self._now = np.concatenate([self._now, np.zeros(size + size // 8 - len(self._now))])
            for item_id, row in changes:
                self._set(row, 0.0)
                memory.popularity_changed.add(item_id)
        self._at = self._now.copy()
        self._first = np.flatnonzero(self._catalogue.live)[: self._most]
        self._rows = None

    def begin(self) -> None:
        """Start a new block."""
        self._factors: list[float] = []
        self._means: list[float] = []
        self._best: list[NDArray[np.int64]] = []
        self._changes: list[tuple[int, int, float]] = []  # from this event on, this row has this value
        self._applied = 0

    def note(self, time: int) -> None:
        """Take down what is popular now."""
        memory, row = self._memory, self._catalogue.rows.get
        if abs(time - self._since) > FADES * self._half_life:
            self._since = time
            memory.popularity_changed.update(memory.popular_items())
        if memory.popularity_changed:
            for item in sorted(memory.popularity_changed):  # sums are the same in every process
                if (place := row(item)) is not None:
                    value = memory.popularity(item, self._since)
                    self._changes.append((len(self._factors), place, value))
                    self._set(place, value)
            memory.popularity_changed.clear()
        factor = 2.0 ** ((self._since - time) / self._half_life)
        self._factors.append(factor)
        self._means.append(factor * self._total / len(self._catalogue))
        self._best.append(self._leading())

    def rows(self, event: int) -> NDArray[np.int64]:
        """Return the rows of the most popular items at a noted event; the lower ones of those that nobody has clicked."""
        return self._best[event]

    def values(self, event: int, rows: NDArray[np.int64]) -> Floats:
        """Return the popularity of some rows at a noted event. Events have to be asked for in their order."""
        while self._applied < len(self._changes) and self._changes[self._applied][0] <= event:
            _, row, value = self._changes[self._applied]
            self._at[row] = value
            self._applied += 1
        values: Floats = self._at.take(rows) * self._factors[event]
        return values

    def means(self) -> Floats:
        """Return the mean popularity of all items at each noted event: (events,)."""
        return np.array(self._means)

    def _set(self, row: int, value: float) -> None:
        before = self._now[row]
        self._now[row] = value
        self._total += value - float(before)
        leaders = self._leaders
        if row in leaders:
            if value >= before:
                leaders[row] = value
            else:
                leaders.clear()  # who comes next, only a look at all of them can tell
                self._rows = None
        elif value > 0.0 and leaders:
            last = min(leaders, key=lambda leader: (leaders[leader], -leader)) if len(leaders) >= self._most else None
            if last is None or (value, -row) > (leaders[last], -last):
                leaders[row] = value
                if last is not None:
                    del leaders[last]
                self._rows = None

    def _leading(self) -> NDArray[np.int64]:
        if not self._leaders:
            clicked = np.flatnonzero(self._now)
            order = np.lexsort((clicked, -self._now[clicked]))[: self._most]
            self._leaders = dict(zip(clicked[order].tolist(), self._now[clicked[order]].tolist(), strict=True))
            self._rows = None
        if self._rows is None:
            rows = np.array(sorted(self._leaders), np.int64)
            self._rows = rows if len(rows) >= self._most else np.union1d(rows, self._first)
        return self._rows
