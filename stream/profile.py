"""A user's interests as decayed sums on several time scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.rounds import together

Vector = NDArray[np.float32]
Floats = NDArray[np.float64]


class Profile:
    """Exponentially decayed sums (Cohen & Strauss 2003), one per half-life.

    For half-life h_k, with e_i the embedding of behaviour i at time t_i and w_i the weight of its kind:

        S_k(T) = Σᵢ wᵢ · 2^(−(T−tᵢ)/h_k) · eᵢ        W_k(T) = Σᵢ wᵢ · 2^(−(T−tᵢ)/h_k)

    T is the time of the newest behaviour. One behaviour costs O(K·d) whatever the history. The sums do not depend on the order of
    arrival: a late behaviour is added with the weight that it would have by now. W_k ≥ w of the newest behaviour, so that S_k / W_k
    is defined however long the pauses were.

    Attributes:
        time: T in epoch ms.
        sums: S, shape (K, d), float32.
        weights: W, shape (K,).
    """

    __slots__ = ("sums", "time", "weights")

    def __init__(self, time: int, sums: Vector, weights: Floats) -> None:
        self.time = time
        self.sums = sums
        self.weights = weights

    @classmethod
    def empty(cls, scales: int, dimension: int) -> Profile:
        """Return the profile of somebody of whom nothing is known."""
        return cls(0, np.zeros((scales, dimension), np.float32), np.zeros(scales))

    def add(self, time: int, vector: Vector, weight: float, half_lives_ms: Floats) -> None:
        """Add a behaviour, as `add_to_each` does."""
        add_to_each([self], [time], vector[None], [weight], half_lives_ms)

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return bool(self.weights[0] > 0.0)

    def means(self) -> Vector | None:
        """Return S_k / W_k, shape (K, d); None where nothing is known."""
        if not self.known:
            return None
        means: Vector = np.divide(self.sums, self.weights[:, None], dtype=np.float32, casting="same_kind")
        return means


def add_to_each(
    profiles: Sequence[Profile], times: Sequence[int], vectors: Vector, weights: Sequence[float], half_lives_ms: Floats
) -> Vector:
    """Add one behaviour to each of n different profiles, and return all their means, (n, K, d); zero where nothing is known.

    Many together cost a fraction of what they cost one by one, and come out the same to the last bit.

    Args:
        profiles: n different ones of one shape.
        times: of the behaviours, epoch ms, in any order.
        vectors: their embeddings, (n, d).
        weights: of their kinds; zero adds nothing.
        half_lives_ms: h, shape (K,).
    """
    sums = together([profile.sums for profile in profiles])
    totals = together([profile.weights for profile in profiles])
    steps = [time - profile.time if weight else 0 for profile, time, weight in zip(profiles, times, weights, strict=True)]
    later = np.array(steps, np.float64)[:, None] / half_lives_ms
    fade = np.exp2(-np.maximum(later, 0.0))
    share = np.exp2(np.minimum(later, 0.0)) * np.array(weights)[:, None]
    sums *= fade[:, :, None].astype(np.float32)
    sums += share[:, :, None].astype(np.float32) * vectors[:, None]
    totals *= fade
    totals += share
    for place, (profile, step) in enumerate(zip(profiles, steps, strict=True)):
        profile.sums[:] = sums[place]
        profile.weights[:] = totals[place]
        if step > 0:
            profile.time += step
    sums /= np.where(totals > 0.0, totals, 1.0)[:, :, None].astype(np.float32)
    return sums
