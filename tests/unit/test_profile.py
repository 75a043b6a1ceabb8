"""What a profile promises: it equals a recomputation from the raw events, for any order of arrival and any duplicates."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Click
from stream.profile import Profile
from stream.window import Admission, Window, remembered

DIMENSION = 8
HALF_LIVES = np.array([0.25, 3.0, 30.0]) * 86_400_000
DAY = 86_400_000
VECTORS = np.random.default_rng(3).normal(size=(64, DIMENSION)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)

Events = list[tuple[int, int, float]]  # time, vector, weight
events = st.lists(st.tuples(st.integers(0, 29 * DAY), st.integers(0, 63), st.sampled_from([0.5, 1.0])), min_size=1, max_size=64)


def incremental(arrivals: Events, ids: list[int]) -> Profile:
    """Events as a worker takes them: through a window, one by one."""
    profile, window = Profile.empty(len(HALF_LIVES), DIMENSION), Window()
    for (time, row, weight), number in zip(arrivals, ids, strict=True):
        click = Click(event_id=f"e{number}", user_id="u", item_id="i", timestamp=time)
        if window.admit(remembered(time, click), 64, 30 * DAY) is Admission.NEW:
            profile.add(time, VECTORS[row], weight, HALF_LIVES)
    return profile


def from_scratch(history: Events) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in double precision: decayed means and weights at the newest event's time."""
    newest = max(time for time, _, _ in history)
    sums, weights = np.zeros((len(HALF_LIVES), DIMENSION)), np.zeros(len(HALF_LIVES))
    for time, row, weight in history:
        decayed = weight * np.exp2((time - newest) / HALF_LIVES)
        sums += decayed[:, None] * VECTORS[row].astype(np.float64)
        weights += decayed
    return sums / weights[:, None], weights


@given(events, st.randoms(use_true_random=False))
def test_any_order_and_any_duplicates_give_what_a_recomputation_gives(history: Events, random: object) -> None:
    numbers = list(range(len(history)))
    arrivals = numbers + [n for n in numbers if n % 3 == 0]
    random.shuffle(arrivals)  # type: ignore[attr-defined]
    profile = incremental([history[n] for n in arrivals], arrivals)
    means, weights = from_scratch(history)
    np.testing.assert_allclose(profile.means(), means, atol=1e-5)
    np.testing.assert_allclose(profile.weights, weights, rtol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3_600_000), st.integers(0, 63)), min_size=100, max_size=400))
def test_histories_far_longer_than_the_window_are_counted_whole_in_order(steps: list[tuple[int, int]]) -> None:
    time, history = 0, []
    for step, row in steps:
        time += step + 1
        history.append((time, row, 1.0))
    profile = incremental(history, list(range(len(history))))
    means, _ = from_scratch(history)
    np.testing.assert_allclose(profile.means(), means, atol=1e-5)


def test_a_late_event_changes_the_profile_as_if_it_had_come_in_time() -> None:
    history = [(0, 1, 1.0), (DAY, 2, 1.0), (2 * DAY, 3, 0.5)]
    late = incremental([history[0], history[2], history[1]], [0, 2, 1])
    timely = incremental(history, [0, 1, 2])
    np.testing.assert_allclose(late.means(), timely.means(), atol=1e-6)


def test_a_pause_of_years_leaves_a_profile_that_is_defined() -> None:
    profile = incremental([(0, 1, 1.0), (20 * 365 * DAY, 2, 1.0)], [0, 1])
    np.testing.assert_allclose(profile.means(), np.tile(VECTORS[2], (3, 1)), atol=1e-6)


def test_nothing_is_known_of_a_stranger() -> None:
    assert Profile.empty(3, DIMENSION).means() is None
