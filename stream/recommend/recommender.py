"""One event after the other: learn from it, then answer it with what has been learned so far and nothing later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stream.events import RecommendedItem
from stream.recommend.catalogue import Catalogue
from stream.recommend.features import Features, Occasion
from stream.recommend.memory import Memory
from stream.recommend.ranker import TEXT, Ranker, best_rows, reasons
from stream.recommend.shortlist import Shortlist, Table
from stream.settings import Recommend

CELLS = 48_000  # values of one feature in a block of events: few enough to stay in the processor's cache
CANDIDATES = 300  # of an event, about, where the catalogue is large


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
        self.memory.compact()
        if self.catalogue.large is not None and isinstance(self.features, Features):
            self.features = Shortlist(self.catalogue, self.memory, self.settings)
        size = max(1, CELLS // (CANDIDATES if self.catalogue.large is not None else max(1, len(self.catalogue.ids))))
        result: list[list[RecommendedItem] | None] = []
        for at in range(0, len(events), size):
            result += self._block(events[at : at + size])
        return result

    def _block(self, events: Sequence[Occasion]) -> Iterator[list[RecommendedItem] | None]:
        """Learn and note one event after the other; compute what does not depend on their order for all of them together."""
        self.features.begin()
        for event in events:
            if event.learn and event.clicked is not None:
                previous = event.previous[: self.settings.previous_clicks]
                self.memory.learn(event.time, event.clicked, event.query, previous)
            if event.answer and len(self.catalogue):
                self.features.note(event)
        asked = [event for event in events if event.answer]
        answers = iter(self._answers(asked) if asked and len(self.catalogue) else [[] for _ in asked])
        return (next(answers) if event.answer else None for event in events)

    def _answers(self, asked: Sequence[Occasion]) -> list[list[RecommendedItem]]:
        answers: list[list[RecommendedItem]] = [[] for _ in asked]
        after_click = np.array([event.clicked is not None for event in asked])
        tables = [self._whole(self.features, asked)] if isinstance(self.features, Features) else self.features.tables()
        for table in tables:
            for event, items in zip(table.events.tolist(), self._ranked(table, after_click[table.events]), strict=True):
                answers[event] = items
        return answers

    def _whole(self, features: Features, asked: Sequence[Occasion]) -> Table:
        """Return the table in which every row is a candidate of every event."""
        table, live = features.table(), self.catalogue.live
        place = self.catalogue.rows.get
        clicked = np.array([-1 if event.clicked is None else place(event.clicked, -1) for event in asked], np.intp)
        rows = np.broadcast_to(np.arange(len(live)), table.shape[1:])
        return Table(np.arange(len(asked)), rows, table, live, table[TEXT:].sum(axis=2) / len(self.catalogue), clicked, None)

    def _ranked(self, table: Table, after_click: NDArray[np.bool_]) -> list[list[RecommendedItem]]:
        ranking = self.ranker.rank(table.features, table.live, after_click, table.clicked, table.beyond)
        events, columns = best_rows(ranking.probabilities, table.live, self.settings.count)
        chosen = table.features[:, events, columns]
        parts = np.concatenate([chosen[:TEXT], ranking.prior[None, events, columns]]) * ranking.worth[:, events]
        why = reasons(self.ranker.shares(chosen[TEXT:].T, table.averages[:, events].T, parts.T))
        scores = ranking.probabilities[events, columns].round(6).tolist()
        ids = self.catalogue.ids
        items = [
            RecommendedItem(item_id=ids[row] or "", score=score, reasons=reason)
            for row, score, reason in zip(table.rows[events, columns].tolist(), scores, why, strict=True)
        ]
        ends = np.searchsorted(events, np.arange(len(after_click) + 1)).tolist()
        return [items[begin:end] for begin, end in pairwise(ends)]
