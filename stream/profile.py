"""A user's interests as decayed sums on several time scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
        """Add a behaviour.

        Args:
            time: its event time in epoch ms, in any order.
            vector: its embedding, shape (d,).
            weight: of its kind; zero adds nothing.
            half_lives_ms: h, shape (K,).
        """
        if weight == 0.0:
            return
        if time > self.time:
            fade = np.exp2((self.time - time) / half_lives_ms)
            self.sums *= fade[:, None].astype(np.float32)
            self.weights *= fade
            self.time = time
            self.sums += np.float32(weight) * vector
            self.weights += weight
        else:
            share = weight * np.exp2((time - self.time) / half_lives_ms)
            self.sums += share[:, None].astype(np.float32) * vector
            self.weights += share

    def means(self) -> Vector | None:
        """Return S_k / W_k, shape (K, d); None where nothing is known."""
        if self.weights[0] <= 0.0:
            return None
        means: Vector = np.divide(self.sums, self.weights[:, None], dtype=np.float32, casting="same_kind")
        return means
