"""The titles of a large catalogue by their n-grams: which share most with a text, and how much those that are candidates share.

What is read for a text is bounded: an n-gram of very many titles tells little, so that only the rarer ones are looked up.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream.recommend.ngrams import ngrams, normalise

Rows = NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.int64)

COMMON = 1024  # titles; which ones have an n-gram of more is not kept
READ = 2048  # entries that are looked up for a text, beginning with the rarest n-gram


class LookedUp(NamedTuple):
    """What the index says of a text, as long as no title changes.

    Attributes:
        grams: numbers of its n-grams, of those that any title has.
        size: how many n-grams it has.
        mean_coverage: the share of them that a title contains, on average of all titles.
        rows: whose titles share most of the rarer ones.
    """

    grams: NDArray[np.int64]
    size: int
    mean_coverage: float
    rows: Rows


class Titles:
    """The n-grams of each row's title."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of each n-gram
        self._titles = array("i")  # how many titles have it
        self._postings: list[array[int] | None] = []  # which ones; None for a common one
        self._asked = np.zeros(0, np.bool_)  # by n-gram; all false but during `coverage`
        self._pool = np.zeros(1024, np.int32)  # the n-grams of all titles, one after the other
        self._used = 0
        self._unused = 0  # of these, of titles that are gone
        self._start = np.zeros(0, np.int64)  # of each row: where in the pool
        self._size = np.zeros(0, np.int64)
        self._count = 0

    def put(self, row: int, title: str) -> None:
        """Store the title of a row that has none."""
        grams = sorted(ngrams(normalise(title)))
        if row >= len(self._start):
            self._start, self._size = _longer(self._start, row + 1), _longer(self._size, row + 1)
        if self._used + len(grams) > len(self._pool):
            self._pool = self._repacked() if 2 * self._unused > self._used else self._pool
            self._pool = _longer(self._pool, self._used + len(grams))
        numbers = [self._number(gram) for gram in grams]
        self._start[row], self._size[row] = self._used, len(grams)
        self._pool[self._used : self._used + len(grams)] = numbers
        for number in numbers:
            self._titles[number] += 1
            posting = self._postings[number]
            if posting is not None:
                posting.append(row)
                if len(posting) > COMMON:
                    self._postings[number] = None
        self._used += len(grams)
        self._count += 1

    def remove(self, row: int) -> None:
        """Forget a row's title."""
        start, size = int(self._start[row]), int(self._size[row])
        for number in self._pool[start : start + size].tolist():
            self._titles[number] -= 1
            posting = self._postings[number]
            if posting is not None:
                posting.remove(row)
        self._unused += size
        self._size[row] = 0
        self._count -= 1

    def look_up(self, text: str, count: int) -> LookedUp:
        """Return what the index says of a text, with at most `count` rows; the lower row first where equal."""
        grams = ngrams(normalise(text))
        known = sorted(number for gram in grams if (number := self._numbers.get(gram)) is not None)
        mean = sum(self._titles[number] for number in known) / max(1, len(grams) * self._count)
        return LookedUp(np.array(known, np.int64), len(grams), mean, self._search(known, count))

    def _search(self, grams: list[int], count: int) -> Rows:
        """Return the rows that share most of the rarer n-grams."""
        read: array[int] = array("i")
        for number in sorted(grams, key=self._titles.__getitem__):
            posting = self._postings[number]
            if posting is not None:
                if len(read) + len(posting) > READ:
                    break
                read += posting
        if not read:
            return np.zeros(0, np.int64)
        rows, shared = np.unique(np.frombuffer(read, np.int32), return_counts=True)
        best: Rows = rows[np.argsort(-shared, kind="stable")[:count]].astype(np.int64)
        return best

    def coverage(self, text: LookedUp, rows: Rows) -> NDArray[np.float32]:
        """Return the share of a text's n-grams that each of some rows' titles contains, (rows,)."""
        sizes = self._size.take(rows)
        ends = sizes.cumsum()
        if not len(text.grams) or not len(ends):
            return np.zeros(len(rows), np.float32)
        if len(self._asked) < len(self._titles):
            self._asked = np.zeros(2 * len(self._titles), np.bool_)
        self._asked[text.grams] = True
        places = np.repeat(self._start.take(rows) - ends + sizes, sizes)
        places += np.arange(len(places))
        hits = np.zeros(len(places) + 1, np.int64)
        self._asked.take(self._pool.take(places)).cumsum(out=hits[1:])
        self._asked[text.grams] = False
        shares: NDArray[np.float32] = ((hits.take(ends) - hits.take(ends - sizes)) / text.size).astype(np.float32)
        return shares

    def _number(self, gram: str) -> int:
        number = self._numbers.get(gram)
        if number is None:
            number = self._numbers[gram] = len(self._titles)
            self._titles.append(0)
            self._postings.append(array("i"))
        return number

    def _repacked(self) -> NDArray[np.int32]:
        """Return the pool without the n-grams of titles that are gone."""
        rows = np.flatnonzero(self._size)
        sizes = self._size[rows]
        starts = np.cumsum(sizes) - sizes
        places = np.repeat(self._start[rows] - starts, sizes) + np.arange(sizes.sum())
        self._start[rows] = starts
        self._used, self._unused = len(places), 0
        pool: NDArray[np.int32] = self._pool[places]
        return pool


def _longer(values: NDArray[Number], size: int) -> NDArray[Number]:
    """Return the values with room for `size` of them and half as many again."""
    if size <= len(values):
        return values
    longer = np.zeros(max(size, len(values) * 3 // 2), values.dtype)
    longer[: len(values)] = values
    return longer
