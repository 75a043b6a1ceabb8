"""Does the drift score find shifts of interest that are known? Judged as detectors are: share found and delay at a false-alarm rate.

An alarm is a moment at which a series comes to lie above a threshold. Over stretches without a shift, after each user's first `WARM_UP`
clicks, alarms are false: events per false alarm is the average run length ARL₀ (Page 1954). For users with a shift: detected is the
share with an alarm within `HORIZON` clicks of it, and the delay is the mean number of clicks until it, `HORIZON` where it is missed.
Each threshold gives a point of the trade-off curve.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.events import Click
from stream.lines import LinesError, read_lines
from stream.replay.clicks import Clicks
from stream.replay.ledger import Ledger

WARM_UP = 30
HORIZON = 30
ARL0 = 500.0  # at which detectors are compared
THRESHOLDS = 400


class Truth(msgspec.Struct):
    """A line of the file of known truth: the first click of a user's new interest, or null where there is none."""

    user_id: str
    shift_event_id: str | None


class Story(NamedTuple):
    """A user with known truth: numbers of the clicks, in order, and the place of the first one after the shift."""

    user_id: str
    clicks: list[int]
    shift: int | None


def read_truth(path: Path) -> list[Truth]:
    """Read JSON lines of user_id and shift_event_id, `.gz` or not.

    Raises:
        LinesError: the file cannot be read, holds nothing, or a line is no such thing.
    """
    try:
        found = [msgspec.json.decode(line, type=Truth) for line in read_lines(path)]
    except msgspec.MsgspecError as error:
        raise LinesError(f"{path}: {error}; lines of user_id and shift_event_id are expected") from error
    if not found:
        raise LinesError(f"{path} is empty; lines of user_id and shift_event_id are expected")
    return found


def stories(clicks: Clicks, truth: Sequence[Truth]) -> list[Story]:
    """Return the users of whom the truth is known and the recording has the clicks, the shift's included."""
    order: dict[str, list[int]] = defaultdict(list)
    for number, event in enumerate(clicks.events):
        order[event.behaviour.user_id].append(number)
    found = []
    for known in truth:
        mine = order.get(known.user_id, [])
        ids = {clicks.events[number].behaviour.event_id: place for place, number in enumerate(mine)}
        if known.shift_event_id is None:
            found.append(Story(known.user_id, mine, None))
        elif known.shift_event_id in ids:
            found.append(Story(known.user_id, mine, ids[known.shift_event_id]))
    return found


class Examination:
    """The stretches without a shift, and those after one, of series with one value per click.

    Args:
        told: users and their shifts.
    """

    def __init__(self, told: Sequence[Story]) -> None:
        calm = [story.clicks[WARM_UP : story.shift] for story in told]
        self._calm = np.array([number for stretch in calm for number in stretch], np.int64)
        self._begins = np.zeros(len(self._calm), np.bool_)
        self._begins[np.cumsum([0, *map(len, calm)])[:-1][[len(stretch) > 0 for stretch in calm]]] = True
        shifted = [story for story in told if story.shift is not None]
        self.shifts = len(shifted)
        self.calm_events = len(self._calm)
        self._after = np.full((len(shifted), HORIZON + 1), -1, np.int64)  # the click before the shift, and those from it on
        for row, story in enumerate(shifted):
            assert story.shift is not None
            places = range(story.shift - 1, min(story.shift + HORIZON, len(story.clicks)))
            self._after[row, : len(places)] = [story.clicks[place] if place >= 0 else -1 for place in places]

    def measure(self, above: NDArray[np.bool_]) -> dict[str, float]:
        """Return false alarms, events for each of them, share detected and mean delay of a series of yes and no, (clicks,)."""
        calm = above[self._calm]
        false = int((calm & (self._begins | ~np.concatenate([[False], calm[:-1]]))).sum())
        after = np.concatenate([above, [False]])[self._after]  # −1, where there is no click, is no alarm
        alarms = after[:, 1:] & ~after[:, :-1]
        found = alarms.any(axis=1)
        delays = np.where(found, alarms.argmax(axis=1) + 1, HORIZON)
        return {
            "false_alarms": false,
            "arl0": len(calm) / max(1, false),
            "detected": float(found.mean()),
            "delay": float(delays.mean()),
        }

    def curve(self, scores: NDArray[np.float64]) -> list[dict[str, float]]:
        """Return a point for each of about `THRESHOLDS` thresholds of a series of scores, (clicks,)."""
        values = np.unique(np.concatenate([scores[self._calm], scores[self._after[:, 1:][self._after[:, 1:] >= 0]]]).round(6))
        chosen = values[:: max(1, len(values) // THRESHOLDS)].tolist()
        return [{"threshold": value} | self.measure(scores >= value) for value in chosen]


def best(points: Sequence[Mapping[str, float]], arl0: float = ARL0) -> dict[str, float] | None:
    """Return the point that detects most among those of at most one false alarm per `arl0` events; None where there is none."""
    allowed = [dict(point) for point in points if point["arl0"] >= arl0]
    return max(allowed, key=lambda point: (point["detected"], -point["delay"]), default=None)


def series(clicks: Clicks, ledger: Ledger) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the drift score published for each click, and whether the state was another than stable; 0 and no where nothing was."""
    users = {number: user for user, number in ledger.user_numbers.items()}
    rows = {
        (users[user], event): row for row, (user, event) in enumerate(zip(ledger.users.tolist(), ledger.event_ids, strict=True))
    }
    keys = ((event.behaviour.user_id, event.behaviour.event_id) for event in clicks.events)
    places = np.array([rows.get(key, -1) for key in keys], np.int64)
    scores = np.concatenate([ledger.scores, [0.0]])[places]
    drifting = np.concatenate([ledger.drift_states > 0, [False]])[places]
    return scores, drifting


def examine(
    clicks: Clicks, ledgers: Mapping[str, Ledger], told: Sequence[Story], others: Iterable[tuple[str, NDArray[np.bool_]]]
) -> dict[str, Any]:
    """Return what each variant's drift score and states find, and other detectors beside them.

    Args:
        clicks: of the recording.
        ledgers: of the variants.
        told: users and their shifts.
        others: name of a detector and its alarms, (clicks,), once for each of its settings.

    Raises:
        LinesError: the recording has none of the shifts.
    """
    examination = Examination(told)
    if not examination.shifts:
        raise LinesError("none of the known shifts is in the recording: is it the right file of truth?")
    curves: dict[str, list[dict[str, float]]] = {}
    own: dict[str, dict[str, float]] = {}
    for name, ledger in ledgers.items():
        scores, drifting = series(clicks, ledger)
        curves[name] = examination.curve(scores)
        own[f"{name} (states)"] = examination.measure(drifting)
    for name, alarms in others:
        curves.setdefault(name, []).append(examination.measure(alarms))
    found = {name: best(points) for name, points in curves.items()}
    return {
        "arl0": ARL0,
        "horizon": HORIZON,
        "shifts": examination.shifts,
        "calm_events": examination.calm_events,
        "at_arl0": found,
        "own_states": own,
        "curves": {name: _frontier(points) for name, points in curves.items()},
    }


def _frontier(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the points that no other beats in both respects, by rising ARL₀: what a user of the detector would choose from."""
    kept: list[dict[str, float]] = []
    for point in sorted(points, key=lambda p: (-p["arl0"], -p["detected"], p["delay"])):
        if not kept or point["detected"] > kept[-1]["detected"]:
            kept.append(point)
    return kept[::-1]


def signal(clicks: Clicks, story: Story, vectors: Mapping[str, NDArray[np.float32]], centre: NDArray[np.float32]) -> list[float]:
    """Return for each click of a user how far it is from what the user clicked before: 1 − cos to the mean, without the centre.

    Args:
        clicks: of the recording.
        story: the user.
        vectors: of the items, (d,).
        centre: mean of the catalogue, (d,): what all items have in common.

    Returns:
        One number in [0, 2] per click; 0 where there is nothing to compare yet.
    """
    total = np.zeros(len(centre), np.float64)
    found = []
    for number in story.clicks:
        click = clicks.events[number].behaviour
        assert isinstance(click, Click)
        vector = vectors.get(click.item_id)
        value = 0.0
        if vector is not None:
            x = (vector - centre).astype(np.float64)
            norms = float(np.linalg.norm(x) * np.linalg.norm(total))
            value = 1.0 - float(x @ total) / norms if norms > 0 else 0.0
            total += x
        found.append(value)
    return found
