"""What is known about every item at each of a block of events, as it was when the event came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.recommend.catalogue import Catalogue, Vector
from stream.recommend.clicks import Evidence
from stream.recommend.memory import DAY, Memory
from stream.recommend.ngrams import normalise
from stream.recommend.ranker import COVERAGE, FEATURES, FOLLOWED, POPULAR, PROFILE, QUERY, SIMILAR, TEXT, Floats
from stream.settings import Recommend

KEPT_VALUES = 4_000_000  # of text features of queries: 32 MB
FADES = 64  # half-lives after which the unit of the popularity is renewed


class Occasion(NamedTuple):
    """An event to learn from and to answer.

    Attributes:
        time: event time, ms.
        clicked: the item, where it is a click; None where it is a search.
        query: the search's or the click's query, or the user's last one where it is recent; None where there is none.
        query_vector: (d,), unit length: the encoding of `query`; None where there is none.
        previous: the user's recently clicked items before this event, latest first.
        profile: (K, d): the user's mean vector at each half-life; None where nothing is known.
        learn: whether it is learned from: not where it is a duplicate.
        answer: whether it is answered: not where a newer event of the user will be.
    """

    time: int
    clicked: str | None = None
    query: str | None = None
    query_vector: Vector | None = None
    previous: Sequence[str] = ()
    profile: Vector | None = None
    learn: bool = True
    answer: bool = True


class Features:
    """Notes what the memory says at the moment of each event, then computes the features of all of them in one pass."""

    def __init__(self, catalogue: Catalogue, memory: Memory, settings: Recommend) -> None:
        self.catalogue = catalogue
        self.memory = memory
        self.settings = settings
        self._version = (-1, -1)
        self._texts: OrderedDict[tuple[str, bool], NDArray[np.float32]] = OrderedDict()
        self._row_of = np.zeros(0, np.intp)
        self._popular = np.zeros(0)
        self._popular_since = 0
        self._half_life = settings.popularity_half_life_days * DAY
        self.begin()

    def begin(self) -> None:
        """Start a new block."""
        if self._version != (self.catalogue.version, self.memory.generation):
            self._follow_catalogue()
        self._occasions: list[Occasion] = []
        self._popularity: list[Floats] = []
        self._clicks = Evidence()

    def note(self, occasion: Occasion) -> None:
        """Take down what the memory says now."""
        time, memory, line = occasion.time, self.memory, TEXT * len(self._occasions)
        self._occasions.append(occasion)
        if occasion.query and (name := normalise(occasion.query)):
            self._clicks.add(line + QUERY, memory.after_query(name, time))
            self._clicks.add(line + SIMILAR, memory.after_similar_queries(name, time))
        if occasion.clicked is not None:
            recent = (occasion.clicked, *occasion.previous)[: self.settings.previous_clicks]
            self._clicks.add(line + FOLLOWED, memory.after_items(recent, time))
        self._popularity.append(self._popularity_at(time))

    def table(self) -> Floats:
        """Return the evidence for every row of the catalogue at each noted event, (len(FEATURES), events, rows).

        Clicks, decayed to the event's time: query, similar-queries, followed-item, popular. Similarities in [−1, 1]:
        text, coverage, profile.
        """
        count, rows = len(self._occasions), len(self.catalogue.ids)
        self._number_rows()
        table = np.zeros((len(FEATURES), count, rows))
        lines, numbers, masses = self._clicks.flat()
        cells = self._row_of[numbers]
        known = cells >= 0
        cells = (lines * rows + cells)[known]
        clicks = np.bincount(cells, masses[known], minlength=TEXT * count * rows)
        table[:TEXT] = clicks.reshape(count, TEXT, rows).swapaxes(0, 1)
        self._fill_texts(table)
        self._fill_profiles(table)
        np.stack(self._popularity, out=table[POPULAR])
        return table

    def _fill_texts(self, table: Floats) -> None:
        asked = {
            (occasion.query, occasion.query_vector is not None): occasion.query_vector
            for occasion in self._occasions
            if occasion.query
        }
        new = {key: vector for key, vector in asked.items() if key not in self._texts}
        found = {key: self._texts[key] for key in asked if key in self._texts}
        vectors = [vector for vector in new.values() if vector is not None]
        similarities = iter(self.catalogue.similarities(np.stack(vectors)) if vectors else ())
        for query, has_vector in new:
            text = np.zeros((2, len(self.catalogue.ids)), np.float32)
            if has_vector:
                text[0] = next(similarities)
            text[1] = self.catalogue.coverage(query)
            found[query, has_vector] = text
        for key, text in found.items():
            self._texts[key] = text
            self._texts.move_to_end(key)
        while len(self._texts) * 2 * table.shape[2] > KEPT_VALUES:
            self._texts.popitem(last=False)
        for event, occasion in enumerate(self._occasions):
            if occasion.query:
                table[TEXT : COVERAGE + 1, event] = found[occasion.query, occasion.query_vector is not None]

    def _fill_profiles(self, table: Floats) -> None:
        events = [event for event, occasion in enumerate(self._occasions) if occasion.profile is not None]
        profiles = [occasion.profile for occasion in self._occasions if occasion.profile is not None]
        if profiles:
            stacked = np.stack(profiles)
            mean = stacked[:, 0].copy()
            for scale in range(1, stacked.shape[1]):  # one after the other, for each event alike
                mean += stacked[:, scale]
            mean /= np.float32(stacked.shape[1])
            table[PROFILE, events] = self.catalogue.similarities(mean)

    def _popularity_at(self, time: int) -> Floats:
        """Each row's popularity, kept in the unit of an earlier time, which one factor brings to now."""
        if abs(time - self._popular_since) > FADES * self._half_life:
            self._popular_since = time
            self.memory.popularity_changed.update(self.catalogue.rows)
        row = self.catalogue.rows.get
        for item in self.memory.popularity_changed:
            if (place := row(item)) is not None:
                self._popular[place] = self.memory.popularity(item, self._popular_since)
        self.memory.popularity_changed.clear()
        faded: Floats = self._popular * 2.0 ** ((self._popular_since - time) / self._half_life)
        return faded

    def _follow_catalogue(self) -> None:
        self._version = (self.catalogue.version, self.memory.generation)
        self._texts.clear()
        self._row_of = np.zeros(0, np.intp)
        self._popular = np.zeros(len(self.catalogue.ids))
        self.memory.popularity_changed.update(self.catalogue.rows)

    def _number_rows(self) -> None:
        """Learn the rows of items that the memory has given a number since."""
        row, new = self.catalogue.rows.get, self.memory.item_ids[len(self._row_of) :]
        if new:
            self._row_of = np.concatenate([self._row_of, np.array([row(item, -1) for item in new], np.intp)])
