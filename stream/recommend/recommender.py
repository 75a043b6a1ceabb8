"""One event after the other: learn from it, then answer it with what has been learned so far and nothing later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.events import RecommendedItem
from stream.recommend.catalogue import Catalogue
from stream.recommend.features import Features, Occasion
from stream.recommend.memory import Memory
from stream.recommend.ranker import TEXT, Floats, Ranker, best_rows, reasons, strongest
from stream.recommend.shortlist import Shortlist, Table
from stream.settings import Recommend

CELLS = 48_000  # values of one feature in a block of events: few enough to stay in the processor's cache
CANDIDATES = 100  # of an event, about, where the catalogue is large


class Choices(NamedTuple):
    """Items for some events: those of one event lie together, best first.

    Attributes:
        counts: how many each event has, (events,).
        rows: of the catalogue, (items,).
        scores: to six places, (items,).
        reasons: what `ranker.reasons` reads, (items,).
    """

    counts: NDArray[np.intp]
    rows: NDArray[np.intp]
    scores: Floats
    reasons: NDArray[np.int64]


class _Chosen(NamedTuple):
    """The same by item: the place of its event among those asked for, ascending."""

    events: NDArray[np.intp]
    rows: NDArray[np.intp]
    scores: Floats
    reasons: NDArray[np.int64]


NOTHING = Choices(np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0), np.zeros(0, np.int64))


class Recommender:
    """What to show next, from the catalogue and the memory. One for all partitions of a worker."""

    def __init__(self, catalogue: Catalogue, memory: Memory, settings: Recommend) -> None:
        self.catalogue = catalogue
        self.memory = memory
        self.settings = settings
        self.ranker = Ranker(settings)
        self.features: Features | Shortlist = Features(catalogue, memory, settings)

    def process(self, occasions: Iterable[Occasion]) -> list[list[RecommendedItem] | None]:
        """Return each event's items, best first, or None where no answer is wanted.

        An event is learned before it is answered, in the order given. Where a batch ends makes no difference.
        An empty list is the answer of an empty catalogue.
        """
        events = list(occasions)
        return self.items(self.choose(events), [event.answer for event in events])

    def choose(self, events: Sequence[Occasion]) -> Choices:
        """Learn from the events and choose items for them, as `process` does."""
        self.memory.compact()
        if self.catalogue.large is not None and isinstance(self.features, Features):
            self.features = Shortlist(self.catalogue, self.memory, self.settings)
        size = max(1, CELLS // (CANDIDATES if self.catalogue.large is not None else max(1, len(self.catalogue.ids))))
        blocks = [self._block(events[at : at + size]) for at in range(0, len(events), size)]
        return Choices(*map(np.concatenate, zip(NOTHING, *blocks, strict=True)))

    def items(self, choices: Choices, wanted: Sequence[bool]) -> list[list[RecommendedItem] | None]:
        """Return what was chosen for each event by its name, or None where nothing was wanted; the catalogue is the same still."""
        ids = self.catalogue.ids
        named = zip(choices.rows.tolist(), choices.scores.tolist(), choices.reasons.tolist(), strict=True)
        items = [RecommendedItem(item_id=ids[row] or "", score=score, reasons=reasons(why)) for row, score, why in named]
        ends = [0, *choices.counts.cumsum().tolist()]
        return [items[begin:end] if want else None for (begin, end), want in zip(pairwise(ends), wanted, strict=True)]

    def _block(self, events: Sequence[Occasion]) -> Choices:
        """Learn and note one event after the other; compute what does not depend on their order for all of them together."""
        self.features.begin()
        for event in events:
            if event.learn and event.clicked is not None:
                previous = event.previous[: self.settings.previous_clicks]
                self.memory.learn(event.time, event.clicked, event.query, previous)
            if event.answer and len(self.catalogue):
                self.features.note(event)
        asked = np.flatnonzero([event.answer for event in events])
        if not len(asked) or not len(self.catalogue):
            return NOTHING._replace(counts=np.zeros(len(events), np.intp))
        chosen = self._chosen([events[place] for place in asked.tolist()])
        counts = np.bincount(asked[chosen.events], minlength=len(events))
        return Choices(counts, chosen.rows, chosen.scores, chosen.reasons)

    def _chosen(self, asked: Sequence[Occasion]) -> _Chosen:
        after_click = np.array([event.clicked is not None for event in asked])
        if isinstance(self.features, Features):
            return self._ranked(self._whole(self.features, asked), after_click)
        parts = [self._ranked(table, after_click[table.events]) for table in self.features.tables()]
        events, *others = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(events, kind="stable")
        return _Chosen(events[order], *(values[order] for values in others))

    def _whole(self, features: Features, asked: Sequence[Occasion]) -> Table:
        """Return the table in which every row is a candidate of every event."""
        table, live = features.table(), self.catalogue.live
        place = self.catalogue.rows.get
        clicked = np.array([-1 if event.clicked is None else place(event.clicked, -1) for event in asked], np.intp)
        rows = np.broadcast_to(np.arange(len(live)), table.shape[1:])
        return Table(np.arange(len(asked)), rows, table, live, table[TEXT:].sum(axis=2) / len(self.catalogue), clicked, None)

    def _ranked(self, table: Table, after_click: NDArray[np.bool_]) -> _Chosen:
        ranking = self.ranker.rank(table.features, table.live, after_click, table.clicked, table.beyond)
        events, columns = best_rows(ranking.probabilities, table.live, self.settings.count)
        chosen = table.features[:, events, columns]
        parts = np.concatenate([chosen[:TEXT], ranking.prior[None, events, columns]]) * ranking.worth[:, events]
        why = strongest(self.ranker.shares(chosen[TEXT:], table.averages[:, events], parts))
        return _Chosen(table.events[events], table.rows[events, columns], ranking.probabilities[events, columns].round(6), why)
