"""What computing users together promises: each user's behaviours stay in their order, and every bit is as if it had been alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.drift import DriftDetector, HandSetDetector, Step
from stream.profile import Profile, add_to_each
from stream.rounds import BLOCK, rounds
from stream.settings import Drift

DIMENSION = 40
HALF_LIVES = np.array([0.25, 3.0, 30.0]) * 86_400_000
VECTORS = np.random.default_rng(5).normal(size=(64, DIMENSION)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CENTRE = VECTORS.mean(axis=0)
SETTINGS = Drift(warm_up=2)

behaviours = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 10**10), st.integers(0, 63), st.sampled_from([0.0, 0.5, 1.0])), max_size=80
)


@given(st.lists(st.integers(0, 300), max_size=1000))
def test_no_user_comes_twice_in_a_round_and_nobodys_order_changes(numbers: list[int]) -> None:
    users = [object() for _ in range(301)]
    order = [place for places in rounds([users[number] for number in numbers]) for place in places]
    assert sorted(order) == list(range(len(numbers)))
    for places in rounds([users[number] for number in numbers]):
        assert 0 < len({numbers[place] for place in places}) == len(places) <= BLOCK
    for number in set(numbers):
        own = [place for place in order if numbers[place] == number]
        assert own == sorted(own)


@given(behaviours)
def test_profiles_come_out_the_same_to_the_last_bit_together_and_alone(history: list[tuple[int, int, int, float]]) -> None:
    together = [Profile.empty(len(HALF_LIVES), DIMENSION) for _ in range(10)]
    alone = [Profile.empty(len(HALF_LIVES), DIMENSION) for _ in range(10)]
    means: dict[int, np.ndarray] = {}
    for places in rounds([together[user] for user, *_ in history]):
        users, times, rows, weights = zip(*[history[place] for place in places], strict=True)
        found = add_to_each([together[user] for user in users], times, VECTORS[list(rows)], weights, HALF_LIVES)
        means |= dict(zip(places, found, strict=True))
    for place, (user, time, row, weight) in enumerate(history):
        alone[user].add(time, VECTORS[row], weight, HALF_LIVES)
        expected = alone[user].means()
        np.testing.assert_array_equal(means[place], np.zeros((3, DIMENSION)) if expected is None else expected)
    for one, other in zip(together, alone, strict=True):
        assert one.time == other.time
        np.testing.assert_array_equal(one.sums, other.sums)
        np.testing.assert_array_equal(one.weights, other.weights)


@given(behaviours)
def test_drift_comes_out_the_same_to_the_last_bit_together_and_alone(history: list[tuple[int, int, int, float]]) -> None:
    together, alone = ([DriftDetector(DIMENSION) for _ in range(10)] for _ in range(2))
    steps = [Step(together[user], VECTORS[row] if weight else None, None) for user, _, row, weight in history]
    levels = HandSetDetector(SETTINGS, DIMENSION).watch(steps, CENTRE)
    for (user, _, row, weight), (before, level) in zip(history, levels, strict=True):
        assert before == alone[user].state
        if weight:
            alone[user].update(VECTORS[row], CENTRE, SETTINGS)
        assert level == alone[user].level(SETTINGS)
    for one, other in zip(together, alone, strict=True):
        assert one.sums.tobytes() == other.sums.tobytes()
        assert (one.absolute, one.relative, one.usual) == (other.absolute, other.relative, other.usual)
