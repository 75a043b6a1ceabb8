"""Histories cut in two where a first detector finds that the interest changed.

A log of real people holds changes that nobody has marked. A piece with one inside is a wrong example, and an alarm about it counts
as a false one. So a detector is trained twice: the first one says where to cut, the second learns from what that leaves.

With p_n(k) what the detector says after behaviour n about an age of class k, and k(n − c) the class of a change at c by then:

    evidence(c) = mean over n = c + 4 … c + 39 of  log(p_n(k − 1) + p_n(k) + p_n(k + 1)) − log p_n(never),   k = k(n − c)

A history is cut at the c of the most evidence, if that is positive: where a change just there is more likely than none.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model_export.splices import AGES, History

BEFORE, AFTER = 25, 20  # behaviours, at least, before and after a cut: less says nothing about a taste
FIRST, LAST = 4, 40  # behaviours after a change, by which it is judged
SHORTEST = 40  # pieces that are kept


def evidence(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much speaks for a change at each place, (n,); −∞ where it is too near to an end.

    Args:
        chances: probability of each class after each behaviour, (n, classes); the last class is never.
    """
    n, never = len(chances), len(AGES)
    last = never - 1
    ages = np.arange(never)
    near = np.log(chances[:, ages] + chances[:, np.maximum(ages - 1, 0)] + chances[:, np.minimum(ages + 1, last)])
    against = np.log(chances[:, never])
    found = np.full(n, -np.inf)
    for place in range(BEFORE, n - AFTER):
        after = np.arange(place + FIRST, min(place + LAST, n))
        classes = np.minimum(np.searchsorted(AGES, after - place + 1), last)
        found[place] = near[after, classes].mean() - against[after].mean()
    return found


def cut(histories: Iterable[tuple[History, NDArray[np.float64]]]) -> tuple[list[History], int]:
    """Return the histories, those with a change in two pieces, and how many were cut. Pieces under `SHORTEST` are left out.

    Args:
        histories: each with the probabilities of `evidence`, for as many behaviours as were judged.
    """
    pieces: list[History] = []
    cuts = 0
    for history, chances in histories:
        found = evidence(chances)
        place = int(found.argmax())
        if found[place] > 0.0:
            cuts += 1
            pieces += [piece for piece in (history[:place], history[place:]) if len(piece) >= SHORTEST]
        else:
            pieces.append(history)
    return pieces, cuts
