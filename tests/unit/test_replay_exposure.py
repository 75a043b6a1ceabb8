"""What was shown is measured as defined: against a count by hand, click by click."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from test_replay_measures import answer, click, ledger_of

from stream.events import Item
from stream.recommend.catalogue import Catalogue
from stream.replay.exposure import exposure


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


VECTORS = {"x": unit(1, 0, 0), "y": unit(0, 1, 0), "z": unit(1, 1, 0), "w": unit(0, 0, 1)}


@pytest.fixture
def catalogue() -> Catalogue:
    made = Catalogue(3)
    for item_id, vector in VECTORS.items():
        made.put(Item(item_id=item_id, title=item_id), vector)
    return made


def test_each_measure_is_what_its_definition_says(catalogue: Catalogue) -> None:
    events = [click("ada", "x", 2, "c1"), click("ada", "gone", 4, "c2"), click("ada", "x", 6, "c3"), click("ada", "y", 8, "c4")]
    lists = [(1, ["x", "y"]), (3, ["z"]), (5, ["x", "y", "z"]), (7, [])]
    clicks, ledger = ledger_of(events, [[answer("ada", time, f"s{time}", items) for time, items in lists]])
    found = exposure(ledger, clicks, catalogue)
    shown = lists[1:]  # from the first judged click on

    def popularity(item: str, time: int) -> float:
        before = [event for event in events if event.time - 1_700_000_000_000 < time]
        return (sum(e.behaviour.item_id == item for e in before) + 1) / (len(before) + 4)

    novelty = [np.mean([-math.log2(popularity(item, time)) for item in items]) for time, items in shown if items]
    recommended = np.mean([np.mean([popularity(item, time) for item in items]) for time, items in shown if items])
    clicked = np.mean([popularity(e.behaviour.item_id, e.time - 1_700_000_000_000) for e in events])
    distances = [1 - float(VECTORS[a] @ VECTORS[b]) for a, b in combinations("xyz", 2)]
    counts = np.array([0, 1, 1, 2])  # w, x, y, z
    gini = np.abs(counts[:, None] - counts[None]).sum() / (2 * len(counts) * counts.sum())
    assert found["novelty"] == pytest.approx(np.mean(novelty))
    assert found["popular_lift"] == pytest.approx(recommended / clicked - 1)
    assert found["diversity"] == pytest.approx(np.mean(distances), abs=1e-6)
    assert found["coverage"] == 0.75
    assert found["gini"] == pytest.approx(gini)


def test_lists_that_hold_nothing_are_measured_as_nothing(catalogue: Catalogue) -> None:
    clicks, ledger = ledger_of([click("ada", "x", 2, "c1")], [[answer("ada", 1, "s", []), answer("ada", 3, "t", [])]])
    assert set(exposure(ledger, clicks, catalogue).values()) == {0.0}
