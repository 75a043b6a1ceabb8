"""What is known about every item at each of a block of events, as it was when the event came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream.recommend.catalogue import Catalogue
from stream.recommend.clicks import Evidence
from stream.recommend.memory import DAY, Memory
from stream.recommend.ngrams import normalise
from stream.recommend.ranker import COVERAGE, FEATURES, FOLLOWED, POPULAR, PROFILE, QUERY, SIMILAR, TEXT, Floats
from stream.recommend.vectors import Vector
from stream.rounds import together
from stream.settings import Recommend

KEPT_VALUES = 4_000_000  # of text features of queries: 16 MB
LEAST_KEPT = 1024  # queries, more than a block has events
FADES = 64  # half-lives after which the unit of the popularity is renewed


class Occasion(NamedTuple):
    """An event to learn from and to answer.

    Attributes:
        time: event time, ms.
        clicked: the item, where it is a click; None where it is a search.
        query: the search's or the click's query, or the user's last one where it is recent; None where there is none.
        query_vector: (d,), unit length: the encoding of `query`; None where there is none.
        previous: the user's recently clicked items before this event, latest first.
        profile: (d,): what `mean_profiles` makes of the user's mean vectors; None where nothing is known.
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


def note_clicks(clicks: Evidence, event: int, occasion: Occasion, memory: Memory, previous_clicks: int) -> None:
    """Take down what the memory says now, under the lines from `event` · TEXT on."""
    time, line = occasion.time, TEXT * event
    if occasion.query and (name := normalise(occasion.query)):
        clicks.add(line + QUERY, memory.after_query(name, time))
        clicks.add(line + SIMILAR, memory.after_similar_queries(name, time))
    if occasion.clicked is not None:
        recent = (occasion.clicked, *occasion.previous)[:previous_clicks]
        clicks.add(line + FOLLOWED, memory.after_items(recent, time))


def mean_profiles(profiles: Vector, settings: Recommend) -> Vector:
    """Return the mean of each profile over its time scales, each with its share: (profiles, d).

    Args:
        profiles: (profiles, K, d).
        settings: with the shares.

    Raises:
        ValueError: the settings have shares for another number of time scales.
    """
    scales = profiles.shape[1]
    given = np.array(settings.profile_shares or [1.0] * scales)
    if len(given) != scales or given.sum() <= 0.0:
        raise ValueError(f"recommend.profile_shares: {scales} are needed, not all 0, as there are profile.half_lives_days")
    shares = (given / given.sum()).astype(np.float32)
    mean: Vector = shares[0] * profiles[:, 0]
    for scale in range(1, scales):  # one after the other, for each event alike
        mean += shares[scale] * profiles[:, scale]
    return mean


class Features:
    """Notes what the memory says at the moment of each event, then computes the features of all of them in one pass."""

    def __init__(self, catalogue: Catalogue, memory: Memory, settings: Recommend) -> None:
        self.catalogue = catalogue
        self.memory = memory
        self.settings = settings
        self._version = (-1, -1)
        self._row_of = np.zeros(0, np.intp)  # of each item that the memory has a number for; -1 where there is none
        self._texts = _Texts(catalogue)
        self._popularity = _Popularity(catalogue, memory, settings.popularity_half_life_days * DAY)
        self.begin()

    def begin(self) -> None:
        """Start a new block."""
        if self._version != (self.catalogue.version, self.memory.generation):
            self._version = (self.catalogue.version, self.memory.generation)
            self._row_of = np.zeros(0, np.intp)
            self._texts = _Texts(self.catalogue)
            self._popularity.reset()
        self._clicks = Evidence()
        self._profiles: list[Vector | None] = []
        self._popularity.begin()
        self._texts.begin()

    def note(self, occasion: Occasion) -> None:
        """Take down what the memory says now."""
        note_clicks(self._clicks, len(self._profiles), occasion, self.memory, self.settings.previous_clicks)
        self._texts.note(occasion.query, occasion.query_vector)
        self._popularity.note(occasion.time)
        self._profiles.append(occasion.profile)

    def table(self) -> Floats:
        """Return the evidence for every row of the catalogue at each noted event, (len(FEATURES), events, rows).

        Clicks, decayed to the event's time: query, similar-queries, followed-item, popular. Similarities in [−1, 1]:
        text, coverage, profile.
        """
        table = np.empty((len(FEATURES), len(self._profiles), len(self.catalogue.ids)))
        self._fill_clicks(table)
        self._texts.fill(table)
        self._fill_profiles(table)
        self._popularity.fill(table)
        return table

    def _fill_clicks(self, table: Floats) -> None:
        _, count, rows = table.shape
        row, new = self.catalogue.rows.get, self.memory.item_ids[len(self._row_of) :]
        if new:
            self._row_of = np.concatenate([self._row_of, np.array([row(item, -1) for item in new], np.intp)])
        lines, numbers, masses = self._clicks.flat()
        cells = self._row_of[numbers]
        known = cells >= 0
        cells = (lines * rows + cells)[known]
        clicks = np.bincount(cells, masses[known], minlength=TEXT * count * rows)
        table[:TEXT] = clicks.reshape(count, TEXT, rows).swapaxes(0, 1)

    def _fill_profiles(self, table: Floats) -> None:
        table[PROFILE] = 0.0
        events = [event for event, profile in enumerate(self._profiles) if profile is not None]
        profiles = [profile for profile in self._profiles if profile is not None]
        if profiles:
            table[PROFILE, events] = self.catalogue.similarities(together(profiles))


class _Texts:
    """Text and coverage of the queries asked last, as long as the catalogue stays as it is."""

    def __init__(self, catalogue: Catalogue) -> None:
        rows = len(catalogue.ids)
        self._catalogue = catalogue
        self._size = max(LEAST_KEPT, KEPT_VALUES // (2 * max(1, rows)))
        self._kept = np.zeros((1, 2, rows), np.float32)  # the first place is that of no query
        self._places: OrderedDict[tuple[str, bool], int] = OrderedDict()
        self.begin()

    def begin(self) -> None:
        self._noted: list[int] = []
        self._new: list[tuple[int, str, Vector | None]] = []

    def note(self, query: str | None, vector: Vector | None) -> None:
        if not query:
            self._noted.append(0)
            return
        key = query, vector is not None
        place = self._places.get(key)
        if place is None:
            place = len(self._places) + 1 if len(self._places) < self._size else self._places.popitem(last=False)[1]
            self._places[key] = place
            self._new.append((place, query, vector))
        else:
            self._places.move_to_end(key)
        self._noted.append(place)

    def fill(self, table: Floats) -> None:
        """Write the features of the noted events, (2, events, rows)."""
        if self._new:
            if len(self._places) >= len(self._kept):
                more = min(self._size + 1, 2 * len(self._places) + LEAST_KEPT) - len(self._kept)
                self._kept = np.concatenate([self._kept, np.zeros((more, *self._kept.shape[1:]), np.float32)])
            vectors = [vector for _, _, vector in self._new if vector is not None]
            similarities = iter(self._catalogue.similarities(np.stack(vectors)) if vectors else ())
            for place, query, vector in self._new:
                self._kept[place, 0] = 0.0 if vector is None else next(similarities)
                self._kept[place, 1] = self._catalogue.coverage(query)
        table[TEXT : COVERAGE + 1] = self._kept[self._noted].swapaxes(0, 1)


class _Popularity:
    """Each row's popularity, kept in the unit of an earlier time, which one factor brings to an event's."""

    def __init__(self, catalogue: Catalogue, memory: Memory, half_life: float) -> None:
        self._catalogue = catalogue
        self._memory = memory
        self._half_life = half_life
        self._since = 0
        self.reset()

    def reset(self) -> None:
        """Follow a catalogue that has changed."""
        self._values = np.zeros(len(self._catalogue.ids))
        self._memory.popularity_changed.update(self._catalogue.rows)

    def begin(self) -> None:
        self._factors: list[float] = []
        self._changes: list[tuple[int, int, float]] = []  # from this event on, this row has this value

    def note(self, time: int) -> None:
        memory, row = self._memory, self._catalogue.rows.get
        if abs(time - self._since) > FADES * self._half_life:
            self._since = time
            memory.popularity_changed.update(self._catalogue.rows)
        if memory.popularity_changed:
            for item in memory.popularity_changed:
                if (place := row(item)) is not None:
                    self._changes.append((len(self._factors), place, memory.popularity(item, self._since)))
            memory.popularity_changed.clear()
        self._factors.append(2.0 ** ((self._since - time) / self._half_life))

    def fill(self, table: Floats) -> None:
        """Write the popularity of every row at the noted events, (events, rows)."""
        popular = table[POPULAR]
        popular[:] = self._values
        for event, row, value in self._changes:
            popular[event:, row] = value
        self._values[:] = popular[-1]
        popular *= np.array(self._factors)[:, None]
