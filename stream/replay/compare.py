"""Is the difference real? Intervals by bootstrap over users, and the split that an A/B test would have made.

Users are resampled, not clicks: the clicks of one user resemble each other, and pretending that they are independent makes intervals
too narrow (Efron & Tibshirani 1993, ch. 8; Deng et al. 2017 for ratios of sums over users). Every statistic here is such a ratio,
Σ values / Σ clicks; its interval is the percentile interval of `scipy.stats.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from stream.replay.measures import Floats

RESAMPLES = 2000
ROOM = 100_000  # numbers held at a time, resamples of a batch times users: they stay in the cache of a core


class Interval(NamedTuple):
    """An estimate and the bounds of its interval."""

    estimate: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Return whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


def by_user(users: NDArray[np.int64], values: Floats) -> Floats:
    """Return the sum of each user's values.

    Args:
        users: (clicks,), of each click.
        values: (columns, clicks).

    Returns:
        (columns, users that have a click).
    """
    _, place = np.unique(users, return_inverse=True)
    return np.array([np.bincount(place, weights=column) for column in values])


def intervals(sums: Floats, counts: Floats, *, level: float, seed: int) -> list[Interval]:
    """Return Σ sums / Σ counts over all users, with its interval, for each row.

    The rows share their resamples.

    Args:
        sums: (rows, users), such as differences of gains.
        counts: (rows, users), clicks of the same.
        level: of confidence, in (0, 1).
        seed: of the resampling; equal seeds give equal bounds.
    """
    users = sums.shape[1]
    if users < 2:
        return [Interval(float(s.sum() / n.sum()), -np.inf, np.inf) for s, n in zip(sums, counts, strict=True)]

    def ratio(drawn: NDArray[np.int64], axis: int) -> Floats:
        times = _times_drawn(drawn, users)
        return (sums @ times) / np.maximum(counts @ times, 1.0)

    low, high = _percentiles([np.arange(users)], ratio, level, seed)
    estimates = sums.sum(axis=1) / np.maximum(counts.sum(axis=1), 1.0)
    return [Interval(*map(float, row)) for row in zip(estimates, low, high, strict=True)]


def difference_of_arms(first: tuple[Floats, Floats], second: tuple[Floats, Floats], *, level: float, seed: int) -> list[Interval]:
    """Return how much higher the ratio Σ sums / Σ counts is in the second of two disjoint groups of users, for each row.

    Args:
        first: sums and counts, each (rows, users of this group).
        second: likewise.
        level: of confidence.
        seed: of the resampling.
    """
    (a, n), (b, m) = first, second
    if min(a.shape[1], b.shape[1]) < 2:
        return [Interval(float("nan"), -np.inf, np.inf) for _ in a]

    def difference(drawn_a: NDArray[np.int64], drawn_b: NDArray[np.int64], axis: int) -> Floats:
        times_a, times_b = _times_drawn(drawn_a, a.shape[1]), _times_drawn(drawn_b, b.shape[1])
        return (b @ times_b) / np.maximum(m @ times_b, 1.0) - (a @ times_a) / np.maximum(n @ times_a, 1.0)

    low, high = _percentiles([np.arange(a.shape[1]), np.arange(b.shape[1])], difference, level, seed)
    estimates = b.sum(axis=1) / np.maximum(m.sum(axis=1), 1.0) - a.sum(axis=1) / np.maximum(n.sum(axis=1), 1.0)
    return [Interval(*map(float, row)) for row in zip(estimates, low, high, strict=True)]


def arm(user_id: str, arms: int, salt: str) -> int:
    """Return the arm of an A/B test that a user is in: the same in every run with this salt, in any process."""
    digest = blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % arms


def _percentiles(groups: Sequence[NDArray[np.int64]], statistic: object, level: float, seed: int) -> tuple[Floats, Floats]:
    batch = max(1, ROOM // sum(map(len, groups)))
    found = bootstrap(
        groups,
        statistic,
        n_resamples=RESAMPLES,
        batch=batch,
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def _times_drawn(drawn: NDArray[np.int64], users: int) -> Floats:
    """Return how often each user was drawn in each resample: (users, resamples), or (users,) for a single one."""
    flat = drawn.reshape(-1, users)
    offsets = np.arange(len(flat))[:, None] * users
    times = np.bincount((flat + offsets).ravel(), minlength=len(flat) * users).reshape(len(flat), users)
    return times.T.astype(np.float64).reshape((users, *drawn.shape[:-1]))
