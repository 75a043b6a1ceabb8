"""The vectors of a large catalogue: 16 bits a number, and an index that finds the nearest without looking at all of them.

Up to `recommend.exact_items` nothing here is used. The index is faiss' inverted file with 8-bit codes: vectors lie in lists, each
around a centroid, and a search reads the lists whose centroids are nearest. These are so many that they lie in such an index
themselves, in lists of centroids called groups. It only proposes; what it proposes is compared by the 16-bit vectors. Products with
these and with the middles of groups are exact (see `on_grid`, `coarse`), and faiss computes those with codes one by one, so that a
result depends on the query and on the catalogue's history alone: not on what is searched for with it, nor on the number of threads.
"""

from __future__ import annotations

import threading

import faiss
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

GRID = 2.0**-25  # finer than float32 is at 0.5; products are multiples of 2⁻⁵⁰, and with sums below 4 fit the 53 bits of float64
COARSE = 2.0**-11  # products are multiples of 2⁻²², and with sums below 4 fit the 24 bits of float32
UNIT = 2.0**-15  # of a stored number: the cosine of two texts is off by some 10⁻⁵
LEAST_IN_LIST = 39  # vectors in a list at least, on average
TRAINED_FROM = 12  # vectors a centroid, at most: twice as many take twice as long, and searches find 1% more
ROUNDS = 4  # of k-means
PROBES = 8  # lists that a search reads
GROUPS = 16  # groups of centroids that are read for it
SAMPLED = 256  # vectors that stand for all in estimates of a sum
CHUNK = 8192  # vectors that are put into lists at a time


def on_grid(vectors: Vector | Floats) -> Floats:
    """Round to multiples of `GRID`: sums of products of such numbers are exact in float64, in any order."""
    rounded: Floats = np.rint(vectors * np.float64(1.0 / GRID)) * GRID
    return rounded


def coarse(vectors: Vector | Floats) -> Vector:
    """Round to multiples of `COARSE`: sums of products of such numbers are exact in float32, in any order.

    A product of two vectors of unit length is off by some 0.0002: enough to tell which list is near, in half of float64's time.
    """
    rounded: Vector = (np.rint(vectors * np.float32(1.0 / COARSE)) * np.float32(COARSE)).astype(np.float32)
    return rounded


class LargeVectors:
    """Vectors by row.

    The index is trained from the vectors that are there when their number reaches `first`, and again whenever it has doubled: a
    matter of what was put and removed, in which order, and of nothing else.

    Attributes:
        sample: (SAMPLED, d) at most, coarse: vectors that stood for all of them when the index was trained last.
    """

    def __init__(self, dimension: int, first: int) -> None:
        self.dimension = dimension
        self.sample: Vector = np.zeros((0, dimension), np.float32)
        self._codes = np.zeros((0, dimension), np.int16)
        self._live = np.zeros(0, np.bool_)
        self._listed = np.zeros(0, np.bool_)  # whether the index knows the row
        self._changed: set[int] = set()  # rows that the index knows nothing of, or something old
        self._sum = np.zeros(dimension, np.int64)
        self._count = 0
        self._train_at = max(1, first)
        self._lock = threading.Lock()  # the web server asks too

    def put(self, row: int, vector: Vector) -> None:
        """Store a vector (d,) of at most unit length."""
        with self._lock:
            if row >= len(self._codes):
                self._grow(row + 1)
            if self._live[row]:
                self._sum -= self._codes[row]
            else:
                self._live[row] = True
                self._count += 1
            self._codes[row] = np.clip(np.rint(vector / UNIT), -32767, 32767)
            self._sum += self._codes[row]
            self._changed.add(row)
            if self._count >= self._train_at:
                self._train_at = 2 * self._count
                self._train()

    def remove(self, row: int) -> None:
        """Forget a row's vector."""
        with self._lock:
            self._live[row] = False
            self._count -= 1
            self._sum -= self._codes[row]
            self._changed.add(row)

    def vector(self, row: int) -> Vector:
        """Return a row's vector (d,)."""
        vector: Vector = self._codes[row] * np.float32(UNIT)
        return vector

    def centre(self) -> Vector:
        """Return the mean of all vectors (d,)."""
        mean: Vector = (self._sum * (UNIT / max(1, self._count))).astype(np.float32)
        return mean

    def products(self, rows: Rows, vectors: Floats) -> Vector:
        """Return the products of some rows' vectors with others, (rows, n).

        Args:
            rows: which.
            vectors: (n, d), on the grid and no longer than 2.
        """
        product: Vector = ((self._codes.take(rows, axis=0).astype(np.float64) @ vectors.T) * UNIT).astype(np.float32)
        return product

    def nearest(self, vectors: Floats, count: int) -> tuple[Rows, Vector]:
        """Return about the `count` rows whose product with each vector is greatest, (n, count); −1 where there are fewer.

        Beside them, (n, count), what the products are about, as the 8-bit codes have it.

        Args:
            vectors: (n, d), on the grid and no longer than 2.
            count: at most.
        """
        with self._lock:
            faiss.omp_set_num_threads(1)  # holds for the calling thread only; a second one takes longer to wake up than a search
            self._bring_up_to_date()
            single = vectors.astype(np.float32)
            products, rows = _read(self._index, self._lists(single, self._index.nprobe), single, count)
            return rows, products

    def catch_up(self) -> None:
        """Let the index know of all changes; otherwise the next search has to, which took it 40 s after a million."""
        with self._lock:
            faiss.omp_set_num_threads(1)
            self._bring_up_to_date()

    def _grow(self, rows: int) -> None:
        room = max(rows, len(self._codes) + len(self._codes) // 2)
        for name in ("_codes", "_live", "_listed"):
            before = getattr(self, name)
            after = np.zeros((room, *before.shape[1:]), before.dtype)  # pages that nothing is written to take no memory
            after[: len(before)] = before
            setattr(self, name, after)

    def _train(self) -> None:
        """Make the index anew. Its lists are filled when somebody searches."""
        lists = 1 << max(0, min(round(np.log2(16.0 * np.sqrt(self._count))), int(np.log2(self._count / LEAST_IN_LIST))))
        live = np.flatnonzero(self._live)
        self.sample = coarse(self._codes[_spread(live, SAMPLED)] * np.float32(UNIT))
        self._index = _index(self.dimension, lists, PROBES)
        self._centroids = _index(self.dimension, min(lists, 1 << round(np.log2(2.0 * np.sqrt(lists)))), GROUPS)
        self._index.clustering_index = self._centroids  # finds the nearest ones in k-means already, and is left with the last
        faiss.omp_set_num_threads(1)  # the last bits of centroids depend on it
        self._index.train(self._codes[_spread(live, TRAINED_FROM * lists)] * np.float32(UNIT))
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)  # removes a row without reading all lists
        self._groups = coarse(faiss.downcast_index(self._centroids.quantizer).reconstruct_n(0, self._centroids.nlist))
        self._listed[:] = False
        self._changed = set(live.tolist())

    def _bring_up_to_date(self) -> None:
        if not self._changed:
            return
        rows = np.array(sorted(self._changed), np.int64)
        self._changed.clear()
        if len(gone := rows[self._listed[rows]]):
            self._index.remove_ids(gone)
        self._listed[rows] = self._live[rows]
        new = rows[self._live[rows]]
        for at in range(0, len(new), CHUNK):
            some = new[at : at + CHUNK]
            vectors = self._codes[some] * np.float32(UNIT)
            # Not `add`: it computes the lists in float32, and differently for many than for a few.
            lists = self._lists(vectors, 1)
            self._index.add_core(len(some), faiss.swig_ptr(vectors), faiss.swig_ptr(some), faiss.swig_ptr(lists))

    def _lists(self, vectors: Vector, count: int) -> Rows:
        """Return the `count` lists that are nearest to each vector, (n, count)."""
        near, every = coarse(vectors) @ self._groups.T, np.arange(len(vectors))
        groups = np.empty((len(vectors), self._centroids.nprobe), np.int64)
        for group in groups.T:  # far cheaper than `argpartition` for so few
            group[:] = near.argmax(axis=1)
            near[every, group] = -np.inf
        return _read(self._centroids, groups, vectors, count)[1]


def _index(dimension: int, lists: int, read: int) -> faiss.IndexIVFScalarQuantizer:
    """Return an index of so many lists, of which a search reads some."""
    quantizer = faiss.IndexFlatIP(dimension)
    kind = faiss.ScalarQuantizer.QT_8bit_uniform
    index = faiss.IndexIVFScalarQuantizer(quantizer, dimension, lists, kind, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter = ROUNDS
    index.cp.min_points_per_centroid = 1  # below 39, the default, it only prints a warning
    index.cp.update_index = True  # groups, and the range of codes, follow the centroids while these are looked for
    index.nprobe = min(read, lists)
    return index


def _read(index: faiss.IndexIVFScalarQuantizer, lists: Rows, vectors: Vector, count: int) -> tuple[Vector, Rows]:
    """Return about the greatest products with each vector and what they are with, in these lists: (n, count) each."""
    # How near the lists are would count where codes are of what is left to the centroid.
    found: tuple[Vector, Rows] = index.search_preassigned(vectors, count, lists, np.zeros(lists.shape, np.float32))
    return found


def _spread(rows: Rows, count: int) -> Rows:
    """Return at most `count` of some rows, evenly spread."""
    chosen: Rows = rows[np.arange(min(count, len(rows))) * len(rows) // max(1, min(count, len(rows)))]
    return chosen
