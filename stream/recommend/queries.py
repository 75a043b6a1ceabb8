"""The queries that clicks have followed, and which of them are nearly the same text as another one.

A query never seen before is often one that was: misspelt, shortened, or with a word more.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

from stream.recommend.ngrams import NgramIndex, ngrams

KEPT = 20_000  # queries whose neighbours are kept
CATCH_UP = 48  # up to so many new queries are compared one by one: cheaper than the index
LEAST = 0.4  # cosine under which two queries have nothing to do with each other


class KnownQueries:
    """Normalised queries by number, and the nearest neighbours of any query among them.

    Args:
        neighbours: how many at most.
        sharpness: a neighbour at cosine c of the n-gram sets has the weight exp(sharpness·(c − 1)).
    """

    def __init__(self, neighbours: int, sharpness: float) -> None:
        self.neighbours = neighbours
        self.sharpness = sharpness
        self._index = NgramIndex()
        self._names: list[str] = []
        self._sizes = np.ones(0, np.int64)
        # query → (how many names it was compared with, its best [(−cosine, name)])
        self._found: OrderedDict[str, tuple[int, list[tuple[float, str]]]] = OrderedDict()

    def add(self, name: str) -> None:
        """Make a normalised query known, which must not be known yet."""
        number = len(self._names)
        grams = ngrams(name)
        self._index.put(number, grams)
        self._names.append(name)
        if number == len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.ones(max(256, number // 2), np.int64)])
        self._sizes[number] = max(1, len(grams))

    def rebuild(self, names: list[str]) -> None:
        """Know these queries instead."""
        self.__init__(self.neighbours, self.sharpness)  # type: ignore[misc]
        for name in names:
            self.add(name)

    def similar(self, name: str) -> list[tuple[str, float]]:
        """Return the nearest known queries other than `name` itself, and their weights, nearest first.

        Names decide between equally near ones. The answer is kept and brought up to date with the queries that
        came since, so that a frequent query costs little.
        """
        known = len(self._names)
        compared, best = self._found.get(name, (0, []))
        if compared < known:
            grams = ngrams(name)
            best = self._merge(best, name, grams, compared)
            self._found[name] = (known, best)
            if len(self._found) > KEPT:
                self._found.popitem(last=False)
        if known:
            self._found.move_to_end(name)
        return [(other, math.exp(self.sharpness * (-near - 1.0))) for near, other in best]

    def _merge(self, best: list[tuple[float, str]], name: str, grams: frozenset[str], compared: int) -> list[tuple[float, str]]:
        known, size = len(self._names), len(grams)
        found: list[tuple[float, str]] = []
        if size == 0:
            return []
        if known - compared <= CATCH_UP:
            for number in range(compared, known):
                shared = len(grams & self._index.grams[number])
                if shared and self._names[number] != name:
                    found.append((-(shared / math.sqrt(size * int(self._sizes[number]))), self._names[number]))
        else:
            # The whole index, from the beginning: the same numbers as above by the same operations.
            best = []
            cosine = self._index.shared(grams, known) / np.sqrt(size * self._sizes[:known])
            for number in np.flatnonzero(cosine >= self._threshold(cosine)).tolist():
                if self._names[number] != name:
                    found.append((-float(cosine[number]), self._names[number]))  # noqa: PERF401
        return sorted([*best, *(pair for pair in found if -pair[0] >= LEAST)])[: self.neighbours]

    def _threshold(self, cosine: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        wanted = self.neighbours + 1  # one of them may be the query itself
        if len(cosine) <= wanted:
            return LEAST
        return max(LEAST, float(np.partition(cosine, len(cosine) - wanted)[len(cosine) - wanted]))
