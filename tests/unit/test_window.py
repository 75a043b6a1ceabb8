"""What a window promises: order, bounds, duplicates, and the floor below which nothing is counted twice."""

from hypothesis import given
from hypothesis import strategies as st

from stream.events import Click, Search
from stream.window import Admission, Window, remembered, unpack

DAY = 86_400_000


def click(number: int, time: int) -> Click:
    return Click(event_id=f"e{number}", user_id="u", item_id=f"item {number}", timestamp=time)


def fill(times: list[int], size: int = 64, span: int = 30 * DAY) -> Window:
    window = Window()
    for number, time in enumerate(times):
        window.admit(remembered(time, click(number, time)), size, span)
    return window


def test_a_repeated_event_is_a_duplicate_wherever_it_is_in_the_window() -> None:
    window = fill([10, 20, 30])
    for number, time in enumerate([10, 20, 30]):
        assert window.admit(remembered(time, click(number, time)), 64, DAY) is Admission.DUPLICATE
    assert len(window.behaviours) == 3


def test_an_event_behind_what_was_forgotten_is_late_and_changes_nothing() -> None:
    window = fill([10, 20, 30, 40], size=2)
    before = list(window.behaviours)
    assert window.admit(remembered(15, click(99, 15)), 2, DAY) is Admission.LATE
    assert window.admit(remembered(10, click(0, 10)), 2, DAY) is Admission.LATE
    assert window.behaviours == before


def test_behaviours_older_than_the_span_are_forgotten() -> None:
    window = fill([0, DAY, 2 * DAY], span=DAY)
    assert [behaviour.time for behaviour in window.behaviours] == [DAY, 2 * DAY]
    assert window.admit(remembered(0, click(7, 0)), 64, DAY) is Admission.LATE


@given(st.lists(st.integers(0, 40), max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter_within_the_window(times: list[int], random: object) -> None:
    events = [(time, click(number, time)) for number, time in enumerate(times)]
    shuffled = events + events[: len(events) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    straight, mixed = Window(), Window()
    for time, event in sorted(events, key=lambda pair: pair[0]):
        straight.admit(remembered(time, event), 64, DAY)
    for time, event in shuffled:
        mixed.admit(remembered(time, event), 64, DAY)
    assert mixed.behaviours == straight.behaviours


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 10), st.integers(1, 500))
def test_a_window_is_sorted_bounded_and_above_its_floor(times: list[int], size: int, span: int) -> None:
    window = fill(times, size, span)
    places = [(behaviour.time, behaviour.event) for behaviour in window.behaviours]
    assert places == sorted(places)
    assert len(places) <= size
    assert all(place > window.floor for place in places)
    assert not places or places[-1][0] - places[0][0] <= span


@given(st.lists(st.tuples(st.integers(-(2**60), 2**60), st.text(max_size=20)), max_size=20))
def test_packing_round_trips(behaviours: list[tuple[int, str]]) -> None:
    window = Window()
    for number, (time, query) in enumerate(behaviours):
        window.admit(remembered(time, Search(event_id=f"e{number}", user_id="u", query=query, timestamp=time)), 64, 2**62)
    assert unpack(window.pack(), len(window.behaviours)) == window.behaviours
