"""What the drift detector promises: calm users stay stable, a change of interest is found, and the new interest becomes normal."""

import numpy as np

from stream.drift import DriftDetector
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
