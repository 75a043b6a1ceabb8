"""Character n-grams: what makes "modern warfare3" and "Modern Warfar 3" nearly the same text.

They need no model, no tokeniser and no language, and they are what is left in common when a word is misspelt.
"""

from __future__ import annotations

import sys
import unicodedata
from array import array
from collections.abc import Iterable
from functools import lru_cache
from operator import add

import numpy as np
from numpy.typing import NDArray

LONGEST = 200  # characters of a text that count: a 1,000-character query must not cost more than a paragraph


@lru_cache(maxsize=16_384)
def normalise(text: str) -> str:
    """Return what counts of a query or a title: its letters and digits, case folded; `""` where there are none.

    "Xbox  360" and "xbox360" are the same query. At most `LONGEST` characters.
    """
    folded = unicodedata.normalize("NFKC", text[: 4 * LONGEST]).casefold()
    return "".join(filter(str.isalnum, folded))[:LONGEST]


@lru_cache(maxsize=4096)
def ngrams(normalised: str) -> frozenset[str]:
    """Return the distinct pairs and triples of neighbouring characters, the ends marked; none for an empty text.

    Equal ones are one object: hundreds of thousands of texts share a few thousand n-grams.
    """
    if not normalised:
        return frozenset()
    marked = f"^{normalised}$"
    pairs = list(map(add, marked, marked[1:]))
    return frozenset(map(sys.intern, [*pairs, *map(add, pairs, marked[2:])]))


class NgramIndex:
    """An inverted index: how many n-grams a text shares with each of many numbered texts.

    A number may be used again after `remove`, or replaced by another `put`.
    """

    def __init__(self) -> None:
        self._postings: dict[str, array[int]] = {}

    def put(self, number: int, grams: Iterable[str]) -> None:
        """Store a text's n-grams under `number` ≥ 0, which must not be in use."""
        for gram in grams:
            posting = self._postings.get(gram)
            if posting is None:
                posting = self._postings[gram] = array("q")
            posting.append(number)

    def remove(self, number: int, grams: Iterable[str]) -> None:
        """Forget `number`, whose n-grams are these."""
        for gram in grams:
            posting = self._postings[gram]
            posting.remove(number)
            if not posting:
                del self._postings[gram]

    def shared(self, grams: Iterable[str], size: int) -> NDArray[np.int64]:
        """Return, for each number below `size`, how many of `grams` its text contains; zero for numbers not in use."""
        found = b"".join([posting for gram in grams if (posting := self._postings.get(gram)) is not None])
        return np.bincount(np.frombuffer(found, np.int64), minlength=size)
