"""The drift detector that `model-export train --task drift` learned: faded sums at many scales, and a small network over them.

Scales are counted in behaviours. With v_n the n-th behaviour in the detector's own small space of m dimensions:

    S_k ← 2^(−1/h_k)·S_k + v_n                    for each half-life h_k
    p = network(S, n)                             the probability that the interest changed not long ago
    q ← smoothing·q + (1 − smoothing)·p
    score = q·(1 − a) / (q·(1 − a) + (1 − q)·a)   in odds: q's against those of the alarm level a, so 0.5 is where the alarm is

v_n of an item that was learned from (id and title are the same) is its row in a table; of any other item and of a query it is
(x − μ)·P, with x its embedding and μ the mean vector of the catalogue. a was chosen for a rate of false alarms on users who were
not learned from. States follow the score with hysteresis.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stream.drift import Step, Vector
from stream.encoder.manifest import DriftPart, Manifest, ModelFolderError, check_files
from stream.encoder.session import open_session
from stream.events import DriftLevel, State
from stream.settings import Drift

BLOCK = 64  # users that go through the network together: always as many, so that no sum depends on how many there were
DRIFT_FILE = "drift.onnx"
VECTORS_FILE = "drift.npz"


def item_key(item_id: str, title: str) -> int:
    """Return 63 bits that stand for an item as it was learned from: another shop's item of that id is another item."""
    return int.from_bytes(blake2b(f"{item_id}\0{title}".encode(), digest_size=8).digest(), "little") >> 1


class LearnedDrift:
    """One user's sums and state.

    Attributes:
        detector: hash of the detector that the sums belong to.
        sums: S, shape (K, m), float32.
        count: n, up to 65,535.
        smoothed: q.
        score, state: as published.
    """

    __slots__ = ("count", "detector", "score", "smoothed", "state", "sums")

    def __init__(self, detector: int, scales: int, dimension: int) -> None:
        self.detector = detector
        self.sums: Vector = np.zeros((scales, dimension), np.float32)
        self.count = 0
        self.smoothed = 0.0
        self.score = 0.0
        self.state: State = "stable"

    def level(self, settings: Drift) -> DriftLevel:
        """Return score and state, as published; the settings are those of the detector set by hand."""
        return DriftLevel(score=self.score, state=self.state)


class LearnedDetector:
    """The detector of a model folder. Raises `ModelFolderError` if its files are missing, damaged or do not fit each other.

    Attributes:
        identity: hash of the detector and of the model whose vectors it reads; never 0.
        part: what the manifest says of it.
    """

    def __init__(self, folder: Path, manifest: Manifest, model: int) -> None:
        part = manifest.drift
        assert part is not None
        self.part: DriftPart = part
        check_files(folder, manifest, [DRIFT_FILE, VECTORS_FILE])
        self._session = open_session(folder / DRIFT_FILE, device="cpu")
        with np.load(folder / VECTORS_FILE, allow_pickle=False) as arrays:
            self._rows = {key: row for row, key in enumerate(arrays["keys"].tolist())}
            self._vectors: Vector = arrays["vectors"]
            self._projection: Vector = arrays["projection"]
        scales, size = len(part.half_lives), part.size
        shape = self._session.get_inputs()[0].shape
        if shape != [BLOCK, scales, size] or self._projection.shape != (manifest.dimension, size):
            raise ModelFolderError(f"{folder / DRIFT_FILE} is not the detector that the manifest describes: train it again")
        identity = f"{model} {manifest.files[DRIFT_FILE]} {manifest.files[VECTORS_FILE]} {part.half_lives}"
        self.identity = int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little") | 1
        self._fade = np.exp2(-1.0 / np.array(part.half_lives)).astype(np.float32)[:, None]
        self._sums = np.zeros((BLOCK, scales, size), np.float32)
        self._counts = np.zeros(BLOCK, np.float32)

    def new(self) -> LearnedDrift:
        """Return the state of a user never seen before."""
        return LearnedDrift(self.identity, *self._sums.shape[1:])

    def watch(self, steps: Sequence[Step], centre: Vector) -> list[tuple[State, DriftLevel]]:
        """Take in behaviours in their order; return the state before and the level after each.

        Args:
            steps: the behaviours, each with its user's state of this detector.
            centre: μ, shape (d,).
        """
        centred = np.ascontiguousarray(centre @ self._projection)
        sums = np.zeros((len(steps), *self._sums.shape[1:]), np.float32)
        counts = np.zeros(len(steps), np.float32)
        for place, step in enumerate(steps):
            if step.vector is not None:
                state = self._add(step, centred)
                sums[place], counts[place] = state.sums, state.count
        judged = np.flatnonzero(counts >= self.part.warm_up)
        probabilities = dict(zip(judged.tolist(), self.probabilities(sums[judged], counts[judged]).tolist(), strict=True))
        levels: list[tuple[State, DriftLevel]] = []
        for place, step in enumerate(steps):
            user = step.user
            assert isinstance(user, LearnedDrift)
            before = user.state
            probability = probabilities.get(place)
            if probability is not None:
                self._follow(user, probability)
            levels.append((before, DriftLevel(score=user.score, state=user.state)))
        return levels

    def rebuilt(self, steps: Sequence[Step], centre: Vector) -> LearnedDrift:
        """Return a new state with the sums of past behaviours. It is stable: what was past is not judged again."""
        user = self.new()
        centred = np.ascontiguousarray(centre @ self._projection)
        for step in steps:
            self._add(step._replace(user=user), centred)
        return user

    def probabilities(self, sums: Vector, counts: Vector) -> Vector:
        """Return p for each row.

        Args:
            sums: (n, K, m).
            counts: (n,), each at least 1.

        Every row is computed in a block of one size; its bits do not depend on its place or on the other rows.
        """
        found = np.empty(len(sums), np.float32)
        for start in range(0, len(sums), BLOCK):
            rows = min(BLOCK, len(sums) - start)
            self._sums[:rows] = sums[start : start + rows]
            self._counts[:rows] = counts[start : start + rows]
            self._sums[rows:], self._counts[rows:] = 0.0, 1.0
            found[start : start + rows] = self._session.run(None, {"sums": self._sums, "count": self._counts})[0][:rows]
        return found

    def _add(self, step: Step, centred: Vector) -> LearnedDrift:
        user = step.user
        assert isinstance(user, LearnedDrift)
        assert step.vector is not None
        row = None if step.item is None else self._rows.get(item_key(*step.item))
        user.sums *= self._fade
        user.sums += step.vector @ self._projection - centred if row is None else self._vectors[row]
        user.count = min(user.count + 1, 65_535)
        return user

    def _follow(self, user: LearnedDrift, probability: float) -> None:
        part = self.part
        user.smoothed = part.smoothing * user.smoothed + (1.0 - part.smoothing) * probability
        user.score = round(score_of(user.smoothed, part.alarm), 6)
        if user.score >= part.shifted:
            user.state = "shifted"
        elif user.score <= part.calm:
            user.state = "stable"
        elif user.state == "stable" and user.score >= 0.5:
            user.state = "drifting"


def score_of(smoothed: float, alarm: float) -> float:
    """Return the score at q, with a the q of the alarm: 0 at 0, 0.5 at a, 1 at 1."""
    for_it = smoothed * (1.0 - alarm)
    return for_it / (for_it + (1.0 - smoothed) * alarm)
