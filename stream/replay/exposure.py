"""What was shown, beside whether it was right: coverage, diversity, novelty, and the pull of the popular.

Per recommendation, averaged over those from the first judged click on. Popularity is what was known at the time: with c_i clicks on
item i so far, C in all and N items in the catalogue, p_i = (c_i + 1) / (C + N).

    coverage      share of the catalogue that was recommended at least once (Herlocker et al. 2004)
    gini          of how often each item of the catalogue was recommended: 0 all alike, 1 one item only (Fleder & Hosanagar 2009)
    diversity     mean of 1 − cos over the pairs of a list (Ziegler et al. 2005; Smyth & McClave 2001)
    novelty       mean of −log₂ p_i over a list, bits (Zhou et al. 2010; Vargas & Castells 2011)
    popular lift  mean p_i of what was recommended over mean p_i of what was clicked, − 1 (Abdollahpouri et al. 2020)
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from stream.recommend.catalogue import Catalogue
from stream.replay.clicks import Clicks
from stream.replay.ledger import Ledger

BLOCK = 512  # lists whose vectors are held at a time: few enough to stay in the cache of a core


def exposure(ledger: Ledger, clicks: Clicks, catalogue: Catalogue) -> dict[str, float]:
    """Return the measures above for one variant.

    Args:
        ledger: what it recommended.
        clicks: all of the recording.
        catalogue: the items, and the vectors by which lists are judged.
    """
    begin = int(np.searchsorted(ledger.times, clicks.times[clicks.judged][0]))
    shown = ledger.items[begin:]
    times_shown = np.bincount(shown[shown >= 0], minlength=len(ledger.item_ids)).astype(np.float64)
    in_catalogue = [number for number, item in enumerate(ledger.item_ids) if item in catalogue]
    everything = np.zeros(len(catalogue))
    everything[: len(in_catalogue)] = times_shown[in_catalogue]
    novelty, lift = _popularity(ledger, clicks, len(catalogue), begin)
    return {
        "coverage": float((everything > 0).mean()) if len(everything) else 0.0,
        "gini": _gini(everything),
        "diversity": _diversity(shown, ledger.item_ids, catalogue),
        "novelty": novelty,
        "popular_lift": lift,
    }


def _gini(amounts: NDArray[np.float64]) -> float:
    total = float(amounts.sum())
    if total == 0.0:
        return 0.0
    n = len(amounts)
    ranks = 2.0 * np.arange(1, n + 1) - n - 1.0
    return float((ranks * np.sort(amounts)).sum() / (n * total))


def _diversity(shown: NDArray[np.int32], item_ids: list[str], catalogue: Catalogue) -> float:
    """Mean pairwise distance: with unit vectors the sum of all pairs' cosines is |Σ v|² − n, twice."""
    found = {number: vector for number, item in enumerate(item_ids) if (vector := catalogue.vector(item)) is not None}
    vectors = np.array(list(found.values()), np.float64).reshape(len(found), catalogue.dimension)
    columns = np.full(len(item_ids) + 1, -1, np.int32)  # the last is what −1 means
    columns[list(found)] = np.arange(len(found))
    places = columns[shown]
    n = (places >= 0).sum(axis=1)
    several = np.flatnonzero(n > 1)
    if not len(several):
        return 0.0
    rows = places[several]
    ends = np.concatenate([[0], np.cumsum(n[several])])
    lists = scipy.sparse.csr_array((np.ones(ends[-1]), rows[rows >= 0], ends), (len(several), len(found)))
    size = n[several].astype(np.float64)
    total = 0.0
    for start in range(0, len(several), BLOCK):
        sums, count = lists[start : start + BLOCK] @ vectors, size[start : start + BLOCK]
        total += float((1.0 - ((sums**2).sum(axis=1) - count) / (count * (count - 1.0))).sum())
    return total / len(several)


def _popularity(ledger: Ledger, clicks: Clicks, catalogue: int, begin: int) -> tuple[float, float]:
    """Return novelty and lift; each list is judged by the clicks before it, and so is each click."""
    numbers = {item: number for number, item in enumerate(ledger.item_ids)}
    clicked = np.array([numbers.setdefault(item, len(numbers)) for item in clicks.item_ids], np.int64)
    # Clicks by item, then by their order: how many of an item come before the n-th click is a matter of two searches.
    order = np.arange(len(clicked))
    keys = np.sort(clicked * len(order) + order)

    def popularity(items: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.float64]:
        first = items * len(order)
        counts = np.searchsorted(keys, first + before) - np.searchsorted(keys, first)
        return (counts + 1.0) / (before + catalogue)

    shown, listed = ledger.items[begin:].astype(np.int64), ledger.items[begin:] >= 0
    before = np.searchsorted(clicks.times, ledger.times[begin:])
    of_lists = popularity(np.maximum(shown, 0), before[:, None])
    sizes = listed.sum(axis=1)
    full = sizes > 0
    if not full.any():
        return 0.0, 0.0
    novelty = (-np.log2(of_lists) * listed).sum(axis=1)[full] / sizes[full]
    recommended = (of_lists * listed).sum(axis=1)[full] / sizes[full]
    judged = np.flatnonzero(clicks.judged)
    of_clicks = popularity(clicked[judged], np.searchsorted(clicks.times, clicks.times[judged]))
    return float(novelty.mean()), float(recommended.mean() / of_clicks.mean() - 1.0)
