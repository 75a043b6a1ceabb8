"""What is kept of a user, and its binary form.

Layout, little-endian: a version byte, the header, S (K·d float32), short and long (d float16 each), the window. Vectors of two models
never mix: the header names the model, and the vectors of another are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from stream.drift import STATES, DriftDetector
from stream.profile import Profile, Vector
from stream.settings import Drift
from stream.settings import Profile as ProfileSettings
from stream.window import CLICK, Window, unpack

VERSION = 1
_HEADER = struct.Struct("<BQBHHqQqddddddBB")


class StateError(ValueError):
    """Bytes that are not a state this version can read; the message says what to do."""


class UserState:
    """Window, profile and drift of one user. `model` is a hash of the model whose vectors are in it; 0 where there are none."""

    __slots__ = ("drift", "model", "profile", "window")

    def __init__(self, window: Window, profile: Profile, drift: DriftDetector, model: int) -> None:
        self.window = window
        self.profile = profile
        self.drift = drift
        self.model = model

    @classmethod
    def new(cls, model: int, scales: int, dimension: int) -> UserState:
        """Return the state of a user never seen before."""
        return cls(Window(), Profile.empty(scales, dimension), DriftDetector(dimension), model)

    def rebuild(
        self,
        model: int,
        vectors: Sequence[Vector | None],
        centre: Vector,
        profile_settings: ProfileSettings,
        drift_settings: Drift,
    ) -> None:
        """Make the profile anew from the window, with another model's vectors.

        Args:
            model: hash of the model.
            vectors: of each behaviour of the window, shape (d,); None for one that has none.
            centre: the catalogue's mean vector, (d,).
            profile_settings: as for new behaviours.
            drift_settings: likewise.
        """
        scales = profile_settings.half_lives_ms
        self.model = model
        self.profile = Profile.empty(len(scales), len(centre))
        self.drift = DriftDetector(len(centre))
        for behaviour, vector in zip(self.window.behaviours, vectors, strict=True):
            if vector is not None:
                weight = profile_settings.click_weight if behaviour.kind == CLICK else profile_settings.search_weight
                self.profile.add(behaviour.time, vector, weight, scales)
                self.drift.update(vector, centre, drift_settings)

    def encode(self) -> bytes:
        """Return the binary form."""
        profile, drift, window = self.profile, self.drift, self.window
        scales, dimension = profile.sums.shape
        header = _HEADER.pack(
            VERSION,
            self.model,
            scales,
            dimension,
            len(window.behaviours),
            *window.floor,
            profile.time,
            drift.short_weight,
            drift.long_weight,
            drift.absolute,
            drift.relative,
            drift.usual,
            drift.usual_weight,
            min(drift.count, 255),
            STATES.index(drift.state),
        )
        return b"".join(
            [
                header,
                profile.weights.tobytes(),
                profile.sums.tobytes(),
                drift.short.tobytes(),
                drift.long.tobytes(),
                window.pack(),
            ]
        )


def decode(data: bytes) -> UserState:
    """Read a state.

    Raises:
        StateError: the bytes are cut short, of another version, or no state at all.
    """
    if not data or data[0] != VERSION:
        found = f"version {data[0]}" if data else "nothing"
        raise StateError(f"a state of version {VERSION} was expected, not {found}; {_ADVICE}")
    try:
        header = _HEADER.unpack_from(data)
        _, model, scales, dimension, count, floor, floor_event, time, *sums_of_drift, seen, state = header
        at = _HEADER.size
        weights = np.frombuffer(data, np.float64, scales, at).copy()
        at += weights.nbytes
        sums = np.frombuffer(data, np.float32, scales * dimension, at).reshape(scales, dimension).copy()
        at += sums.nbytes
        drift = DriftDetector(dimension)
        drift.short = np.frombuffer(data, np.float16, dimension, at).copy()
        drift.long = np.frombuffer(data, np.float16, dimension, at + drift.short.nbytes).copy()
        at += 2 * drift.short.nbytes
        drift.short_weight, drift.long_weight, drift.absolute, drift.relative, drift.usual, drift.usual_weight = sums_of_drift
        drift.count = seen
        drift.state = STATES[state]
        window = Window(unpack(data[at:], count), (floor, floor_event))
    except (struct.error, ValueError, IndexError) as error:
        raise StateError(f"not a user's state ({error}); {_ADVICE}") from error
    return UserState(window, Profile(time, sums, weights), drift, model)


_ADVICE = "remove the state folder, and it is restored from the changelog; if the changelog is at fault, name another group"


def model_hash(version: str) -> int:
    """Return 64 bits that stand for a model's version; never 0."""
    return int.from_bytes(blake2b(version.encode(), digest_size=8).digest(), "little") | 1
