"""How likely each item is to be clicked next: evidence from the most specific to the most general.

    prior    ∝ (popular + popular_prior) · exp(text_weight·text + coverage_weight·coverage + profile_weight·profile)
    similar  = (similar-queries + similar_prior·prior)   / (Σ similar-queries + similar_prior)
    asked    = (query           + query_prior·similar)   / (Σ query           + query_prior)
    next     = (followed-item   + followed_prior·asked′) / (Σ followed-item   + followed_prior)

Each line is a Dirichlet-smoothed estimate (MacKay & Peto 1995): clicks seen at this level, and as many clicks as the
prior is worth distributed as the line above says. Σ runs over the items of the catalogue. asked′ is `asked` with the item
that was clicked just now scaled down by `repeat`; only a click is answered by the last line. The result is a distribution
over the catalogue: its values are comparable between events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.settings import Recommend

FEATURES = ("query", "similar-queries", "followed-item", "text", "coverage", "profile", "popular")
QUERY, SIMILAR, FOLLOWED, TEXT, COVERAGE, PROFILE, POPULAR = range(len(FEATURES))
LEAST_SHARE = 0.1  # of an item's score, under which something is not a reason
MOST_REASONS = 3

Floats = NDArray[np.float64]


class Ranker:
    """The formula above with the weights of the settings."""

    def __init__(self, settings: Recommend) -> None:
        self.settings = settings
        self.log_odds = np.array([settings.text_weight, settings.coverage_weight, settings.profile_weight])

    def score(
        self, features: Floats, live: NDArray[np.bool_], after_click: bool, clicked: int | None
    ) -> tuple[Floats, Floats]:
        """Return the probability of each row, and the part of it that each level of evidence gave.

        Args:
            features: (len(FEATURES), rows), finite; the rows of clicks (query, similar-queries, followed-item, popular)
                are not negative, and zero where `live` is false.
            live: (rows,), which rows hold an item; at least one does.
            after_click: whether it is a click that is answered: the last line of the formula.
            clicked: the row of the item clicked just now; None where it is not in the catalogue.

        Returns:
            probabilities: (rows,), sum 1; zero where `live` is false.
            levels: (4, rows), what query, similar-queries, followed-item and the prior gave; they sum to the above.
        """
        s = self.settings
        log_odds = self.log_odds @ features[TEXT : PROFILE + 1]
        log_odds -= log_odds[live].max()
        prior = (features[POPULAR] + s.popular_prior) * np.exp(log_odds)
        prior *= live
        levels = np.empty((4, features.shape[1]))
        similar_total = features[SIMILAR].sum() + s.similar_prior
        query_total = features[QUERY].sum() + s.query_prior
        np.divide(features[QUERY], query_total, out=levels[0])
        np.multiply(features[SIMILAR], s.query_prior / (query_total * similar_total), out=levels[1])
        levels[2] = 0.0
        share = s.query_prior * s.similar_prior / (query_total * similar_total * prior.sum())
        np.multiply(prior, share, out=levels[3])
        if after_click:
            if clicked is not None:
                levels[:, clicked] *= s.repeat
            rest = levels.sum()
            followed_total = features[FOLLOWED].sum() + s.followed_prior
            # Where nothing but the clicked items is there and repeat is 0, nothing is left to scale.
            levels *= s.followed_prior / (followed_total * rest) if rest > 0.0 else 0.0
            np.divide(features[FOLLOWED], followed_total, out=levels[2])
        return levels.sum(axis=0), levels

    def shares(self, features: Floats, levels: Floats, chosen: NDArray[np.intp]) -> Floats:
        """Return what each feature gave to each chosen row, as a share of its score: (len(chosen), len(FEATURES)).

        What the prior gave is divided among text, coverage, profile and popularity in proportion to how far each raises
        the item above the average one; the shares sum to less than 1 where none does.
        """
        part = features[TEXT:, chosen]
        rows = features.shape[1]
        part[:3] -= (features[TEXT : PROFILE + 1].sum(axis=1) / rows)[:, None]
        part[:3] *= self.log_odds[:, None]
        popular = part[3] + self.settings.popular_prior
        part[3] = np.log(popular / (features[POPULAR].sum() / rows + self.settings.popular_prior))
        np.maximum(part, 0.0, out=part)
        part *= levels[3, chosen] / np.maximum(part.sum(axis=0), 1e-12)
        shares = np.concatenate([levels[:3, chosen], part])
        shares /= np.maximum(levels[:, chosen].sum(axis=0), 1e-300)
        return shares.T


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
    rows: NDArray[np.intp] = np.arange(len(probabilities))
    if len(rows) > count:
        least = np.partition(probabilities, len(rows) - count)[len(rows) - count]
        rows = np.flatnonzero(probabilities >= least)
    rows = rows[live[rows]]
    return rows[np.lexsort((rows, -probabilities[rows]))[:count]]
