"""How likely each item is to be clicked next: evidence from the most specific to the most general.

    prior    ∝ (popular + popular_prior) · exp(text_weight·text + coverage_weight·coverage + profile_weight·profile)
    similar  = (similar-queries + similar_prior·prior)   / (Σ similar-queries + similar_prior)
    asked    = (query           + query_prior·similar)   / (Σ query           + query_prior)
    next     = (followed-item   + followed_prior·asked′) / (Σ followed-item   + followed_prior)

Each line is a Dirichlet-smoothed estimate (MacKay & Peto 1995): clicks seen at this level, and as many clicks as the
prior is worth, distributed as the line above says. Σ runs over the items of the catalogue. asked′ is `asked` with the
item that was clicked just now scaled down by `repeat`; only a click is answered by the last line. The result is a
distribution over the catalogue: its values are comparable between events.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.settings import Recommend

FEATURES = ("query", "similar-queries", "followed-item", "text", "coverage", "profile", "popular")
QUERY, SIMILAR, FOLLOWED, TEXT, COVERAGE, PROFILE, POPULAR = range(len(FEATURES))
LEAST_SHARE = 0.1  # of an item's score, under which something is not a reason
MOST_REASONS = 3

Floats = NDArray[np.float64]


class Ranking(NamedTuple):
    """Every row's probability and where it came from.

    Attributes:
        probabilities: (rows,), sum 1; zero where nothing can be recommended.
        prior: (rows,), the first line of the formula.
        worth: (4,), what a unit of query, similar-queries, followed-item and prior adds to the probability.

    """

    probabilities: Floats
    prior: Floats
    worth: Floats


class Ranker:
    """The formula above with the weights of the settings."""

    def __init__(self, settings: Recommend) -> None:
        self.settings = settings
        self.log_odds = np.array([settings.text_weight, settings.coverage_weight, settings.profile_weight])

    def rank(self, features: Floats, live: NDArray[np.bool_], after_click: bool, clicked: int | None) -> Ranking:
        """Return the probability of each row.

        Args:
            features: (len(FEATURES), rows), finite; the rows of clicks (query, similar-queries, followed-item, popular)
                are not negative, and zero where `live` is false. What `repeat` scales down is scaled down in place.
            live: (rows,), which rows hold an item; at least one does.
            after_click: whether it is a click that is answered: the last line of the formula.
            clicked: the row of the item clicked just now; None where it is not in the catalogue.

        """
        s = self.settings
        log_odds = self.log_odds @ features[TEXT : PROFILE + 1]
        log_odds -= log_odds.max()
        prior = (features[POPULAR] + s.popular_prior) * np.exp(log_odds)
        prior *= live
        query_total, similar_total, followed_total = features[:TEXT].sum(axis=1).tolist()
        asked = s.query_prior / (query_total + s.query_prior)
        similar = asked / (similar_total + s.similar_prior)
        worth = np.array([asked / s.query_prior, similar, 0.0, similar * s.similar_prior / float(prior.sum())])
        if after_click:
            rest = 1.0
            if clicked is not None:
                here = worth[0] * features[QUERY, clicked] + similar * features[SIMILAR, clicked] + worth[3] * prior[clicked]
                rest -= (1.0 - s.repeat) * here
                features[: SIMILAR + 1, clicked] *= s.repeat
                prior[clicked] *= s.repeat
            # Nothing is left where the catalogue is that one item and `repeat` is 0.
            worth *= s.followed_prior / (followed_total + s.followed_prior) / rest if rest > 1e-9 else 0.0
            worth[2] = 1.0 / (followed_total + s.followed_prior)
        probabilities = worth[:3] @ features[:TEXT] + worth[3] * prior
        return Ranking(probabilities, prior, worth)

    def shares(self, features: Floats, averages: Floats, parts: Floats) -> Floats:
        """Return what each feature gave to each recommended item, as a share of its score: (items, len(FEATURES)).

        What the prior gave is divided among text, coverage, profile and popularity in proportion to how far each raises
        the item above the average one; the shares sum to less than 1 where none does.

        Args:
            features: (items, 4), of each item: text, coverage, profile, popular.
            averages: (items, 4), of the whole catalogue at that event.
            parts: (items, 4), what query, similar-queries, followed-item and the prior gave: they sum to the score.

        """
        raised = features - averages
        raised[:, :3] *= self.log_odds
        popular = self.settings.popular_prior
        raised[:, 3] = np.log((features[:, 3] + popular) / (averages[:, 3] + popular))
        np.maximum(raised, 0.0, out=raised)
        raised *= (parts[:, 3] / np.maximum(raised[:, 0] + raised[:, 1] + raised[:, 2] + raised[:, 3], 1e-12))[:, None]
        total = parts[:, 0] + parts[:, 1] + parts[:, 2] + parts[:, 3]
        shares: Floats = np.concatenate([parts[:, :3], raised], axis=1) / np.maximum(total, 1e-300)[:, None]
        return shares


def reasons(shares: Floats) -> list[list[str]]:
    """Return the names of the greatest shares, strongest first; `["catalogue"]` where nothing spoke for the item.

    Args:
        shares: (items, len(FEATURES)).
    """
    strongest = np.argsort(-shares, axis=1, kind="stable")[:, :MOST_REASONS]
    enough = (np.take_along_axis(shares, strongest, axis=1) >= LEAST_SHARE).sum(axis=1)
    return [
        [FEATURES[feature] for feature in features[:count]] or ["catalogue"]
        for features, count in zip(strongest.tolist(), enough.tolist(), strict=True)
    ]


def best_rows(probabilities: Floats, live: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Return the `count` live rows of the highest probability, best first; the lower row first where they are equal.

    Args:
        probabilities: (rows,), not negative; zero where `live` is false.
        live: (rows,).
        count: how many at most.
    """
    if len(probabilities) > count:
        least = np.partition(probabilities, len(probabilities) - count)[len(probabilities) - count]
        rows: NDArray[np.intp] = np.flatnonzero(probabilities >= least)
        rows = rows[live[rows]]
    else:
        rows = np.flatnonzero(live)
    return rows[np.lexsort((rows, -probabilities[rows]))[:count]]
