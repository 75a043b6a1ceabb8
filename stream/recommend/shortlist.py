"""What is known about each event's candidates, where the catalogue is too large to look at all of it.

Candidates are the items that the memory knows something of at this event, those that text and title bring nearest to the query (or to
the profile where there is none), and the popular ones. What they are depends on the event and on what came before it, never on the
block that it is computed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.recommend.catalogue import Catalogue, Large
from stream.recommend.clicks import Evidence
from stream.recommend.features import Occasion, note_clicks
from stream.recommend.memory import DAY, Memory
from stream.recommend.popular import Popular
from stream.recommend.ranker import COVERAGE, FEATURES, POPULAR, PROFILE, TEXT, Floats
from stream.recommend.titles import LookedUp
from stream.recommend.vectors import Vector, coarse, on_grid
from stream.settings import Recommend

NEAREST = 128  # items by text, or by profile where there is no query
TITLED = 64  # items by title
BEST = 64  # of these by both: they are a query's candidates
KEPT = 16_384  # queries whose candidates are kept until the catalogue changes
ROUNDING = 1e-6  # an item that is above the average by less is not above it
STEP = 64  # by which tables grow in width


Key = tuple[str, bool]
"""A query, and whether its vector is known."""


class Table(NamedTuple):
    """The features of some events' candidates; those of one event lie in the order of the catalogue's rows.

    Attributes:
        events: (n,), which ones.
        rows: (n, columns), of the catalogue.
        features: (len(FEATURES), n, columns).
        live: (n, columns), whether there is an item: the others fill up.
        averages: (4, n), text, coverage, profile and popular on average of the whole catalogue.
        clicked: (n,), the column of the item clicked just now; −1 where there is none.
        beyond: (n,), what all other items have of the prior, as `Ranker.rank` takes it; None where there are no others.
    """

    events: NDArray[np.intp]
    rows: NDArray[np.intp]
    features: Floats
    live: NDArray[np.bool_]
    averages: Floats
    clicked: NDArray[np.intp]
    beyond: Floats | None


class Found(NamedTuple):
    """A query's candidates, as long as the catalogue does not change.

    Attributes:
        rows: of the catalogue, ascending.
        coverage: of each.
        looked_up: what the titles' index says of the query.
    """

    rows: NDArray[np.int64]
    coverage: Vector
    looked_up: LookedUp


class Shortlist:
    """Notes what the memory says at the moment of each event, then computes the features of all candidates."""

    def __init__(self, catalogue: Catalogue, memory: Memory, settings: Recommend) -> None:
        self.catalogue = catalogue
        self.memory = memory
        self.settings = settings
        self._version = self._generation = -1
        self._row_of = np.zeros(0, np.intp)  # of each item that the memory has a number for; -1 where there is none
        half_life = settings.popularity_half_life_days * DAY
        self._popular = Popular(catalogue, memory, half_life, settings.count + 1)
        self._found: OrderedDict[Key, Found] = OrderedDict()
        self.begin()

    def begin(self) -> None:
        """Start a new block."""
        catalogue = self.catalogue
        if self._version != catalogue.version or self._generation != self.memory.generation:
            changes = catalogue.changes_since(self._version) if self._version >= 0 else None
            changes = None if changes is None else list(changes)
            self._popular.follow(changes)
            self._found.clear()
            if changes is None or self._generation != self.memory.generation:
                self._row_of = np.zeros(0, np.intp)
            else:
                self._follow(changes)
            self._version, self._generation = catalogue.version, self.memory.generation
        self._clicks = Evidence()
        self._noted: list[Occasion] = []
        self._popular.begin()

    def _follow(self, changes: Iterable[tuple[str, int]]) -> None:
        for item_id, _ in changes:
            number = self.memory.number(item_id)
            if number is not None and number < len(self._row_of):
                self._row_of[number] = self.catalogue.rows.get(item_id, -1)

    def note(self, occasion: Occasion) -> None:
        """Take down what the memory says now."""
        note_clicks(self._clicks, len(self._noted), occasion, self.memory, self.settings.previous_clicks)
        self._popular.note(occasion.time)
        self._noted.append(occasion)

    def tables(self) -> Iterator[Table]:
        """Yield the tables of all noted events: those with about as many candidates together.

        How many columns a table has depends on each of its events alone, and so do the last bits of sums over them.
        """
        large, rows = self.catalogue.large, self.catalogue.rows
        assert large is not None
        count, height = len(self._noted), len(self.catalogue.ids)
        texts = self._stacked({event: o.query_vector for event, o in enumerate(self._noted) if o.query_vector is not None})
        profiles = self._stacked({event: o.profile for event, o in enumerate(self._noted) if o.profile is not None})
        sides = np.stack([on_grid(texts), on_grid(profiles)], axis=1)
        found = self._by_query(large, sides[:, 0])
        lines, cells, masses = self._evidence()
        clicked = np.array([-1 if o.clicked is None else rows.get(o.clicked, -1) for o in self._noted], np.int64)
        keys = [lines // TEXT * height + cells, (np.arange(count) * height + clicked)[clicked >= 0]]
        keys += self._proposed(large, found, sides[:, 1], height)
        asked = [(event, query) for event, query in enumerate(found) if query is not None]
        keys += [event * height + query.rows for event, query in asked]
        candidates, place = np.unique(np.concatenate(keys), return_inverse=True)
        features = np.zeros((len(FEATURES), len(candidates)))
        clicks = lines % TEXT * len(candidates) + place[: len(lines)]
        features[:TEXT] = np.bincount(clicks, masses, minlength=TEXT * len(candidates)).reshape(TEXT, -1)
        ends = np.searchsorted(candidates, np.arange(count + 1) * height)
        of_event = np.repeat(np.arange(count), np.diff(ends))
        at = candidates - of_event * height
        if asked:
            self._fill_coverage(large, features[COVERAGE], asked, place, of_event, at)
        for event, (begin, end) in enumerate(pairwise(ends.tolist())):
            own = at[begin:end]
            features[TEXT : PROFILE + 1 : PROFILE - TEXT, begin:end] = large.vectors.products(own, sides[event]).T
            features[POPULAR, begin:end] = self._popular.values(event, own)
        mean_coverage = np.array([0.0 if query is None else query.looked_up.mean_coverage for query in found])
        centre = on_grid(self.catalogue.centre)
        averages = np.stack([sides[:, 0] @ centre, mean_coverage, sides[:, 1] @ centre, self._popular.means()]) + ROUNDING
        beyond = self._beyond(large, texts, profiles, averages, features, ends)
        sizes = np.diff(ends)
        columns = np.where(clicked >= 0, np.searchsorted(candidates, np.arange(count) * height + clicked) - ends[:-1], -1)
        for width, events in _alike(sizes):
            inside = np.arange(width) < sizes[events, None]
            cell = np.where(inside, ends[events, None] + np.arange(width), 0)
            table = features[:, cell] * inside
            yield Table(events, at[cell], table, inside, averages[:, events], columns[events], beyond[events])

    def _stacked(self, vectors: dict[int, Vector]) -> Vector:
        stacked = np.zeros((len(self._noted), self.catalogue.dimension), np.float32)
        if vectors:
            stacked[list(vectors)] = list(vectors.values())
        return stacked

    def _by_query(self, large: Large, texts: Floats) -> list[Found | None]:
        """Return the candidates of each event's query; None where there is none."""
        keys = [(o.query, o.query_vector is not None) if o.query else None for o in self._noted]
        new = {key: event for event, key in reversed(list(enumerate(keys))) if key is not None and key not in self._found}
        if new:
            self._found.update(zip(new, self._search(large, list(new), texts[list(new.values())]), strict=True))
        found = [None if key is None else self._found[key] for key in keys]
        for key in keys:
            if key is not None:
                self._found.move_to_end(key)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)
        return found

    def _search(self, large: Large, keys: list[Key], texts: Floats) -> list[Found]:
        """Return the candidates of some queries, whose vectors these are, (n, d)."""
        count, height = len(keys), len(self.catalogue.ids)
        looked_up = [large.titles.look_up(query, TITLED) for query, _ in keys]
        near, products = large.vectors.nearest(texts, NEAREST)
        near[[not known for _, known in keys]] = -1
        by_text = (np.arange(count)[:, None] * height + near)[near >= 0]
        cells = np.sort(np.concatenate([by_text, *[at * height + one.rows for at, one in enumerate(looked_up)]]))
        cells = np.concatenate([cells[:1], cells[1:][cells[1:] != cells[:-1]]])
        ends = np.searchsorted(cells, np.arange(count + 1) * height)
        sizes = np.diff(ends)
        of_query = np.repeat(np.arange(count), sizes)
        rows = cells - of_query * height
        coverage = large.titles.coverage(looked_up, of_query, rows)
        # What only the title proposes is at most as near as the last of the nearest. To read its vector would tell little more.
        text = products.min(axis=1, where=near >= 0, initial=1.0)[of_query]
        text[np.searchsorted(cells, by_text)] = products[near >= 0]
        against = np.full((count, sizes.max()), np.inf, np.float32)
        against[of_query, np.arange(len(cells)) - ends[of_query]] = -(
            self.settings.text_weight * text + self.settings.coverage_weight * coverage
        )
        best = np.sort(np.argsort(against, axis=1, kind="stable")[:, :BEST], axis=1) + ends[:-1, None]
        chosen = [places[:size] for places, size in zip(best, sizes.tolist(), strict=True)]
        return [Found(rows[places], coverage[places], one) for places, one in zip(chosen, looked_up, strict=True)]

    def _fill_coverage(
        self,
        large: Large,
        coverage: Floats,
        asked: list[tuple[int, Found]],
        place: NDArray[np.intp],
        of_event: NDArray[np.intp],
        at: NDArray[np.int64],
    ) -> None:
        """Write the coverage of the candidates of events that have a query; of those that the query proposed it is known."""
        known = np.concatenate([query.coverage for _, query in asked])
        own = place[len(place) - len(known) :]
        coverage[own] = known
        texts = np.full(of_event[-1] + 1, -1)
        texts[[event for event, _ in asked]] = np.arange(len(asked))
        text = texts[of_event]
        text[own] = -1
        others = np.flatnonzero(text >= 0)
        coverage[others] = large.titles.coverage([query.looked_up for _, query in asked], text[others], at[others])

    def _evidence(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """Return line, row and mass of each click that the memory told of and whose item is in the catalogue."""
        row, new = self.catalogue.rows.get, self.memory.item_ids[len(self._row_of) :]
        if new:
            self._row_of = np.concatenate([self._row_of, np.array([row(item, -1) for item in new], np.intp)])
        lines, numbers, masses = self._clicks.flat()
        cells = self._row_of[numbers]
        there = cells >= 0
        return lines[there], cells[there], masses[there]

    def _proposed(self, large: Large, found: list[Found | None], profiles: Floats, height: int) -> Iterator[NDArray[np.int64]]:
        """Yield event · height + row of what is near to profiles where there is no query, and of what is popular."""
        alone = [event for event, query in enumerate(found) if query is None and profiles[event].any()]
        if alone:
            near, _ = large.vectors.nearest(profiles[alone], NEAREST)
            yield (np.array(alone)[:, None] * height + near)[near >= 0]
        for event in range(len(found)):
            yield event * height + self._popular.rows(event)

    def _beyond(
        self, large: Large, texts: Vector, profiles: Vector, averages: Floats, features: Floats, ends: NDArray[np.intp]
    ) -> Floats:
        """Estimate what the items that are no candidates have of the prior: (events,), as `Ranker.rank` takes it.

        Their number and their popularity are known; what texts and profiles add is taken from a sample of the catalogue.
        """
        settings, sizes = self.settings, np.diff(ends)
        others = len(self.catalogue) - sizes
        weights = abs(settings.text_weight) + abs(settings.profile_weight) or 1.0
        text, profile = settings.text_weight / weights, settings.profile_weight / weights
        sought = coarse(texts * np.float32(text) + profiles * np.float32(profile))
        log_odds = (sought @ large.vectors.sample.T) * np.float64(weights)
        highest = log_odds.max(axis=1)
        typical = np.log(np.exp(log_odds - highest[:, None]).mean(axis=1)) + highest + settings.coverage_weight * averages[1]
        popular = averages[3] * len(self.catalogue) - np.add.reduceat(features[POPULAR], ends[:-1])
        mass = others * settings.popular_prior + np.maximum(popular, 0.0) * (others > 0)
        return np.where(mass > 0.0, typical + np.log(np.maximum(mass, 1e-300)), -np.inf)


def _alike(sizes: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield widths and the events that are laid out in so many columns."""
    widths = -(-sizes // STEP) * STEP
    for width in np.unique(widths).tolist():
        yield width, np.flatnonzero(widths == width)
