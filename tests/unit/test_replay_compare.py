"""A difference is claimed only where there is one: intervals over users hold their level, and an A/B split is the same in every run."""

import numpy as np
import pytest

from stream.replay.compare import arm, by_user, difference_of_arms, intervals

LEVEL = 0.95


def population(rng: np.random.Generator, users: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Users of unequal activity and quality: the sum of their gains, and their numbers of clicks."""
    clicks = rng.integers(1, 12, users).astype(float)
    quality = rng.beta(2, 2, users)  # of one user's clicks alike: that is what resampling clicks would overlook
    return rng.binomial(clicks.astype(int), quality).astype(float), clicks


def test_the_interval_holds_the_truth_at_its_nominal_rate() -> None:
    held = 0
    for seed in range(100):
        sums, clicks = population(np.random.default_rng(seed))
        found = intervals(sums[None], clicks[None], level=LEVEL, seed=seed)[0]
        held += found.low <= 0.5 <= found.high  # beta(2, 2) has the mean 0.5
    assert 90 <= held <= 99  # binomial(100, 0.95): outside in 2 of 100 such tests


def test_identical_variants_are_never_called_different() -> None:
    for seed in range(20):
        sums, clicks = population(np.random.default_rng(seed))
        found = intervals((sums - sums)[None], clicks[None], level=LEVEL, seed=seed)[0]
        assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)
        assert not found.clear


def test_equal_variants_that_answer_differently_are_called_different_at_the_nominal_rate_only() -> None:
    clear = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        (first, clicks), noise = population(rng), rng.normal(0, 1, 300)
        found = intervals(((first + noise) - first)[None], clicks[None], level=LEVEL, seed=seed)[0]
        clear += found.clear
    assert clear <= 10


def test_a_variant_that_loses_one_hit_in_twenty_is_found_and_its_loss_measured() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hits, clicks = population(rng, users=2000)
        worse = rng.binomial(hits.astype(int), 0.95)
        found = intervals((worse - hits)[None], clicks[None], level=LEVEL, seed=seed)[0]
        assert found.high < 0
        assert found.estimate == pytest.approx(-0.05 * hits.sum() / clicks.sum(), rel=0.25)


def test_one_variant_split_in_two_arms_is_called_different_at_the_nominal_rate_only() -> None:
    sums, clicks = population(np.random.default_rng(0), users=1000)
    held = 0
    for seed in range(20):
        arms = np.array([arm(f"user-{n}", 2, str(seed)) for n in range(1000)])
        groups = [(sums[None, arms == number], clicks[None, arms == number]) for number in (0, 1)]
        found = difference_of_arms(*groups, level=LEVEL, seed=seed)[0]
        held += not found.clear
    assert held >= 17  # binomial(20, 0.95): fewer in 2 of 100 such tests


def test_a_better_arm_is_found() -> None:
    sums, clicks = population(np.random.default_rng(0), users=2000)
    arms = np.array([arm(f"user-{n}", 2, "s") for n in range(2000)])
    better = np.where(arms == 1, np.minimum(sums + 0.15 * clicks, clicks), sums)
    groups = [(better[None, arms == number], clicks[None, arms == number]) for number in (0, 1)]
    found = difference_of_arms(*groups, level=LEVEL, seed=1)[0]
    assert found.low > 0.05


def test_arms_depend_on_user_and_salt_only_and_are_of_equal_size() -> None:
    arms = [arm(f"user-{n}", 2, "spring") for n in range(10_000)]
    assert arms[:8] == [0, 0, 0, 0, 0, 0, 1, 0], "as ever: a split must not change between two versions"
    assert abs(sum(arms) - 5000) < 200
    other = [arm(f"user-{n}", 2, "autumn") for n in range(10_000)]
    assert abs(sum(a == b for a, b in zip(arms, other, strict=True)) - 5000) < 200, "another salt is another split"


def test_equal_seeds_give_equal_intervals() -> None:
    sums, clicks = population(np.random.default_rng(0))
    first, second, third = (intervals(sums[None], clicks[None], level=LEVEL, seed=seed)[0] for seed in (5, 5, 6))
    assert first == second != third


def test_sums_by_user_add_up_what_each_user_has() -> None:
    users = np.array([7, 3, 7, 9])
    assert by_user(users, np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])).tolist() == [[2.0, 4.0, 4.0], [1.0, 0.0, 1.0]]


def test_a_single_user_is_no_evidence() -> None:
    found = intervals(np.array([[3.0]]), np.array([[4.0]]), level=LEVEL, seed=0)[0]
    assert found.estimate == 0.75
    assert not found.clear
