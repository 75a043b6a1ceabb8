"""One event after the other: learn from it, then answer it with what has been learned so far and nothing later."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.events import RecommendedItem
from stream.recommend.catalogue import Catalogue, Vector
from stream.recommend.memory import Memory
from stream.recommend.ngrams import normalise
from stream.recommend.ranker import (
    COVERAGE,
    FEATURES,
    FOLLOWED,
    POPULAR,
    PROFILE,
    QUERY,
    SIMILAR,
    TEXT,
    Floats,
    Ranker,
    best_rows,
    reasons,
)
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


class _Choice(NamedTuple):
    """The items of one answer, and what their reasons are computed from."""

    items: list[str]
    scores: Floats  # (items,)
    features: Floats  # (4, items): text, coverage, profile, popular
    averages: Floats  # (4,): of the catalogue
    parts: Floats  # (4, items): of the scores


class Recommender:
    """What to show next, from the catalogue and the memory. One for all partitions of a worker."""

    def __init__(self, catalogue: Catalogue, memory: Memory, settings: Recommend) -> None:
        self.catalogue = catalogue
        self.memory = memory
        self.settings = settings
        self.ranker = Ranker(settings)
        self._version = -1
        self._texts: OrderedDict[str, tuple[bool, NDArray[np.float32]]] = OrderedDict()
        self._features = np.zeros((len(FEATURES), 0))
        self._popular = np.zeros(0)
        self._popular_since = 0
        self._half_life = settings.popularity_half_life_days * 86_400_000

    def process(self, occasions: Iterable[Occasion]) -> list[list[RecommendedItem] | None]:
        """Return each event's items, best first, or None where no answer is wanted.

        An event is learned before it is answered, in the order given. Where a batch ends makes no difference.
        An empty list is the answer of an empty catalogue.
        """
        chosen = [self._choose(occasion) for occasion in occasions]
        answered = [choice for choice in chosen if choice is not None]
        if not answered:
            return [None for _ in chosen]
        # What does not depend on the order of the events is done for all of them together, element by element.
        scores = np.concatenate([choice.scores for choice in answered]).round(6).tolist()
        features, parts = (
            np.concatenate(arrays, axis=1).T for arrays in ([c.features for c in answered], [c.parts for c in answered])
        )
        averages = np.repeat([choice.averages for choice in answered], [len(choice.items) for choice in answered], axis=0)
        why = reasons(self.ranker.shares(features, averages, parts))
        items = [
            RecommendedItem(item_id=item_id, score=score, reasons=reason)
            for item_id, score, reason in zip(chain.from_iterable(c.items for c in answered), scores, why, strict=True)
        ]
        ends = iter(accumulate((len(choice.items) for choice in answered), initial=0))
        start = next(ends)
        result: list[list[RecommendedItem] | None] = []
        for choice in chosen:
            if choice is None:
                result.append(None)
            else:
                end = next(ends)
                result.append(items[start:end])
                start = end
        return result

    def _choose(self, occasion: Occasion) -> _Choice | None:
        if occasion.learn and occasion.clicked is not None:
            previous = occasion.previous[: self.settings.previous_clicks]
            self.memory.learn(occasion.time, occasion.clicked, occasion.query, previous)
        if not occasion.answer:
            return None
        if not len(self.catalogue):
            return _Choice([], np.zeros(0), np.zeros((4, 0)), np.zeros(4), np.zeros((4, 0)))
        features = self.features(occasion)
        live = self.catalogue.live
        place = None if occasion.clicked is None else self.catalogue.rows.get(occasion.clicked)
        averages = features[TEXT:].sum(axis=1) / len(self.catalogue)
        ranking = self.ranker.rank(features, live, occasion.clicked is not None, place)
        rows = best_rows(ranking.probabilities, live, self.settings.count)
        chosen = features[:, rows]
        return _Choice(
            items=[self.catalogue.ids[row] or "" for row in rows.tolist()],
            scores=ranking.probabilities[rows],
            features=chosen[TEXT:],
            averages=averages,
            parts=np.concatenate([chosen[:TEXT], ranking.prior[None, rows]]) * ranking.worth[:, None],
        )

    def features(self, occasion: Occasion) -> Floats:
        """Return the evidence for every row of the catalogue, (len(FEATURES), rows); valid until the next call.

        Clicks, decayed to the event's time: query, similar-queries, followed-item, popular. Similarities in [−1, 1]:
        text, coverage, profile.
        """
        if self._version != self.catalogue.version:
            self._follow_catalogue()
        time, features = occasion.time, self._features
        features[: FOLLOWED + 1] = 0.0
        if occasion.query:
            name = normalise(occasion.query)
            self._fill(QUERY, self.memory.after_query(name, time))
            self._fill(SIMILAR, self.memory.after_similar_queries(name, time))
            features[TEXT : COVERAGE + 1] = self._text(occasion.query, occasion.query_vector)
        else:
            features[TEXT : COVERAGE + 1] = 0.0
        if occasion.clicked is not None:
            recent = (occasion.clicked, *occasion.previous)[: self.settings.previous_clicks]
            self._fill(FOLLOWED, self.memory.after_items(recent, time))
        if occasion.profile is None:
            features[PROFILE] = 0.0
        else:
            features[PROFILE] = self.catalogue.similarities(occasion.profile.mean(axis=0))
        features[POPULAR] = self._popularity(time)
        return features

    def _fill(self, feature: int, clicks: Mapping[str, float]) -> None:
        row = self.catalogue.rows.get
        values = self._features[feature]
        for item, mass in clicks.items():
            if (place := row(item)) is not None:
                values[place] = mass

    def _text(self, query: str, vector: Vector | None) -> NDArray[np.float32]:
        known = self._texts.get(query)
        if known is not None and known[0] == (vector is not None):
            self._texts.move_to_end(query)
            return known[1]
        text = np.zeros((2, len(self.catalogue.ids)), np.float32)
        if vector is not None:
            text[0] = self.catalogue.similarities(vector)
        text[1] = self.catalogue.coverage(query)
        self._texts[query] = vector is not None, text
        if len(self._texts) * text.size > KEPT_VALUES:
            self._texts.popitem(last=False)
        return text

    def _follow_catalogue(self) -> None:
        self._version = self.catalogue.version
        self._texts.clear()
        self._features = np.zeros((len(FEATURES), len(self.catalogue.ids)))
        self._popular = np.zeros(len(self.catalogue.ids))
        self.memory.popularity_changed.update(self.catalogue.rows)

    def _popularity(self, time: int) -> Floats:
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
