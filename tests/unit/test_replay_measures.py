"""Each click is judged by the recommendation that its user had seen, and the measures are what their definitions say."""

import json
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from stream.decode import Event, decode_click
from stream.engine.reader import KafkaRecord
from stream.events import DriftLevel, Item, State
from stream.recommend.catalogue import Catalogue
from stream.recommend.recommender import Choices
from stream.replay.clicks import NothingToJudgeError, read_clicks
from stream.replay.ledger import Ledger
from stream.replay.measures import curve, gains, slices, totals

T0 = 1_700_000_000_000


class Answer(NamedTuple):
    """What the ledger is told of one recommendation."""

    event: Event
    level: DriftLevel
    items: list[str]


def click(user: str, item: str, time: int, event_id: str, query: str = "") -> Event:
    value = {"event_id": event_id, "user_id": user, "item_id": item, "timestamp": T0 + time, "query": query}
    found = decode_click(KafkaRecord("clicks", 0, 0, 0, user.encode(), json.dumps(value).encode()))
    assert isinstance(found, Event)
    return found


def answer(user: str, time: int, event_id: str, items: list[str], state: State = "stable") -> Answer:
    return Answer(click(user, "what it was does not count", time, event_id), DriftLevel(score=0.1, state=state), items)


def ledger_of(events: list[Event], batches: list[list[Answer]]) -> tuple[Any, Ledger]:
    clicks = read_clicks(events, [], skip=0, start=0)
    catalogue = Catalogue(1)
    for item in ["never shown", *{item for batch in batches for answer in batch for item in answer.items}]:
        catalogue.put(Item(item_id=item, title=item), np.ones(1, np.float32))
    ledger = Ledger(clicks, catalogue, 10)
    for batch in batches:
        rows = np.array([catalogue.rows[item] for answer in batch for item in answer.items], np.intp)
        counts = np.array([len(answer.items) for answer in batch])
        chosen = Choices(counts, rows, np.zeros(len(rows)), np.zeros(len(rows), np.int64))
        ledger.take([answer.event for answer in batch], [answer.level for answer in batch], chosen)
    ledger.close()
    return clicks, ledger


# A user's events, few times and ids, so that ties and repeated event_ids are common.
streams = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob"]), st.integers(0, 6), st.sampled_from("abcdef"), st.sampled_from("xyz"), st.booleans()
    ),
    min_size=1,
    max_size=25,
).map(lambda rows: sorted(rows, key=lambda row: row[1]))


@given(streams, st.lists(st.lists(st.sampled_from("xyz"), unique=True), min_size=25, max_size=25), st.integers(1, 5))
def test_a_click_is_judged_by_the_users_latest_recommendation_that_it_did_not_trigger(
    stream: list[tuple[str, int, str, str, bool]], lists: list[list[str]], size: int
) -> None:
    if not any(is_click for *_, is_click in stream):
        return
    events = [click(user, item, time, event_id) for user, time, event_id, item, is_click in stream if is_click]
    answers = [(user, time, event_id, listed) for (user, time, event_id, _, _), listed in zip(stream, lists, strict=False)]
    batches = [[answer(*a) for a in answers[start : start + size]] for start in range(0, len(answers), size)]
    clicks, ledger = ledger_of(events, batches)
    expected = []
    for event in clicks.events:
        c = event.behaviour
        seen = [a for a in answers if a[0] == c.user_id and T0 + a[1] <= event.time]
        while seen and seen[-1][2] == c.event_id:
            seen.pop()
        items = seen[-1][3] if seen else []
        expected.append(items.index(c.item_id) + 1 if c.item_id in items else 0)
    assert ledger.ranks.tolist() == expected


@pytest.mark.parametrize("rank", [0, 1, 2, 5, 6, 10, 30])
@pytest.mark.parametrize("cut", [1, 5, 10])
def test_the_measures_agree_with_scikit_learn(rank: int, cut: int) -> None:
    right = np.zeros((1, 40))
    right[0, rank - 1 if rank else 39] = 1
    scores = -np.arange(40.0)[None]
    ranks = np.array([rank], np.int32)
    assert gains(f"ndcg@{cut}", ranks)[0] == pytest.approx(ndcg_score(right, scores, k=cut))
    within = right[0, :cut]
    expected = average_precision_score(within, scores[0, :cut]) if within.any() else 0.0
    assert gains(f"map@{cut}", ranks)[0] == pytest.approx(expected)
    assert gains(f"mrr@{cut}", ranks)[0] == pytest.approx(expected)
    assert gains(f"hr@{cut}", ranks)[0] == within.any()


def test_a_click_without_any_recommendation_is_a_miss_and_counted() -> None:
    clicks, ledger = ledger_of([click("ada", "x", 1, "a"), click("bob", "y", 2, "b")], [[answer("bob", 1, "s", ["x", "y"])]])
    found = totals(ledger, clicks.judged)
    assert (found["clicks"], found["no_recommendation"]) == (2, 1)
    assert found["map@5"] == 0.25
    assert found["hr@1"] == 0.0


def test_slices_tell_new_users_unseen_queries_unseen_items_and_drifting_users() -> None:
    events = [
        click("ada", "x", 1, "a", "Garden Hose"),
        click("ada", "x", 2, "b", "gardenhose!"),
        click("bob", "y", 3, "c", "shoes"),
        click("ada", "y", 4, "d", ""),
    ]
    clicks, ledger = ledger_of(events, [[answer("ada", 3, "s", ["x"], state="drifting")]])
    found = {name: flags.tolist() for name, flags in slices(clicks, ledger).items()}
    assert found["new user"] == [True, False, True, False]
    assert found["unseen query"] == [True, False, True, False]
    assert found["unseen item"] == [True, False, True, False]
    assert found["drifting user"] == [False, False, False, True]
    hours = [flags for name, flags in found.items() if name.startswith("hour")]
    assert np.sum(hours, axis=0).tolist() == [1, 1, 1, 1]


def test_the_curve_covers_every_judged_click_once_and_averages_to_the_total() -> None:
    events = [click("ada", "x", n, f"c{n:04}") for n in range(1000)]
    clicks, ledger = ledger_of(events, [[answer("ada", n, f"s{n}", ["x"] if n % 3 else ["y"]) for n in range(1000)]])
    points = curve(clicks, ledger.ranks, "hr@10")
    assert sum(p["clicks"] for p in points) == 1000
    assert sum(p["clicks"] * p["value"] for p in points) / 1000 == pytest.approx(totals(ledger, clicks.judged)["hr@10"])
    assert all(before["to"] < after["from"] for before, after in pairwise(points))


def test_warm_up_clicks_are_not_judged_but_make_their_queries_known() -> None:
    events = [click("ada", "x", n, f"c{n}", "hose") for n in range(3)]
    clicks = read_clicks(events, [], skip=2, start=0)
    assert clicks.judged.tolist() == [False, False, True]
    assert "unseen query" not in clicks.slices
    with pytest.raises(NothingToJudgeError, match="3 clicks"):
        read_clicks(events, [], skip=3, start=0)
