"""What the drift detector promises: calm users stay stable, a change of interest is found, and the new interest becomes normal."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.drift import DriftDetector, to_half_precision
from stream.settings import Drift

DIMENSION = 64
SETTINGS = Drift()
CENTRE = np.zeros(DIMENSION, np.float32)


def around(interest: int, count: int, seed: int) -> list[np.ndarray]:
    """Unit vectors that scatter around one interest."""
    generator = np.random.default_rng([interest, seed])
    middle = np.zeros(DIMENSION)
    middle[interest] = 1.0
    vectors = middle + generator.normal(scale=0.12, size=(count, DIMENSION))
    return list((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def states(vectors: list[np.ndarray]) -> list[str]:
    detector, seen = DriftDetector(DIMENSION), []
    for vector in vectors:
        detector.update(vector, CENTRE, SETTINGS)
        level = detector.level(SETTINGS)
        assert 0.0 <= level.score <= 1.0
        seen.append(level.state)
    return seen


def test_a_user_with_one_interest_stays_stable() -> None:
    for seed in range(10):
        assert set(states(around(1, 200, seed))) == {"stable"}


def test_a_change_of_interest_is_found_soon_passes_through_drifting_and_ends_stable_again() -> None:
    for seed in range(10):
        after = states(around(1, 80, seed) + around(2, 400, seed))[80:]
        assert "drifting" in after[:20]
        assert "shifted" in after[:40]
        assert after.index("drifting") < after.index("shifted")
        assert after[-1] == "stable"


def test_a_few_behaviours_are_not_enough_to_judge() -> None:
    few = SETTINGS.warm_up - 1
    assert set(states(around(1, few // 2, 0) + around(2, few - few // 2, 0))) == {"stable"}


def test_the_score_is_one_half_where_the_alarm_is_raised() -> None:
    detector = DriftDetector(DIMENSION)
    detector.absolute = SETTINGS.alarm
    assert detector.level(SETTINGS).score == 0.5


def numpys_own(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(under="ignore"):
        return values.astype(np.float16).astype(np.float32)


def test_rounding_to_half_precision_is_numpys_own_at_and_beside_every_number_and_every_middle() -> None:
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # all that are finite and not negative
    ends = np.append(numbers, np.float32(65_536.0))
    middles = (ends[:-1] + ends[1:]) / 2
    values = np.concatenate([numbers, middles[:-1]])
    values = np.concatenate([values, np.nextafter(values, np.float32(-1.0)), np.nextafter(values, np.float32(np.inf))])
    values = np.concatenate([values, -values])
    assert to_half_precision(values).tobytes() == numpys_own(values).tobytes()


@given(st.lists(st.floats(-65_504, 65_504, width=32), min_size=1))
def test_rounding_to_half_precision_is_numpys_own(floats: list[float]) -> None:
    values = np.array(floats, np.float32)
    assert to_half_precision(values).tobytes() == numpys_own(values).tobytes()


def test_a_sum_that_hardly_fades_stays_within_half_precision() -> None:
    detector, settings = DriftDetector(1), SETTINGS.model_copy(update={"long_half_life": 1e9})
    for _ in range(3000):
        detector.update(np.ones(1, np.float32), CENTRE[:1], settings)
    assert detector.sums[1] == 2048.0
