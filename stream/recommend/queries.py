"""The queries that clicks have followed, and which of them are nearly the same text as another one.

A query never seen before is often one that was: misspelt, shortened, or with a word more.
"""

from __future__ import annotations

import math
from array import array
from bisect import insort
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.recommend.clicks import Clicks
from stream.recommend.ngrams import NgramIndex, ngrams

KEPT = 8192  # queries whose neighbours are kept
LEAST = 0.4  # cosine under which two queries have nothing to do with each other


class Neighbours(NamedTuple):
    """Queries near to another one, nearest first, what each of them counts, and the clicks that have followed it."""

    names: list[str]
    weights: array[float]
    clicks: list[Clicks]


class KnownQueries:
    """Normalised queries by number, and the nearest neighbours of any query among them.

    The neighbours of what was asked are kept. A query that becomes known is compared with all that were asked, so that asking
    again costs nothing: queries are asked far more often than new ones come.

    Args:
        neighbours: how many at most.
        sharpness: a neighbour at cosine c of the n-gram sets has the weight exp(sharpness·(c − 1)).
    """

    def __init__(self, neighbours: int, sharpness: float) -> None:
        self.neighbours = neighbours
        self.sharpness = sharpness
        self._clicks: dict[str, Clicks] = {}  # of each known one
        self._known = _Names()
        self._asked = _Names()
        self._floor = array("d")  # of each asked one: the cosine that a neighbour must have
        self._best: list[list[tuple[float, str]]] = []  # of each asked one: (−cosine, name), nearest first
        # Of what was asked: its number, and its neighbours where they are up to date.
        self._found: OrderedDict[str, tuple[int, Neighbours | None]] = OrderedDict()

    def add(self, name: str, clicks: Clicks) -> None:
        """Make a normalised query known, which must not be known yet, and the clicks that follow it."""
        grams = ngrams(name)
        self._clicks[name] = clicks
        self._known.append(name, grams)
        for number, cosine in self._asked.near(grams, np.frombuffer(self._floor)):
            other = self._asked.names[number]
            if other != name:
                insort(self._best[number], (-cosine, name))
                self._settle(number)
                self._found[other] = number, None

    def rebuild(self, clicks: Mapping[str, Clicks]) -> None:
        """Know these queries instead."""
        self.__init__(self.neighbours, self.sharpness)  # type: ignore[misc]
        for name, some in clicks.items():
            self.add(name, some)

    def similar(self, name: str) -> Neighbours:
        """Return the nearest known queries other than `name` itself; names decide between equally near ones."""
        found = self._found.get(name)
        if found is None:
            number, neighbours = self._search(name), None
        else:
            number, neighbours = found
            self._found.move_to_end(name)
        if neighbours is None:
            best = self._best[number]
            weights = array("d", [math.exp(self.sharpness * (-near - 1.0)) for near, _ in best])
            names = [name for _, name in best]
            neighbours = Neighbours(names, weights, [self._clicks[name] for name in names])
            self._found[name] = number, neighbours
            if len(self._found) > KEPT:
                _, (forgotten, _) = self._found.popitem(last=False)
                self._floor[forgotten] = math.inf
        return neighbours

    def _search(self, name: str) -> int:
        """Look for a query's neighbours, and return the number under which they are kept."""
        if len(self._best) >= 2 * KEPT:
            self._drop_forgotten()
        grams, number = ngrams(name), len(self._best)
        near = self._known.near(grams, LEAST, at_most=self.neighbours + 1)  # one of them may be the query itself
        self._asked.append(name, grams)
        names = self._known.names
        self._best.append(sorted((-cosine, names[other]) for other, cosine in near if names[other] != name))
        self._floor.append(LEAST)
        self._settle(number)
        return number

    def _settle(self, number: int) -> None:
        best = self._best[number]
        del best[self.neighbours :]
        if len(best) == self.neighbours:
            self._floor[number] = -best[-1][0]

    def _drop_forgotten(self) -> None:
        kept = [(name, self._best[number], self._floor[number]) for name, (number, _) in self._found.items()]
        self._asked, self._best, self._floor = _Names(), [], array("d")
        for number, (name, best, floor) in enumerate(kept):
            self._asked.append(name, ngrams(name))
            self._best.append(best)
            self._floor.append(floor)
            self._found[name] = number, self._found[name][1]


class _Names:
    """Names by number, and which of them share n-grams with another one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sizes = array("q")
        self._index = NgramIndex()

    def append(self, name: str, grams: frozenset[str]) -> None:
        """Give a name the next number."""
        self._index.put(len(self.names), grams)
        self.names.append(name)
        self._sizes.append(max(1, len(grams)))

    def near(
        self, grams: frozenset[str], least: float | NDArray[np.float64], at_most: int | None = None
    ) -> list[tuple[int, float]]:
        """Return number and cosine of the names that come up to `least`, which may be one for each name.

        At most the best `at_most`, and all that are as near as the last of them.
        """
        if not grams or not self.names:
            return []
        shared = self._index.shared(grams, len(self.names))
        # A text that shares s of g n-grams has s at least, so that its cosine is √(s/g) at most.
        numbers = np.flatnonzero(shared >= max(1, math.ceil(0.999 * LEAST**2 * len(grams))))
        cosine = shared[numbers] / np.sqrt(len(grams) * np.frombuffer(self._sizes, np.int64)[numbers])
        near = cosine >= (least[numbers] if isinstance(least, np.ndarray) else least)
        numbers, cosine = numbers[near], cosine[near]
        if at_most is not None and len(cosine) > at_most:
            near = cosine >= np.partition(cosine, len(cosine) - at_most)[len(cosine) - at_most]
            numbers, cosine = numbers[near], cosine[near]
        return list(zip(numbers.tolist(), cosine.tolist(), strict=True))
