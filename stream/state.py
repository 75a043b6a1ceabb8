"""What is kept of a user, and its binary form.

Layout, little-endian: a version byte, the header, the drift detector's numbers, W (K float64), S (K·d float32), the detector's
sums, the window. The version says which detector: 1 the one set by hand, whose sums are 2·d float16; 2 a learned one, whose sums
are k·m float32. Vectors of two models never mix: the header names the model, and the vectors of another are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from stream.drift import STATES, DriftDetector, DriftState
from stream.learned_drift import LearnedDrift
from stream.profile import Profile, Vector
from stream.settings import Profile as ProfileSettings
from stream.window import CLICK, Behaviour, Window, unpack

HAND_SET, LEARNED = 1, 2  # versions of the binary form
_HEADER = struct.Struct("<BQBHHqQq")
_HAND_SET = struct.Struct("<ddddddBB")
_LEARNED = struct.Struct("<QBHHddB")


class StateError(ValueError):
    """Bytes that are not a state this version can read; the message says what to do."""


class UserState:
    """Window, profile and drift of one user. `model` is a hash of the model whose vectors are in it; 0 where there are none."""

    __slots__ = ("drift", "model", "profile", "window")

    def __init__(self, window: Window, profile: Profile, drift: DriftState, model: int) -> None:
        self.window = window
        self.profile = profile
        self.drift = drift
        self.model = model

    @classmethod
    def new(cls, model: int, scales: int, dimension: int, drift: DriftState) -> UserState:
        """Return the state of a user never seen before."""
        return cls(Window(), Profile.empty(scales, dimension), drift, model)

    def rebuild(
        self,
        model: int,
        behaviours: Sequence[Behaviour],
        vectors: Sequence[Vector | None],
        dimension: int,
        settings: ProfileSettings,
    ) -> None:
        """Make the profile anew, with another model's vectors. The drift detector makes its own part anew.

        Args:
            model: hash of the model.
            behaviours: of the window.
            vectors: of each of them, shape (d,); None for one that has none.
            dimension: d.
            settings: as for new behaviours.
        """
        scales = settings.half_lives_ms
        self.model = model
        self.profile = Profile.empty(len(scales), dimension)
        for behaviour, vector in zip(behaviours, vectors, strict=True):
            if vector is not None:
                weight = settings.click_weight if behaviour.kind == CLICK else settings.search_weight
                self.profile.add(behaviour.time, vector, weight, scales)

    def encode(self) -> bytes:
        """Return the binary form."""
        profile, window = self.profile, self.window
        version, numbers, drift_sums = _encode_drift(self.drift)
        header = _HEADER.pack(version, self.model, *profile.sums.shape, len(window.behaviours), *window.floor, profile.time)
        return b"".join([header, numbers, profile.weights.tobytes(), profile.sums.tobytes(), drift_sums, window.pack()])


def decode(data: bytes) -> UserState:
    """Read a state.

    Raises:
        StateError: the bytes are cut short, of another version, or no state at all.
    """
    if not data or data[0] not in (HAND_SET, LEARNED):
        found = f"version {data[0]}" if data else "nothing"
        raise StateError(f"a state of version {HAND_SET} or {LEARNED} was expected, not {found}; {_ADVICE}")
    try:
        version, model, scales, dimension, count, floor, floor_event, time = _HEADER.unpack_from(data)
        drift, at = _decode_drift(version, data, dimension)
        weights = np.frombuffer(data, np.float64, scales, at).copy()
        at += weights.nbytes
        sums = np.frombuffer(data, np.float32, scales * dimension, at).reshape(scales, dimension).copy()
        at += sums.nbytes
        if isinstance(drift, DriftDetector):
            halves = np.frombuffer(data, np.float16, drift.sums.size, at).reshape(drift.sums.shape)
            drift.sums[:] = halves
            at += halves.nbytes
        else:
            drift.sums = np.frombuffer(data, np.float32, drift.sums.size, at).reshape(drift.sums.shape).copy()
            at += drift.sums.nbytes
        window = Window(unpack(data[at:], count), (floor, floor_event))
    except (struct.error, ValueError, IndexError) as error:
        raise StateError(f"not a user's state ({error}); {_ADVICE}") from error
    return UserState(window, Profile(time, sums, weights), drift, model)


def _encode_drift(drift: DriftState) -> tuple[int, bytes, bytes]:
    """Return the version, the numbers and the sums."""
    state = STATES.index(drift.state)
    if isinstance(drift, LearnedDrift):
        numbers = _LEARNED.pack(drift.detector, *drift.sums.shape, drift.count, drift.smoothed, drift.score, state)
        return LEARNED, numbers, drift.sums.tobytes()
    assert isinstance(drift, DriftDetector)
    numbers = _HAND_SET.pack(
        drift.short_weight,
        drift.long_weight,
        drift.absolute,
        drift.relative,
        drift.usual,
        drift.usual_weight,
        min(drift.count, 255),
        state,
    )
    return HAND_SET, numbers, drift.sums.astype(np.float16).tobytes()


def _decode_drift(version: int, data: bytes, dimension: int) -> tuple[DriftDetector | LearnedDrift, int]:
    """Return the detector without its sums, and where its numbers end."""
    at = _HEADER.size
    if version == LEARNED:
        detector, scales, size, count, smoothed, score, state = _LEARNED.unpack_from(data, at)
        learned = LearnedDrift(detector, scales, size)
        learned.count, learned.smoothed, learned.score, learned.state = count, smoothed, score, STATES[state]
        return learned, at + _LEARNED.size
    drift = DriftDetector(dimension)
    *sums, drift.count, state = _HAND_SET.unpack_from(data, at)
    drift.short_weight, drift.long_weight, drift.absolute, drift.relative, drift.usual, drift.usual_weight = sums
    drift.state = STATES[state]
    return drift, at + _HAND_SET.size


_ADVICE = "remove the state folder, and it is restored from the changelog; if the changelog is at fault, name another group"


def model_hash(version: str) -> int:
    """Return 64 bits that stand for a model's version; never 0."""
    return int.from_bytes(blake2b(version.encode(), digest_size=8).digest(), "little") | 1
