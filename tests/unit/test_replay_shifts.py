"""Detection of known shifts, judged as it is defined, threshold by threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_replay_measures import answer, click, ledger_of

from stream.events import Item
from stream.lines import LinesError
from stream.recommend.catalogue import Catalogue
from stream.replay.rivals import DETECTORS, rivals
from stream.replay.shifts import ARL0, HORIZON, WARM_UP, Examination, Story, Truth, best, examine, read_truth, series, stories


def by_definition(told: list[Story], above: list[bool]) -> dict[str, float]:
    """The same measure without a single array."""
    events = false = 0
    delays: list[int] = []
    for story in told:
        stretch = [above[number] for number in story.clicks[WARM_UP : story.shift]]
        events += len(stretch)
        false += sum(now and not was for was, now in zip([False, *stretch], stretch, strict=False))
        if story.shift is not None:
            around = [above[number] for number in story.clicks[story.shift - 1 : story.shift + HORIZON]]
            alarms = [n for n, (was, now) in enumerate(zip(around, around[1:], strict=False), 1) if now and not was]
            delays.append(alarms[0] if alarms else 0)
    found = [delay for delay in delays if delay]
    return {
        "false_alarms": false,
        "arl0": events / max(1, false),
        "detected": len(found) / len(delays),
        "delay": float(np.mean([delay or HORIZON for delay in delays])),
    }


@pytest.mark.parametrize("seed", range(10))
def test_the_measure_is_what_its_definition_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    told, at = [], 0
    for number in range(12):
        length = int(rng.integers(20, 120))
        shift = int(rng.integers(1, length)) if number % 2 else None
        told.append(Story(f"u{number}", list(range(at, at + length)), shift))
        at += length
    examination = Examination(told)
    for share in (0.02, 0.2, 0.7):
        above = rng.random(at) < share
        assert examination.measure(above) == pytest.approx(by_definition(told, above.tolist()))


def test_the_best_threshold_keeps_to_the_rate_of_false_alarms() -> None:
    points = [
        {"arl0": 100.0, "detected": 0.9, "delay": 5.0},
        {"arl0": 600.0, "detected": 0.5, "delay": 12.0},
        {"arl0": 700.0, "detected": 0.5, "delay": 11.0},
        {"arl0": 900.0, "detected": 0.2, "delay": 20.0},
    ]
    assert best(points, ARL0) == points[2]
    assert best(points[:1], ARL0) is None


def recording(length: int = 100, shift: int = 60) -> tuple[Any, Any, Catalogue]:
    """Two users: one changes from garden to games, one does not; the score follows."""
    events, answers = [], []
    for n in range(length):
        moved = n >= shift
        for user in ("moves", "stays"):
            item = "game" if moved and user == "moves" else "hose"
            events.append(click(user, f"{item}{n % 3}", 10 * n, f"{user}-{n}"))
            state = "shifted" if user == "moves" and n >= shift + 9 else "stable"
            answers.append(answer(user, 10 * n, f"{user}-{n}", ["hose0"], state))
    clicks, ledger = ledger_of(events, [answers])
    catalogue = Catalogue(3)
    for n in range(3):
        catalogue.put(Item(item_id=f"hose{n}", title="hose"), np.array([1, 0.02 * n, 0], np.float32))
        catalogue.put(Item(item_id=f"game{n}", title="game"), np.array([0, 0.02 * n, 1], np.float32))
    return clicks, ledger, catalogue


def test_states_that_change_nine_clicks_after_the_shift_are_detected_with_that_delay() -> None:
    clicks, ledger, catalogue = recording()
    told = stories(clicks, [Truth("moves", "moves-60"), Truth("stays", None), Truth("unknown", "never")])
    assert [(story.user_id, story.shift) for story in told] == [("moves", 60), ("stays", None)]
    found = examine(clicks, {"now": ledger}, told, rivals(clicks, told, catalogue))
    assert found["own_states"]["now (states)"] == {
        "false_alarms": 0,
        "arl0": (60 - WARM_UP) + (100 - WARM_UP),
        "detected": 1.0,
        "delay": 10.0,
    }
    assert set(found["curves"]) == {"now", *DETECTORS}
    assert found["shifts"] == 1


def test_each_of_rivers_detectors_has_a_setting_that_finds_a_clear_shift_and_nothing_else() -> None:
    clicks, _, catalogue = recording(length=200, shift=120)
    told = stories(clicks, [Truth("moves", "moves-120"), Truth("stays", None)])
    examination = Examination(told)
    for name in DETECTORS:
        alarms = [found for detector, found in rivals(clicks, told, catalogue) if detector == name]
        assert any(examination.measure(f)["detected"] == 1.0 and not f[told[1].clicks].any() for f in alarms), name


def test_what_was_not_answered_counts_as_no_alarm() -> None:
    clicks, ledger = ledger_of([click("ada", "x", 1, "a"), click("ada", "x", 2, "b")], [[answer("ada", 1, "a", [], "drifting")]])
    scores, drifting = series(clicks, ledger)
    assert scores.tolist() == [0.1, 0.0]
    assert drifting.tolist() == [True, False]


def test_truth_of_another_recording_is_refused() -> None:
    clicks, ledger, _ = recording()
    with pytest.raises(LinesError, match="none of the known shifts"):
        examine(clicks, {"now": ledger}, stories(clicks, [Truth("moves", "elsewhere")]), [])


def test_lines_of_truth_are_read_and_others_refused(tmp_path: Path) -> None:
    file = tmp_path / "truth.jsonl"
    file.write_text(json.dumps({"user_id": "ada", "shift_event_id": None}) + "\n")
    assert read_truth(file) == [Truth("ada", None)]
    file.write_text('{"user": "ada"}\n')
    with pytest.raises(LinesError, match="user_id"):
        read_truth(file)
