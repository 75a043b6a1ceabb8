"""How the size of a batch follows what an event costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.engine.pace import FIRST, Pace

costs = st.floats(1e-6, 3.0)  # seconds an event
overheads = st.floats(0.0, 0.2)  # seconds a batch


def backlog(pace: Pace, cost: float, overhead: float = 0.0, batches: int = 40) -> float:
    """Full batches at this cost; return the seconds that another one would take."""
    for _ in range(batches):
        pace.took(pace.limit, overhead + cost * pace.limit)
    return overhead + cost * pace.limit


@given(costs, costs, overheads)
def test_full_batches_come_to_take_the_time_that_they_may_whatever_events_cost(
    before: float, after: float, overhead: float
) -> None:
    pace = Pace(target=1.0, most=10**9)
    backlog(pace, before)
    taken = backlog(pace, after, overhead)
    assert taken <= 1.05 or pace.limit == 1
    assert taken + 2 * after >= 0.95  # nor much less: an event more would be too many


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0.0, 1000.0))), st.integers(1, 50_000))
def test_the_limit_stays_between_one_event_and_the_most(batches: list[tuple[int, float]], most: int) -> None:
    pace = Pace(target=1.0, most=most)
    for events, seconds in batches:
        pace.took(events, seconds)
        assert 1 <= pace.limit <= most


@given(st.lists(st.tuples(st.integers(1, FIRST - 1), st.floats(0.0, 1.0)), min_size=1))
def test_batches_of_the_little_that_there_is_change_nothing(batches: list[tuple[int, float]]) -> None:
    pace = Pace(target=1.0, most=10_000)
    for events, seconds in batches:
        pace.took(events, seconds)
    assert pace.limit == FIRST


def test_one_batch_changes_the_next_by_a_factor_of_four_at_most() -> None:
    pace = Pace(target=1.0, most=10_000)
    pace.took(FIRST, 600.0)
    assert pace.limit == FIRST // 4
    pace.took(FIRST // 4, 0.001)
    assert pace.limit == FIRST


@pytest.mark.parametrize("most", [1, 16])
def test_fewer_at_most_than_a_first_batch_would_have_is_kept_to(most: int) -> None:
    assert Pace(target=1.0, most=most).limit == most
