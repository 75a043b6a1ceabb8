"""A difference from the worker is put down to its order of events only where the order did differ."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from stream.engine.checkpoint import Output
from stream.engine.reader import KafkaRecord
from stream.replay.agreement import Agreement


def value(offset: int, items: list[str], score: float = 0.5) -> bytes:
    trigger = {"topic": "clicks", "partition": 0, "offset": offset, "event_id": f"c{offset}"}
    return json.dumps({"trigger": trigger, "items": [{"item_id": item, "score": score} for item in items]}).encode()


def published(offset: int, produced: int, items: list[str], score: float = 0.5) -> KafkaRecord:
    return KafkaRecord("recommendations", 0, offset, produced, b"ada", value(offset, items, score))


def replayed(offset: int, items: list[str]) -> Output:
    return Output("recommendations", b"ada", value(offset, items))


def counts(records: list[KafkaRecord], outputs: list[Output]) -> dict[str, int]:
    agreement = Agreement(records, "recommendations")
    agreement.take(outputs)
    found: dict[str, int] = agreement.findings()["counts"]
    return found


SAME, DISTURBED, AFTER, UNEXPLAINED, SAME_LIST, OUT_OF_ORDER, REPEATS, UNPUBLISHED, UNREPLAYED = range(9)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_an_answer_is_out_of_order_where_the_worker_had_seen_later_or_missed_earlier_events(produced: list[int]) -> None:
    """Events happened in the order of the list; `produced` is when the worker answered each. All of its answers differ."""
    found = list(
        counts(
            [published(n, time, ["x"]) for n, time in enumerate(produced)], [replayed(n, ["y"]) for n in range(len(produced))]
        ).values()
    )
    order = sorted(range(len(produced)), key=lambda n: (produced[n], n))
    disturbed = [
        any(order.index(other) < place for other in range(n + 1, len(order))) or any(order.index(o) > place for o in range(n))
        for n in range(len(order))
        for place in [order.index(n)]
    ]
    assert found[DISTURBED] == found[OUT_OF_ORDER] == sum(disturbed)
    first = min((order.index(n) for n, is_disturbed in enumerate(disturbed) if is_disturbed), default=len(order))
    assert found[AFTER] == sum(order.index(n) > first and not disturbed[n] for n in range(len(order)))
    assert found[UNEXPLAINED] == len(order) - found[DISTURBED] - found[AFTER]


def test_what_is_the_same_is_counted_and_nothing_is_left_out() -> None:
    records = [
        published(0, 10, ["x", "y"]),
        published(1, 11, ["x", "y"], score=0.6),
        published(1, 12, ["x", "y"], score=0.6),
        published(9, 13, ["x"]),
    ]
    found = list(counts(records, [replayed(0, ["x", "y"]), replayed(1, ["x", "y"]), replayed(2, ["x"])]).values())
    assert found[SAME] == 1
    assert found[UNEXPLAINED] == found[SAME_LIST] == 1
    assert (found[REPEATS], found[UNPUBLISHED], found[UNREPLAYED]) == (1, 1, 1)


def test_full_agreement_is_said_in_a_sentence() -> None:
    agreement = Agreement([published(0, 1, ["x"])], "recommendations")
    assert "Nothing" in agreement.findings()["sentence"]
    agreement.take([replayed(0, ["x"])])
    assert agreement.findings()["sentence"].startswith("All 1 published recommendations are what the replay says")
