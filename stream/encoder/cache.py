"""The embedding cache: vectors of the texts seen lately, so that a query typed a thousand times is embedded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class EmbeddingCache:
    """The vectors of the `size` texts used last, of one model version: an encoder has its own, so two models never mix.

    Memory: `size` rows of `dimension` float32 (size 100,000 at 384 dimensions: 154 MB), taken as it fills.
    """

    def __init__(self, size: int, dimension: int) -> None:
        self.size = size
        self._rows = np.empty((size, dimension), np.float32)
        self._row_of: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, text: str) -> bool:
        """Return whether the text's vector is here; asking does not count as use."""
        return text in self._row_of

    def get(self, texts: Sequence[str], out: NDArray[np.float32]) -> list[int]:
        """Write known texts' vectors into their rows of `out` (len(texts), dimension); return the other positions."""
        rows: list[int] = []
        known: list[int] = []
        unknown: list[int] = []
        for position, text in enumerate(texts):
            row = self._row_of.get(text)
            if row is None:
                unknown.append(position)
            else:
                self._row_of.move_to_end(text)
                known.append(position)
                rows.append(row)
        if known:
            out[known] = self._rows[rows]
        return unknown

    def put(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep the `vectors` (len(texts), dimension) of texts that are new to the cache; the oldest make room."""
        first = max(0, len(texts) - self.size)
        rows: list[int] = []
        for text in texts[first:]:
            row = len(self._row_of)
            if row == self.size:
                _, row = self._row_of.popitem(last=False)
            self._row_of[text] = row
            rows.append(row)
        self._rows[rows] = vectors[first:]
