"""What the state's binary form promises: it round-trips exactly, refuses what it is not, and never mixes two models."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.drift import STATES, DriftDetector, HandSetDetector, Step
from stream.events import Click, Search, State
from stream.learned_drift import LearnedDrift
from stream.settings import Drift, Profile
from stream.state import StateError, UserState, decode, model_hash
from stream.window import remembered

DIMENSION = 16
PROFILE, DRIFT = Profile(), Drift()
CENTRE = np.zeros(DIMENSION, np.float32)


def vector_of(subject: str, model: int) -> np.ndarray:
    seed = [model % 2**32, *subject.encode()]
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def lived(subjects: list[str], model: int = 5) -> UserState:
    drift = DriftDetector(DIMENSION)
    state = UserState.new(model, len(PROFILE.half_lives_days), DIMENSION, drift)
    for number, subject in enumerate(subjects):
        time = 1_700_000_000_000 + number * 3_600_000
        if number % 2:
            event: Click | Search = Click(event_id=f"e{number}", user_id="u", item_id=subject, timestamp=time)
            weight = PROFILE.click_weight
        else:
            event = Search(event_id=f"e{number}", user_id="u", query=subject, timestamp=time)
            weight = PROFILE.search_weight
        state.window.admit(remembered(time, event), 64, 10**12)
        state.profile.add(time, vector_of(subject, model), weight, PROFILE.half_lives_ms)
        drift.update(vector_of(subject, model), CENTRE, DRIFT)
    return state


@given(st.lists(st.text(max_size=30), max_size=40))
def test_encoding_round_trips_bit_for_bit_and_life_goes_on_the_same(subjects: list[str]) -> None:
    state = lived(subjects)
    copy = decode(state.encode())
    assert copy.encode() == state.encode()
    assert copy.window.behaviours == state.window.behaviours
    for one in (state, copy):
        one.profile.add(1_800_000_000_000, vector_of("next", 5), 1.0, PROFILE.half_lives_ms)
        assert isinstance(one.drift, DriftDetector)
        one.drift.update(vector_of("next", 5), CENTRE, DRIFT)
    assert copy.encode() == state.encode()


@given(st.integers(0, 65_535), st.floats(0, 1), st.floats(0, 1), st.sampled_from(STATES))
def test_a_learned_detectors_state_round_trips_bit_for_bit(count: int, smoothed: float, score: float, state: State) -> None:
    user = lived(["tent", "item 1"])
    drift = LearnedDrift(77, 3, 4)
    drift.sums[:] = vector_of("sums", 1)[:12].reshape(3, 4)
    drift.count, drift.smoothed, drift.score, drift.state = count, smoothed, score, state
    user.drift = drift
    copy = decode(user.encode())
    assert copy.encode() == user.encode()
    assert isinstance(copy.drift, LearnedDrift)
    assert [getattr(copy.drift, name) for name in ("detector", "count", "smoothed", "score", "state")] == [
        77,
        count,
        smoothed,
        score,
        state,
    ]
    assert np.array_equal(copy.drift.sums, drift.sums)
    with pytest.raises(StateError):
        decode(user.encode()[:-1])


def test_a_state_written_before_detectors_were_learned_is_read() -> None:
    written = bytes.fromhex((Path(__file__).parent / "state-v1.hex").read_text())
    assert decode(written).encode() == written
    assert [behaviour.subject for behaviour in decode(written).window.behaviours] == ["tent", "item 1", "stove"]


@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused_with_advice(data: bytes) -> None:
    with pytest.raises(StateError, match="state folder"):
        decode(data)


@given(st.integers(0, 2000))
def test_a_state_that_was_cut_short_is_refused(length: int) -> None:
    whole = lived(["tent", "item 1", "stove"]).encode()
    with pytest.raises(StateError):
        decode(whole[: min(length, len(whole) - 1)])


def test_a_rebuilt_profile_is_that_of_a_user_who_only_knew_the_new_model() -> None:
    subjects = ["tent", "item 1", "stove", "item 2", "lantern"] * 4
    state, fresh = lived(subjects, model=5), lived(subjects, model=9)
    vectors = [vector_of(behaviour.subject, 9) for behaviour in state.window.behaviours]
    state.rebuild(9, state.window.behaviours, vectors, DIMENSION, PROFILE)
    steps = [Step(state.drift, vector, None) for vector in vectors]
    state.drift = HandSetDetector(DRIFT, DIMENSION).rebuilt(steps, CENTRE)
    assert state.encode() == fresh.encode()


def test_model_hashes_differ_and_are_never_zero() -> None:
    assert model_hash("a") != model_hash("b")
    assert model_hash("") != 0
