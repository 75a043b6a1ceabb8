"""Histories with a known change of interest: one user's, followed by another's whose taste differs. No labels are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from model_export.data import DataError, Log
from stream.events import Click
from stream.recommend.catalogue import item_text

Floats = NDArray[np.float32]
History = NDArray[np.int64]  # rows of the vocabulary, in event time

LENGTH = 190  # behaviours of an example
SHORTEST = 60  # of a user that is learned from
BEFORE = (30, 120)  # behaviours before a change, where the history has them
AFTER = 70  # at most, after it
UNCHANGED = 0.4  # of the examples have no change
FROM_INSIDE = 0.3  # of the pieces begin somewhere in a history, the others at its start
CANDIDATES = 60  # of whom the one with the least similar taste is taken
HELD_OUT = 5  # one user in so many is not learned from
FEWEST = 40  # users to learn from, and users held out a fifth of it
NEAR = 10  # behaviours up to which two items count as chosen together
# How long ago the interest changed, in behaviours: up to 3, 6, … 40; then longer ago, or never.
AGES = np.array([3, 6, 10, 15, 22, 30, 40])


@dataclass(frozen=True)
class Histories:
    """Users' behaviours as rows of a vocabulary: the items first, in the catalogue's order, then the queries.

    Attributes:
        texts: of each row: what the encoder reads.
        items: how many rows are items.
        learned: users to learn from, by user id; those of all lengths.
        held_out: others, to judge with.
    """

    texts: list[str]
    items: int
    learned: dict[str, History]
    held_out: dict[str, History]


def histories(log: Log) -> Histories:
    """Put the log into histories. Who is held out depends on the user id alone.

    Raises `DataError` if too few users have long histories.
    """
    rows = {item: row for row, item in enumerate(log.items)}
    texts = [item_text(item) for item in log.items.values()]
    queries: dict[str, int] = {}
    users: dict[str, list[int]] = defaultdict(list)
    for event in log.events:
        behaviour = event.behaviour
        if isinstance(behaviour, Click):
            row = rows.get(behaviour.item_id)
            if row is not None:
                users[behaviour.user_id].append(row)
        elif behaviour.query.strip():
            users[behaviour.user_id].append(len(rows) + queries.setdefault(behaviour.query, len(queries)))
    learned: dict[str, History] = {}
    held_out: dict[str, History] = {}
    for user, behaviours in users.items():
        side = held_out if blake2b(user.encode()).digest()[0] % HELD_OUT == 0 else learned
        side[user] = np.array(behaviours, np.int64)
    found = Histories([*texts, *queries], len(rows), learned, held_out)
    enough, judges = len(long_ones(learned)), len(long_ones(held_out))
    if enough < FEWEST or judges < FEWEST // HELD_OUT:
        raise DataError(
            f"{enough + judges} users have {SHORTEST} searches and clicks or more; a drift detector needs {FEWEST} to learn from "
            f"and {FEWEST // HELD_OUT} to judge it"
        )
    return found


def long_ones(users: Mapping[str, History]) -> list[History]:
    """Return the histories that are long enough to be learned from or judged with."""
    return [history for history in users.values() if len(history) >= SHORTEST]


def co_behaviour(users: Mapping[str, History], rows: int, dimension: int, seed: int) -> Floats:
    """Return vectors (rows, dimension) by which items that users chose near each other are similar.

    The positive pointwise mutual information of being chosen within `NEAR` behaviours, factored by a truncated SVD (Levy and
    Goldberg 2014), to unit length, less their mean. Rows never chosen are zero.
    """
    pairs = [(history[:-gap], history[gap:]) for history in users.values() for gap in range(1, NEAR + 1) if len(history) > gap]
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    counts = scipy.sparse.coo_array((np.ones(len(left)), (left, right)), (rows, rows)).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = counts.sum(axis=0) + 1.0
    information = np.log(counts.data * counts.data.sum() / (totals[counts.row] * totals[counts.col]))
    positive = scipy.sparse.csr_array((np.maximum(information, 0.0), (counts.row, counts.col)), (rows, rows))
    factors = min(dimension, rows)
    left_vectors, strengths, _ = randomized_svd(positive, factors, random_state=seed)
    vectors = np.zeros((rows, dimension))
    vectors[:, :factors] = left_vectors * np.sqrt(strengths)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = lengths[:, 0] > 0
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    vectors[chosen] -= vectors[chosen].mean(axis=0)
    found: Floats = vectors.astype(np.float32)
    return found


class Example(NamedTuple):
    """Behaviours and what is true of each.

    Attributes:
        rows: of the vocabulary, (LENGTH,); what follows the end is 0.
        ages: the class of `AGES` in which the change is, (LENGTH,); −1 after the end.
        change: the place of the first behaviour after the change; None where there is none.
    """

    rows: History
    ages: NDArray[np.int64]
    change: int | None


class Splicer:
    """Makes examples of some users' histories.

    Args:
        users: histories to take from.
        vectors: (rows, m): by which tastes are compared.
    """

    def __init__(self, users: Sequence[History], vectors: Floats) -> None:
        self.users = users
        tastes = np.stack([vectors[history[:100]].mean(axis=0) for history in users])
        self._tastes = tastes / np.maximum(np.linalg.norm(tastes, axis=1, keepdims=True), 1e-9)

    def example(self, number: int, chance: Random) -> Example:
        """Return an example whose first behaviours are those of the `number`-th user, counted round and round."""
        first = number % len(self.users)
        history = self.users[first]
        rows, ages = np.zeros(LENGTH, np.int64), np.full(LENGTH, -1)
        if chance.random() < UNCHANGED:
            piece = _piece(history, LENGTH, chance)
            rows[: len(piece)], ages[: len(piece)] = piece, len(AGES)
            return Example(rows, ages, None)
        others = np.array([chance.randrange(len(self.users)) for _ in range(CANDIDATES)])
        other = self.users[others[np.argmin(self._tastes[others] @ self._tastes[first])]]
        before = _piece(history, chance.randint(BEFORE[0], BEFORE[1]), chance)
        after = _piece(other, AFTER, chance)
        end = len(before) + len(after)
        rows[:end] = np.concatenate([before, after])
        ages[: len(before)] = len(AGES)
        ages[len(before) : end] = np.searchsorted(AGES, np.arange(1, len(after) + 1))
        return Example(rows, ages, len(before))


def _piece(history: History, length: int, chance: Random) -> History:
    length = min(length, len(history))
    start = chance.randrange(len(history) - length + 1) if chance.random() < FROM_INSIDE else 0
    return history[start : start + length]
