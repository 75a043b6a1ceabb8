"""How good the recommendations were: from the rank of each clicked item to totals, curves and slices.

Each click is one question with one right answer, the clicked item, at rank r of the list (docs/replay.md has the sources):

    HR@k = [r ≤ k]      MRR@k = [r ≤ k] / r      nDCG@k = [r ≤ k] / log₂(1 + r)      MAP@k = MRR@k

With a single right answer average precision is 1/r, so MAP and MRR are the same number. A total is the mean over clicks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.replay.clicks import Clicks, Flags
from stream.replay.ledger import Ledger

Ranks = NDArray[np.int32]
Floats = NDArray[np.float64]

CUTS = (1, 5, 10)
PRIMARY = "map@5"  # what the verdict is about
POINTS = 40  # of a curve
LEAST_OF_A_POINT = 25  # clicks

_GAINS: dict[str, Callable[[Floats], Floats]] = {
    "map": lambda rank: 1.0 / rank,
    "hr": np.ones_like,
    "ndcg": lambda rank: 1.0 / np.log2(1.0 + rank),
    "mrr": lambda rank: 1.0 / rank,
}
MEASURES = (*(f"{name}@{cut}" for name in _GAINS for cut in CUTS), "mrr")


def gains(measure: str, ranks: Ranks) -> Floats:
    """Return what each click adds to a measure, in [0, 1].

    Args:
        measure: one of `MEASURES`; without a cut the whole list counts.
        ranks: (clicks,), from 1; 0 where the item was not in the list.
    """
    name, _, cut = measure.partition("@")
    result = np.zeros(len(ranks))
    hit = (ranks > 0) & (ranks <= (int(cut) if cut else math.inf))
    result[hit] = _GAINS[name](ranks[hit].astype(np.float64))
    return result


def totals(ledger: Ledger, chosen: Flags) -> dict[str, Any]:
    """Return every measure's mean over the chosen clicks, their number, and how many had no recommendation."""
    ranks = ledger.ranks[chosen]
    result: dict[str, Any] = {"clicks": len(ranks), "no_recommendation": int((~ledger.answered[chosen]).sum())}
    return result | {measure: float(gains(measure, ranks).mean()) for measure in MEASURES}


def curve(clicks: Clicks, ranks: Ranks, measure: str) -> list[dict[str, Any]]:
    """Return a measure over time, test-then-learn: each point is the mean over as many consecutive judged clicks.

    Points of equal numbers of clicks rather than of equal times: they are equally certain.
    """
    times, values = clicks.times[clicks.judged], gains(measure, ranks[clicks.judged])
    points = max(1, min(POINTS, len(values) // LEAST_OF_A_POINT))
    return [
        {"from": int(t[0]), "to": int(t[-1]), "time": int(np.median(t)), "clicks": len(t), "value": float(v.mean())}
        for t, v in zip(np.array_split(times, points), np.array_split(values, points), strict=True)
    ]


def slices(clicks: Clicks, baseline: Ledger) -> dict[str, Flags]:
    """Return all slices: the clicks' own, and `drifting user` by the baseline's drift states, so that variants share them."""
    drifting = clicks.judged & (baseline.states > 0)
    found = {name: clicks.judged & flags for name, flags in clicks.slices.items()}
    result = {"all": clicks.judged}
    if drifting.any():
        result["drifting user"] = drifting
    return result | found
