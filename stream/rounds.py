"""Events of different users can be computed together, those of one user only one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
BLOCK = 128  # users' vectors that are computed together: few enough to stay in the processor's cache


def rounds(users: Sequence[object]) -> list[list[int]]:
    """Return places in rounds of at most `BLOCK`, in which no user comes twice; each user's places in their order.

    Args:
        users: whose each place is. They are told apart by identity.
    """
    layers: list[list[int]] = []
    seen: Counter[int] = Counter()
    for place, user in enumerate(users):
        if seen[id(user)] == len(layers):
            layers.append([])
        layers[seen[id(user)]].append(place)
        seen[id(user)] += 1
    return [layer[at : at + BLOCK] for layer in layers for at in range(0, len(layer), BLOCK)]


def together(arrays: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """Return n arrays of one shape as one, (n, …): what `np.stack` does, which takes longer to look at so many than to copy them."""
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)
