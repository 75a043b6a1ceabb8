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

from functools import cache
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.encoder.manifest import RankWeights
from stream.settings import Recommend

FEATURES = ("query", "similar-queries", "followed-item", "text", "coverage", "profile", "popular")
QUERY, SIMILAR, FOLLOWED, TEXT, COVERAGE, PROFILE, POPULAR = range(len(FEATURES))
LEAST_SHARE = 0.1  # of an item's score, under which something is not a reason
MOST_REASONS = 3
DIGITS = np.zeros(len(FEATURES), np.int64)  # by place: the first reason is the first digit
DIGITS[:MOST_REASONS] = (len(FEATURES) + 1) ** np.arange(MOST_REASONS)[::-1]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


class Ranking(NamedTuple):
    """The probability of every row at each event, and where it came from.

    Attributes:
        probabilities: (events, rows), sum 1 each, with those beyond the rows; zero where nothing can be recommended.
        prior: (events, rows), the first line of the formula.
        worth: (4, events), what a unit of query, similar-queries, followed-item and prior adds to the probability.

    """

    probabilities: Floats
    prior: Floats
    worth: Floats


def learned(settings: Recommend, weights: RankWeights | None, scales: int) -> Recommend:
    """Return the settings with the weights that came with the model; what somebody has set explicitly stays as it is.

    Raises:
        ValueError: the weights are for another number of time scales than `scales`, that of the profile.
    """
    if weights is None:
        return settings
    if len(weights.profile_shares) != scales:
        raise ValueError(
            f"the model's ranking weights are for a profile of {len(weights.profile_shares)} time scales, and "
            f"profile.half_lives_days has {scales}: set as many, or learn anew with model-export train --task rank"
        )
    found = {name: value for name, value in msgspec.structs.asdict(weights).items() if name not in settings.model_fields_set}
    return settings.model_copy(update=found)


class Ranker:
    """The formula above with the weights of the settings. Every event is computed on its own, many in one pass."""

    def __init__(self, settings: Recommend) -> None:
        self.settings = settings
        self.log_odds = np.array([settings.text_weight, settings.coverage_weight, settings.profile_weight])

    def rank(
        self,
        features: Floats,
        live: NDArray[np.bool_],
        after_click: NDArray[np.bool_],
        clicked: Rows,
        beyond: Floats | None = None,
    ) -> Ranking:
        """Return the probability of each row.

        Args:
            features: (len(FEATURES), events, rows), finite; the clicks (query, similar-queries, followed-item, popular)
                are not negative, and zero where `live` is false. What `repeat` scales down is scaled down in place.
            live: (rows,) or (events, rows), which rows hold an item; at least one does.
            after_click: (events,), whether it is a click that is answered: the last line of the formula.
            clicked: (events,), the row of the item clicked just now; -1 where there is none in the catalogue.
            beyond: (events,), the logarithm of the right side of the prior, summed over the items that are not among the rows;
                none are if not given.

        """
        s = self.settings
        log_odds = s.text_weight * features[TEXT]
        log_odds += s.coverage_weight * features[COVERAGE]
        log_odds += s.profile_weight * features[PROFILE]
        highest = log_odds.max(axis=1, keepdims=True)
        log_odds -= highest
        prior = np.exp(log_odds, out=log_odds)
        prior *= features[POPULAR] + s.popular_prior
        prior *= live
        query_total, similar_total, followed_total = features[:TEXT].sum(axis=2)
        asked = s.query_prior / (query_total + s.query_prior)
        similar = asked / (similar_total + s.similar_prior)
        prior_total = prior.sum(axis=1)
        if beyond is not None:
            prior_total += np.exp(beyond - highest[:, 0])
        worth = np.stack([asked / s.query_prior, similar, np.zeros_like(asked), similar * s.similar_prior / prior_total])
        again = np.flatnonzero(after_click & (clicked >= 0))
        if len(again):
            here = clicked[again]
            known = worth[0, again] * features[QUERY, again, here] + worth[1, again] * features[SIMILAR, again, here]
            rest = 1.0 - (1.0 - s.repeat) * (known + worth[3, again] * prior[again, here])
            features[QUERY, again, here] *= s.repeat
            features[SIMILAR, again, here] *= s.repeat
            prior[again, here] *= s.repeat
            # Nothing is left where the catalogue is that one item and `repeat` is 0.
            worth[:, again] *= np.where(rest > 1e-9, 1.0 / np.maximum(rest, 1e-9), 0.0)
        followed = followed_total + s.followed_prior
        worth *= np.where(after_click, s.followed_prior / followed, 1.0)
        worth[2] = np.where(after_click, 1.0 / followed, 0.0)
        probabilities = worth[3, :, None] * prior
        for feature in (QUERY, SIMILAR, FOLLOWED):
            probabilities += worth[feature, :, None] * features[feature]
        return Ranking(probabilities, prior, worth)

    def shares(self, features: Floats, averages: Floats, parts: Floats) -> Floats:
        """Return what each feature gave to each recommended item, as a share of its score: (len(FEATURES), items).

        What the prior gave is divided among text, coverage, profile and popularity in proportion to how far each raises
        the item above the average one; the shares sum to less than 1 where none does.

        Args:
            features: (4, items), of each item: text, coverage, profile, popular.
            averages: (4, items), of the whole catalogue at that event.
            parts: (4, items), what query, similar-queries, followed-item and the prior gave: they sum to the score.

        """
        raised = features - averages
        raised[:3] *= self.log_odds[:, None]
        popular = self.settings.popular_prior
        raised[3] = np.log((features[3] + popular) / (averages[3] + popular))
        np.maximum(raised, 0.0, out=raised)
        raised *= parts[3] / np.maximum(raised[0] + raised[1] + raised[2] + raised[3], 1e-12)
        total = parts[0] + parts[1] + parts[2] + parts[3]
        shares: Floats = np.concatenate([parts[:3], raised]) / np.maximum(total, 1e-300)
        return shares


def strongest(shares: Floats) -> NDArray[np.int64]:
    """Return the greatest shares of each item, as numbers that `reasons` reads: (items,).

    Args:
        shares: (len(FEATURES), items).
    """
    # The place of each: how many are greater, the earlier first where equal. Far cheaper than to sort very many very short columns.
    places = np.zeros(shares.shape, np.int8)
    for one, other in combinations(range(len(FEATURES)), 2):
        ahead = shares[one] >= shares[other]
        places[other] += ahead
        places[one] += ~ahead
    digits = np.where(shares >= LEAST_SHARE, DIGITS[places], 0)
    digits *= np.arange(1, len(FEATURES) + 1)[:, None]
    codes: NDArray[np.int64] = digits.sum(axis=0)
    return codes


@cache
def reasons(code: int) -> list[str]:
    """Return names of features, strongest first; `["catalogue"]` where nothing spoke for the item.

    Args:
        code: a number whose digits in base len(FEATURES) + 1 are features, the strongest first.
    """
    names: list[str] = []
    while code:
        code, digit = divmod(code, len(FEATURES) + 1)
        if digit:  # fewer reasons end in zeros
            names.insert(0, FEATURES[digit - 1])
    return names or ["catalogue"]


def best_rows(probabilities: Floats, live: NDArray[np.bool_], count: int) -> tuple[Rows, Rows]:
    """Return the `count` live rows of the highest probability of each event, best first; the lower row first where equal.

    Args:
        probabilities: (events, rows), not negative; zero where `live` is false.
        live: (rows,) or (events, rows).
        count: how many at most.

    Returns:
        Event and row of each choice, by event.
    """
    width = probabilities.shape[1]
    if width > count:
        least = np.partition(probabilities, width - count, axis=1)[:, width - count, None]
        events, rows = np.nonzero((probabilities >= least) & live)
    else:
        events, rows = np.nonzero(np.broadcast_to(live, probabilities.shape))
    order = np.lexsort((-probabilities[events, rows], events))  # which leaves rows in their order where equal
    events, rows = events[order], rows[order]
    first = np.searchsorted(events, np.arange(len(probabilities)))
    best = np.arange(len(events)) - first[events] < count
    return events[best], rows[best]
