"""The items that can be recommended, and the search among them.

Items arrive, change and leave while the worker runs. Each has a row, with a vector and a title. In a small catalogue search is exact:
one matrix product over all rows. One that has grown beyond `exact_items` is indexed, and stays so until it is made anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.events import Item
from stream.recommend.ngrams import NgramIndex, ngrams, normalise
from stream.recommend.titles import Titles
from stream.recommend.vectors import LargeVectors, Vector, on_grid

LONGEST_TEXT = 1000  # characters of an item that are encoded; an encoder of 256 tokens reads no more
BLOCK = 256  # rows by which the matrix grows at least
JOURNAL = 100_000  # changes that are remembered for those who follow them


def item_text(item: Item) -> str:
    """Return the text that stands for an item: title, category, text, then the values of its attributes.

    What is missing is left out and what repeats comes once; an item that has nothing else is its `item_id`. At most
    `LONGEST_TEXT` characters.
    """
    parts = [item.title, item.category or "", item.text or "", *_values(item.attributes)]
    kept = dict.fromkeys(stripped for part in parts if (stripped := part[:LONGEST_TEXT].strip()))
    return ". ".join(kept)[:LONGEST_TEXT] or item.item_id[:LONGEST_TEXT]


def _values(attribute: Any) -> list[str]:
    if attribute is None or isinstance(attribute, bool):
        return []  # "True" says nothing without the attribute's name
    if isinstance(attribute, dict):
        return [text for value in attribute.values() for text in _values(value)]
    if isinstance(attribute, list | tuple):
        return [text for value in attribute for text in _values(value)]
    return [str(attribute)]


class Large:
    """What a large catalogue has instead of matrices: `vectors` and `titles`, by row."""

    def __init__(self, dimension: int, first: int) -> None:
        self.vectors = LargeVectors(dimension, first)
        self.titles = Titles()


class Catalogue:
    """Items by row. Rows of removed items are used again.

    Attributes:
        version: changes with every change of the catalogue, so that what was computed from it can be kept until then.
        ids: the item of each row; None where the row is free.
        rows: the row of each item.
        large: None as long as the catalogue is small and every row is compared with everything.

    Args:
        dimension: d, of the vectors.
        exact_items: how many items a small catalogue has at most; if not given, it is never large.
    """

    def __init__(self, dimension: int, exact_items: int | None = None) -> None:
        self.dimension = dimension
        self.exact_items = exact_items
        self.version = 0
        self.ids: list[str | None] = []
        self.rows: dict[str, int] = {}
        self.titles: list[str] = []
        self.large: Large | None = None
        self._vectors = np.zeros((0, dimension), np.float32)
        self._exact = np.zeros((dimension, 0))  # by column: so a product takes four fifths of the time
        self._index = NgramIndex()
        self._live = np.zeros(0, np.bool_)
        self._free: list[int] = []
        self._centre: Vector = np.zeros(dimension, np.float32)
        self._centre_version = 0
        self._journal: deque[tuple[str, int]] = deque(maxlen=JOURNAL)  # item and row of the latest changes

    def __len__(self) -> int:
        """Return how many items can be recommended."""
        return len(self.rows)

    def __contains__(self, item_id: object) -> bool:
        """Return whether the item can be recommended."""
        return item_id in self.rows

    def put(self, item: Item, vector: Vector) -> None:
        """Add an item or replace it.

        Args:
            item: what is to be recommended.
            vector: shape (d,), unit length: the encoding of `item_text(item)`.

        Raises:
            ValueError: if the vector has another shape or is not finite.
        """
        if vector.shape != (self.dimension,):
            raise ValueError(f"vector of {item.item_id!r}: shape {vector.shape}, not ({self.dimension},)")
        if not np.isfinite(vector).all():
            raise ValueError(f"vector of {item.item_id!r}: not finite")
        row = self.rows.get(item.item_id)
        if row is None:
            row = self._new_row()
            self.rows[item.item_id] = row
            self.ids[row] = item.item_id
        else:
            self._remove_title(row)
        self.titles[row] = item.title.strip() or item_text(item)
        self._live[row] = True
        self._store(row, vector)
        self._changed(item.item_id, row)
        if self.large is None and self.exact_items is not None and len(self.rows) > self.exact_items:
            self._become_large()

    def remove(self, item_id: str) -> bool:
        """Take an item out; return False where it was not there."""
        row = self.rows.pop(item_id, None)
        if row is None:
            return False
        self.ids[row] = None
        self._remove_title(row)
        self.titles[row] = ""
        if self.large is not None:
            self.large.vectors.remove(row)
        else:
            self._vectors[row] = 0.0
            self._exact[:, row] = 0.0
        self._live[row] = False
        self._free.append(row)
        self._changed(item_id, row)
        return True

    def catch_up(self) -> None:
        """Do now what the next search would have to do first. Meant for after many changes."""
        if self.large is not None:
            self.large.vectors.catch_up()

    def changes_since(self, version: int) -> Iterable[tuple[str, int]] | None:
        """Return item and row of each change since the catalogue had a version; None where that is too long ago."""
        count = self.version - version
        return None if count > len(self._journal) else islice(self._journal, len(self._journal) - count, None)

    def vector(self, item_id: str) -> Vector | None:
        """Return an item's vector (d,), or None where the item is unknown."""
        row = self.rows.get(item_id)
        if row is None:
            return None
        return self._vectors[row].copy() if self.large is None else self.large.vectors.vector(row)

    def title(self, item_id: str) -> str | None:
        """Return what to call an item: its title, or its text where the title is empty; None where it is unknown."""
        row = self.rows.get(item_id)
        return None if row is None else self.titles[row]

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which rows hold an item: (rows,)."""
        return self._live[: len(self.ids)]

    @property
    def centre(self) -> Vector:
        """Return the mean of the items' vectors (d,): what all items have in common. Zero for an empty catalogue."""
        if self._centre_version != self.version:
            if self.large is not None:
                self._centre = self.large.vectors.centre()
            else:
                live = self._vectors[: len(self.ids)][self.live]
                mean = live.mean(axis=0, dtype=np.float64) if len(live) else np.zeros(self.dimension)
                self._centre = mean.astype(np.float32)
            self._centre_version = self.version
        return self._centre

    def similarities(self, vectors: Vector) -> Vector:
        """Return the cosine of one vector (d,) to every row, (rows,), or of many (n, d), (n, rows); zero for free rows.

        Only of a small catalogue. The vectors are rounded to multiples of `GRID` and multiplied in float64. Sums of such products
        are exact, in any order: the result is the same to the last bit however events were batched, however large the catalogue is,
        and on any number of threads. No vector may be longer than 2.
        """
        assert self.large is None
        product: Vector = (on_grid(vectors) @ self._exact[:, : len(self.ids)]).astype(np.float32)
        return product

    def coverage(self, text: str) -> Vector:
        """Return the share of a text's n-grams that each row's title contains: (rows,), in [0, 1]. Only of a small catalogue."""
        assert self.large is None
        grams = ngrams(normalise(text))
        shared = self._index.shared(grams, len(self.ids))
        return (shared / max(1, len(grams))).astype(np.float32)

    def nearest(self, vector: Vector, count: int) -> list[int]:
        """Return the `count` rows, at most, that are nearest to a vector (d,), nearest first; about these of a large catalogue."""
        if self.large is None:
            rows, similar = np.flatnonzero(self.live), self.similarities(vector)[self.live]
        else:
            grid = on_grid(vector)[None]
            rows = self.large.vectors.nearest(grid, count)[0][0]
            rows = np.sort(rows[rows >= 0])
            similar = self.large.vectors.products(rows, grid)[:, 0]
        best: list[int] = rows[np.argsort(-similar, kind="stable")[:count]].tolist()
        return best

    def _store(self, row: int, vector: Vector) -> None:
        if self.large is not None:
            self.large.vectors.put(row, vector)
            self.large.titles.put(row, self.titles[row])
        else:
            self._vectors[row] = vector
            self._exact[:, row] = on_grid(vector)
            self._index.put(row, ngrams(normalise(self.titles[row])))

    def _remove_title(self, row: int) -> None:
        if self.large is not None:
            self.large.titles.remove(row)
        else:
            self._index.remove(row, ngrams(normalise(self.titles[row])))

    def _become_large(self) -> None:
        assert self.exact_items is not None
        vectors = self._vectors
        self.large = Large(self.dimension, self.exact_items + 1)
        for row in np.flatnonzero(self.live).tolist():
            self._store(row, vectors[row])
        nothing = np.zeros((0, self.dimension), np.float32)
        self._vectors, self._exact, self._index = nothing, np.zeros((self.dimension, 0)), NgramIndex()

    def _changed(self, item_id: str, row: int) -> None:
        self._journal.append((item_id, row))
        self.version += 1

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        row = len(self.ids)
        if row == len(self._live):
            more = max(BLOCK, row // 2 // BLOCK * BLOCK)
            self._live = np.concatenate([self._live, np.zeros(more, np.bool_)])
            if self.large is None:
                self._vectors = np.concatenate([self._vectors, np.zeros((more, self.dimension), np.float32)])
                self._exact = np.concatenate([self._exact, np.zeros((self.dimension, more))], axis=1)
        self.ids.append(None)
        self.titles.append("")
        return row
