"""The embedding cache: vectors of the texts seen lately, so that a query typed a thousand times is embedded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class EmbeddingCache:
    """The vectors of the `size` token sequences used last, of one model version: an encoder has its own, so two models never mix.

    A sequence has one vector however it was spelled: to an uncased model `Hose` and `hose ` are the same. So the cache knows the
    tokens of the `size` texts used last, and finds the vector by these.

    Memory: `size` rows of `dimension` float32 (size 100,000 at 384 dimensions: 154 MB), taken as it fills.
    """

    def __init__(self, size: int, dimension: int) -> None:
        self.size = size
        self._rows = np.empty((size, dimension), np.float32)
        self._tokens_of: OrderedDict[str, bytes] = OrderedDict()  # least recently used first
        self._row_of: OrderedDict[bytes, int] = OrderedDict()  # likewise

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, text: str) -> bool:
        """Return whether the text's vector is here; asking does not count as use."""
        tokens = self._tokens_of.get(text)
        return tokens is not None and tokens in self._row_of

    def get(self, texts: Iterable[str], out: NDArray[np.float32]) -> list[int]:
        """Write known texts' vectors into their rows of `out` (len(texts), dimension); return the other positions."""
        return self.find(map(self._tokens, texts), out)

    def _tokens(self, text: str) -> bytes | None:
        tokens = self._tokens_of.get(text)
        if tokens is not None:
            self._tokens_of.move_to_end(text)
        return tokens

    def find(self, sequences: Iterable[bytes | None], out: NDArray[np.float32]) -> list[int]:
        """Do so for token sequences; None is not known."""
        rows: list[int] = []
        known: list[int] = []
        unknown: list[int] = []
        for position, tokens in enumerate(sequences):
            row = self._row_of.get(tokens) if tokens is not None else None
            if tokens is None or row is None:
                unknown.append(position)
            else:
                self._row_of.move_to_end(tokens)
                known.append(position)
                rows.append(row)
        if known:
            out[known] = self._rows[rows]
        return unknown

    def spell(self, texts: Mapping[str, bytes]) -> None:
        """Keep the tokens of texts; those of the least recently used make room."""
        for text, tokens in texts.items():
            self._tokens_of[text] = tokens
            self._tokens_of.move_to_end(text)
            if len(self._tokens_of) > self.size:
                self._tokens_of.popitem(last=False)

    def put(self, sequences: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep the `vectors` (len(sequences), dimension) of token sequences that are new to the cache; the oldest make room."""
        first = max(0, len(sequences) - self.size)
        rows: list[int] = []
        for tokens in sequences[first:]:
            row = len(self._row_of)
            if row == self.size:
                _, row = self._row_of.popitem(last=False)
            self._row_of[tokens] = row
            rows.append(row)
        self._rows[rows] = vectors[first:]
