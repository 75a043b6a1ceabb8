"""The titles of a large catalogue by their n-grams: which share most with a text, and how much those that are candidates share.

What is read for a text is bounded: an n-gram of very many titles tells little, so that only the rarer ones are looked up.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream.recommend.ngrams import ngrams, normalise

Rows = NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.int64)

COMMON = 1024  # titles; which ones have an n-gram of more is not kept
READ = 2048  # entries that are looked up for a text, beginning with the rarest n-gram
LINE = 16  # n-grams that lie together: what is read from memory at a time
WORD = 8  # of them are counted at a time
NOWHERE = np.zeros(1, np.int64)
TOGETHER = 8  # texts that are compared with titles at a time: few enough to stay in the processor's cache


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
        self._numbers: dict[str, int] = {}  # of each n-gram, from 1 on: 0 fills up lines
        self._titles = array("i", [0])  # how many titles have it
        self._postings: list[array[int] | None] = [None]  # which ones; None for a common one
        self._asked = np.zeros(0, np.bool_)  # by text and n-gram; all false but during `coverage`
        self._pool = np.zeros((64, LINE), np.int32)  # the n-grams of all titles, each beginning a line
        self._used = 0
        self._unused = 0  # of these lines, of titles that are gone
        self._start = np.zeros(0, np.int64)  # of each row: its first line
        self._lines = np.zeros(0, np.int64)
        self._count = 0

    def put(self, row: int, title: str) -> None:
        """Store the title of a row that has none."""
        grams = sorted(ngrams(normalise(title)))
        lines = -(-len(grams) // LINE)
        if row >= len(self._start):
            self._start, self._lines = _longer(self._start, row + 1), _longer(self._lines, row + 1)
        if self._used + lines > len(self._pool):
            self._pool = self._repacked() if 2 * self._unused > self._used else self._pool
            self._pool = _longer(self._pool, self._used + lines)
        numbers = [self._number(gram) for gram in grams]
        self._start[row], self._lines[row] = self._used, lines
        self._pool[self._used : self._used + lines].reshape(-1)[: len(grams)] = numbers
        for number in numbers:
            self._titles[number] += 1
            posting = self._postings[number]
            if posting is not None:
                posting.append(row)
                if len(posting) > COMMON:
                    self._postings[number] = None
        self._used += lines
        self._count += 1

    def remove(self, row: int) -> None:
        """Forget a row's title."""
        start, lines = int(self._start[row]), int(self._lines[row])
        for number in self._pool[start : start + lines].ravel().tolist():
            if number:
                self._titles[number] -= 1
                posting = self._postings[number]
                if posting is not None:
                    posting.remove(row)
        self._unused += lines
        self._lines[row] = 0
        self._count -= 1

    def look_up(self, text: str, count: int) -> LookedUp:
        """Return what the index says of a text, with at most `count` rows; the lower row first where equal."""
        grams, titles = ngrams(normalise(text)), self._titles
        # Rarest first, by number where equal.
        known = sorted((titles[number], number) for gram in grams if (number := self._numbers.get(gram)) is not None)
        numbers = [number for _, number in known]
        mean = sum([titles for titles, _ in known]) / max(1, len(grams) * self._count)
        return LookedUp(np.array(numbers, np.int64), len(grams), mean, self._search(numbers, count))

    def _search(self, grams: list[int], count: int) -> Rows:
        """Return the rows that share most of the rarer n-grams, given rarest first."""
        found, left = [], READ
        for number in grams:
            posting = self._postings[number]
            if posting is not None:
                left -= len(posting)
                if left < 0:
                    break
                found.append(posting)
        read = np.sort(np.frombuffer(b"".join(found), np.int32))
        if not len(read):
            return np.zeros(0, np.int64)
        edges = np.flatnonzero(read[1:] != read[:-1])
        edges += 1
        first = np.concatenate([NOWHERE, edges])
        shared = np.concatenate([edges, [len(read)]]) - first
        sharing = np.bincount(shared).tolist()  # how many rows share so many: they need not be sorted by it
        least, more = len(sharing) - 1, 0
        while least > 1 and more + sharing[least] < count:
            more += sharing[least]
            least -= 1
        equal = first[shared == least][: count - more]
        best: Rows = read[np.concatenate([first[shared > least], equal])].astype(np.int64)
        return best

    def coverage(self, texts: Sequence[LookedUp], text: NDArray[np.intp], rows: Rows) -> NDArray[np.float32]:
        """Return the share of a text's n-grams that a row's title contains, of pairs of both: (pairs,).

        Args:
            texts: n of them.
            text: (pairs,), which of them it is, ascending.
            rows: (pairs,).
        """
        every = len(self._titles)
        if len(self._asked) < TOGETHER * every:
            self._asked = np.zeros(2 * TOGETHER * every, np.bool_)
        shared = np.zeros(len(rows), np.int64)
        cuts = np.searchsorted(text, np.arange(0, len(texts) + TOGETHER, TOGETHER)).tolist()
        for first, (begin, end) in zip(range(0, len(texts), TOGETHER), pairwise(cuts), strict=True):
            grams = np.concatenate([one.grams + at * every for at, one in enumerate(texts[first : first + TOGETHER])])
            self._asked[grams] = True
            shared[begin:end] = self._asked_of((text[begin:end] - first) * every, rows[begin:end])
            self._asked[grams] = False
        shares: NDArray[np.float32] = (shared / np.array([max(1, one.size) for one in texts])[text]).astype(np.float32)
        return shares

    def _asked_of(self, offset: NDArray[np.intp], rows: Rows) -> NDArray[np.int64]:
        """Return how many n-grams of each row's title are asked for from its offset on, (rows,)."""
        lines = self._lines.take(rows)
        ends = lines.cumsum()
        pair = np.repeat(np.arange(len(rows)), lines)
        places = (self._start.take(rows) - ends + lines).take(pair)
        places += np.arange(len(places))
        grams = self._pool.take(places, axis=0)
        grams += offset.astype(np.int32).take(pair)[:, None]  # not in 64 bits: that takes half as long again
        hits = np.zeros(len(places) * LINE // WORD + 1, np.int64)
        np.bitwise_count(self._asked.take(grams).view(np.uint64)).cumsum(out=hits[1:])
        ends *= LINE // WORD
        found: NDArray[np.int64] = hits.take(ends) - hits.take(ends - lines * (LINE // WORD))
        return found

    def _number(self, gram: str) -> int:
        number = self._numbers.get(gram)
        if number is None:
            number = self._numbers[gram] = len(self._titles)
            self._titles.append(0)
            self._postings.append(array("i"))
        return number

    def _repacked(self) -> NDArray[np.int32]:
        """Return the pool without the n-grams of titles that are gone."""
        rows = np.flatnonzero(self._lines)
        lines = self._lines[rows]
        starts = np.cumsum(lines) - lines
        places = np.repeat(self._start[rows] - starts, lines) + np.arange(lines.sum())
        self._start[rows] = starts
        self._used, self._unused = len(places), 0
        pool: NDArray[np.int32] = self._pool[places]
        return pool


def _longer(values: NDArray[Number], size: int) -> NDArray[Number]:
    """Return the values with room for `size` of them and half as many again."""
    if size <= len(values):
        return values
    longer = np.zeros((max(size, len(values) * 3 // 2), *values.shape[1:]), values.dtype)
    longer[: len(values)] = values
    return longer
