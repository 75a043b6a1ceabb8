"""Has a user's interest left where it used to be? Judged at every behaviour, with a false-alarm rate in mind.

Scales are counted in behaviours, not in hours, because users differ in pace by orders of magnitude. With x_n the embedding of the n-th
behaviour and μ the catalogue's mean vector (what all items have in common says nothing about a user):

    short  s = Σ 2^(−age/h_s) · (x − μ)       long  l = Σ 2^(−age/h_l) · (x − μ)
    d = 1 − cos(s, l − s)                     the newest count in s and hardly in l − s
    g ← max(0, λ·g + d − reference)           a CUSUM that forgets (Page 1954; Yashchin 1989)
    u ← mean of the user's own d so far, with a prior, and capped while d is unusual
    h ← max(0, λ·h + d/(u + slack) − 1)       the same, against what is usual for this user

`reference` is the distance that sampling alone seldom gives to a short mean of that many behaviours. For somebody of one narrow
interest it is far too much: there, h notices. Either excess has to persist to add up. States follow max(g, κ·h) with hysteresis; the
score is 1 − 2^(−max(g, κ·h)/alarm): 0.5 where the alarm is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.events import DriftLevel, State
from stream.rounds import rounds, together
from stream.settings import Drift

Vector = NDArray[np.float32]
PRIOR_DISTANCE = 0.2  # of somebody of whom nothing is known yet, as if seen
PRIOR_WEIGHT = 3.0  # this many times
STATES: tuple[State, ...] = ("stable", "drifting", "shifted")


class DriftState(Protocol):
    """What a detector keeps of one user. `detector` is 0 for the one of this file, else a hash of a learned one."""

    detector: int
    state: State

    def level(self, settings: Drift) -> DriftLevel:
        """Return score and state, as published."""
        ...


class Step(NamedTuple):
    """A behaviour on its way through a detector.

    Attributes:
        user: the user's state, which changes.
        vector: the behaviour's embedding (d,); None for what teaches nothing.
        item: id and title of the item clicked; None for a search.
    """

    user: DriftState
    vector: Vector | None
    item: tuple[str, str] | None


class Detector(Protocol):
    """Judges users' behaviours: the one of this file, or the one learned with the model (`stream/learned_drift.py`)."""

    identity: int

    def new(self) -> DriftState:
        """Return the state of a user never seen before."""
        ...

    def watch(self, steps: Sequence[Step], centre: Vector) -> list[tuple[State, DriftLevel]]:
        """Take in behaviours in their order; return the state before and the level after each."""
        ...

    def rebuilt(self, steps: Sequence[Step], centre: Vector) -> DriftState:
        """Return a new state that knows those behaviours; their own `user` is not used."""
        ...


class DriftDetector:
    """One user's detector. The sums are rounded to half precision: that is what is stored, so that a restart changes nothing.

    Attributes:
        sums: Σ 2^(−age/h) · x, shape (2, d): short, then long. Numbers of float16 in float32; μ is taken off when they are compared.
        short_weight, long_weight: the matching Σ 2^(−age/h).
        detector: 0.
        count: behaviours seen, up to the warm-up.
        absolute: g.
        relative: h.
        usual, usual_weight: the decayed sum of the user's distances and its weight; u is their quotient.
        state: as published.
    """

    __slots__ = (
        "absolute",
        "count",
        "detector",
        "long_weight",
        "relative",
        "short_weight",
        "state",
        "sums",
        "usual",
        "usual_weight",
    )

    def __init__(self, dimension: int) -> None:
        self.sums: Vector = np.zeros((2, dimension), np.float32)
        self.short_weight = 0.0
        self.long_weight = 0.0
        self.detector = 0
        self.count = 0
        self.absolute = 0.0
        self.relative = 0.0
        self.usual_weight = PRIOR_WEIGHT
        self.usual = PRIOR_WEIGHT * PRIOR_DISTANCE
        self.state: State = "stable"

    def update(self, vector: Vector, centre: Vector, settings: Drift) -> None:
        """Take in the next behaviour, as `update_each` does."""
        update_each([self], vector[None], centre, settings)

    def follow(self, distance: float, settings: Drift) -> None:
        """Judge the distance d that the newest behaviour has led to."""
        expected = self.usual / self.usual_weight + settings.slack
        self.absolute = max(0.0, settings.memory * self.absolute + distance - settings.reference)
        self.relative = max(0.0, settings.memory * self.relative + distance / expected - 1.0)
        fade = 2.0 ** (-1 / settings.long_half_life)
        self.usual = self.usual * fade + min(distance, expected)
        self.usual_weight = self.usual_weight * fade + 1.0
        self.state = self._next_state(settings)

    def excess(self, settings: Drift) -> float:
        """Return max(g, κ·h)."""
        return max(self.absolute, settings.relative_weight * self.relative)

    def level(self, settings: Drift) -> DriftLevel:
        """Return score and state, as published."""
        return DriftLevel(score=round(1.0 - 2.0 ** (-self.excess(settings) / settings.alarm), 6), state=self.state)

    def _next_state(self, settings: Drift) -> State:
        excess = self.excess(settings)
        if excess >= settings.shifted:
            return "shifted"
        if excess <= settings.calm:
            return "stable"
        if self.state == "stable" and excess >= settings.alarm:
            return "drifting"
        return self.state


def update_each(users: Sequence[DriftDetector], vectors: Vector, centre: Vector, settings: Drift) -> None:
    """Let each of n different detectors take in its next behaviour.

    Many together cost a fraction of what they cost one by one, and come out the same to the last bit.

    Args:
        users: n different ones of one dimension.
        vectors: the behaviours' embeddings, (n, d).
        centre: μ, shape (d,).
        settings: half-lives in behaviours, reference, forgetting and thresholds.
    """
    fade_short, fade_long = 2.0 ** (-1 / settings.short_half_life), 2.0 ** (-1 / settings.long_half_life)
    sums = together([user.sums for user in users])
    sums *= np.array([[fade_short], [fade_long]], np.float32)
    sums += vectors[:, None]
    kept = to_half_precision(sums)
    judged, warm_up = [], settings.warm_up
    for user, new in zip(users, kept, strict=True):
        user.sums[:] = new
        user.short_weight = user.short_weight * fade_short + 1.0
        user.long_weight = user.long_weight * fade_long + 1.0
        user.count = min(user.count + 1, warm_up)
        judged.append(user.count >= warm_up)
    if not any(judged):
        return
    some = [user for user, wanted in zip(users, judged, strict=True) if wanted]
    short, long = sums[judged].swapaxes(0, 1)
    recent = np.array([user.short_weight for user in some], np.float32)
    before = np.array([user.long_weight - user.short_weight for user in some], np.float32)
    long -= short
    short -= recent[:, None] * centre
    long -= before[:, None] * centre
    norms = np.sqrt(np.vecdot(short, short).astype(np.float64) * np.vecdot(long, long)).tolist()
    for user, norm, product in zip(some, norms, np.vecdot(short, long).tolist(), strict=True):
        user.follow(1.0 - product / norm if norm > 0.0 else 0.0, settings)


def to_half_precision(values: Vector) -> Vector:
    """Return the nearest numbers of float16, in float32: what `values.astype(np.float16).astype(np.float32)` returns.

    numpy converts number by number, which takes twenty times as long (numpy issue 28753). For a value in [2^e, 2^(e+1)) it adds and
    subtracts 1.5 · 2^(e+13), next to which the last place of a float32 counts 2^(e−10), as a float16's own does; below 2^−14 that of
    all float16 counts 2^−24. The processor rounds half to even, as the conversion does.

    Args:
        values: finite, and less than 65,520. Sums are: next to 2048 the last place of a float16 counts 2, and a number of a vector of
            unit length added to it changes nothing any more.
    """
    powers = (values.view(np.uint32) & 0x7F800000).view(np.float32)  # 2^e
    np.maximum(powers, 2.0**-14, out=powers)
    powers *= 1.5 * 2.0**13
    rounded: Vector = values + powers
    rounded -= powers
    return np.copysign(rounded, values, out=rounded)  # of zero


class HandSetDetector:
    """The detector of this file, with the levels of the settings.

    Args:
        settings: half-lives in behaviours, reference, forgetting and thresholds.
        dimension: d.
    """

    identity = 0

    def __init__(self, settings: Drift, dimension: int) -> None:
        self._settings = settings
        self._dimension = dimension

    def new(self) -> DriftDetector:
        """Return the state of a user never seen before."""
        return DriftDetector(self._dimension)

    def watch(self, steps: Sequence[Step], centre: Vector) -> list[tuple[State, DriftLevel]]:
        """Take in behaviours in their order; return the state before and the level after each."""
        users = [step.user for step in steps]
        levels: dict[int, tuple[State, DriftLevel]] = {}
        for places in rounds(users):
            before = [users[place].state for place in places]
            new = {place: vector for place in places if (vector := steps[place].vector) is not None}
            if new:
                update_each([_own(users[place]) for place in new], together(list(new.values())), centre, self._settings)
            for place, state in zip(places, before, strict=True):
                levels[place] = state, users[place].level(self._settings)
        return [levels[place] for place in range(len(steps))]

    def rebuilt(self, steps: Sequence[Step], centre: Vector) -> DriftDetector:
        """Return the state of a user of those behaviours."""
        user = self.new()
        self.watch([step._replace(user=user) for step in steps], centre)
        return user


def _own(user: DriftState) -> DriftDetector:
    assert isinstance(user, DriftDetector)
    return user
