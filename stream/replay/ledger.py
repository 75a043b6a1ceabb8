"""What one variant recommended, in columns, and the rank that it gave to each click."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.drift import STATES
from stream.engine.checkpoint import Output
from stream.events import Click, DriftLevel
from stream.replay.clicks import Clicks


class _Trigger(msgspec.Struct):
    event_id: str


class _Item(msgspec.Struct, gc=False):
    item_id: str


class _Recommendation(msgspec.Struct):
    """What is judged of a recommendation; the rest is passed over unread."""

    user_id: str
    timestamp: int
    trigger: _Trigger
    items: list[_Item]
    drift: DriftLevel


_recommendation = msgspec.json.Decoder(_Recommendation)


class _Answer(NamedTuple):
    time: int
    event_id: str
    row: int


class Ledger:
    """Recommendations as they come, judged by the clicks that follow them.

    A click is judged by its user's latest recommendation whose timestamp is not after the click's, and which the click itself did
    not trigger. Of equal timestamps the one published last counts.

    Attributes:
        ranks: for each click the place of its item in that recommendation, from 1; 0 where it is not in it, (clicks,).
        answered: whether there was a recommendation with items at all, (clicks,).
        states: the user's drift state in that recommendation, an index into `STATES`, (clicks,).
    """

    def __init__(self, clicks: Clicks, topic: str, width: int) -> None:
        self._clicks = clicks.events
        self.topic = topic
        self._next = 0  # the first click that is not judged yet
        self._answers: dict[str, list[_Answer]] = {}
        self.ranks = np.zeros(len(clicks), np.int32)
        self.answered = np.zeros(len(clicks), np.bool_)
        self.states = np.zeros(len(clicks), np.int8)
        self._width = width
        self._user_numbers: dict[str, int] = {}
        self._item_numbers: dict[str, int] = {}
        self._times, self._users, self._states = array("q"), array("l"), array("b")
        self._scores, self._items = array("d"), array("i")
        self.event_ids: list[str] = []

    def take(self, outputs: Iterable[Output]) -> None:
        """Note the recommendations among a batch's outputs, and judge the clicks before the last of them."""
        time = None
        for output in outputs:
            if output.topic == self.topic and output.value is not None:
                answer = _recommendation.decode(output.value)
                self._note(answer)
                time = answer.timestamp
        if time is not None:
            self._judge(time)

    def close(self) -> None:
        """Judge the clicks that are left: nothing more comes."""
        self._judge(None)

    def _note(self, answer: _Recommendation) -> None:
        row = _Answer(answer.timestamp, answer.trigger.event_id, len(self.event_ids))
        self._answers.setdefault(answer.user_id, []).append(row)
        numbers = self._item_numbers
        items = [numbers.setdefault(item.item_id, len(numbers)) for item in answer.items]
        self._items.extend(items + [-1] * (self._width - len(items)))
        self._times.append(answer.timestamp)
        self._users.append(self._user_numbers.setdefault(answer.user_id, len(self._user_numbers)))
        self._states.append(STATES.index(answer.drift.state))
        self._scores.append(answer.drift.score)
        self.event_ids.append(answer.trigger.event_id)

    def _judge(self, before: int | None) -> None:
        """Judge the clicks of earlier times than `before`: no recommendation that counts for them can come any more."""
        clicks = self._clicks
        while self._next < len(clicks) and (before is None or clicks[self._next].time < before):
            click = clicks[self._next].behaviour
            assert isinstance(click, Click)
            answers = self._answers.get(click.user_id, [])
            found = _latest(answers, clicks[self._next].time, click.event_id)
            if found is not None:
                row = answers[found].row
                items = self._items[row * self._width : (row + 1) * self._width]
                self.answered[self._next] = items[0] >= 0
                self.states[self._next] = self._states[row]
                number = self._item_numbers.get(click.item_id)
                if number is not None and number in items:
                    self.ranks[self._next] = items.index(number) + 1
                _forget(answers, found)
            self._next += 1

    @property
    def items(self) -> NDArray[np.int32]:
        """Return the number of each recommended item, best first, −1 where a list is shorter: (recommendations, width)."""
        return np.frombuffer(self._items, np.int32).reshape(-1, self._width)

    @property
    def item_ids(self) -> list[str]:
        """Return the items by number."""
        return list(self._item_numbers)

    @property
    def user_numbers(self) -> Mapping[str, int]:
        """Return the number of each user."""
        return self._user_numbers

    @property
    def users(self) -> NDArray[np.int64]:
        """Return the user of each recommendation, by number."""
        return np.frombuffer(self._users, np.int64)

    @property
    def times(self) -> NDArray[np.int64]:
        """Return the event time of each recommendation, ms."""
        return np.frombuffer(self._times, np.int64)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Return the drift score in each recommendation."""
        return np.frombuffer(self._scores, np.float64)

    @property
    def drift_states(self) -> NDArray[np.int8]:
        """Return the drift state in each recommendation, an index into `STATES`."""
        return np.frombuffer(self._states, np.int8)


def _latest(answers: Sequence[_Answer], time: int, event_id: str) -> int | None:
    for place in range(len(answers) - 1, -1, -1):
        if answers[place].time <= time and answers[place].event_id != event_id:
            return place
    return None


def _forget(answers: list[_Answer], found: int) -> None:
    """Drop what no later click can be judged by: all before the latest two that different events triggered."""
    for place in range(found - 1, -1, -1):
        if answers[place].event_id != answers[found].event_id:
            del answers[:place]
            return
