"""What one variant recommended, in columns, and the rank that it gave to each click."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream.decode import Event
from stream.drift import STATES
from stream.events import Click, DriftLevel
from stream.recommend.catalogue import Catalogue
from stream.recommend.recommender import Choices
from stream.replay.clicks import Clicks


class Ledger:
    """Recommendations as they come, judged by the clicks that follow them.

    A click is judged by its user's latest recommendation whose timestamp is not after the click's, and which the click itself did
    not trigger. Of equal timestamps the one published last counts.

    Attributes:
        ranks: for each click the place of its item in that recommendation, from 1; 0 where it is not in it, (clicks,).
        answered: whether there was a recommendation with items at all, (clicks,).
        states: the user's drift state in that recommendation, an index into `STATES`, (clicks,).
        event_ids: of the event that each recommendation answers.
        items: once closed, the number of each recommended item, best first, −1 where a list is shorter: (recommendations, width).
        item_ids: once closed, the recommended items by number.

    Args:
        clicks: to judge.
        catalogue: of which items are chosen; it stays as it is.
        width: how many items a recommendation has at most.
    """

    def __init__(self, clicks: Clicks, catalogue: Catalogue, width: int) -> None:
        self._clicks = clicks.events
        self._catalogue = catalogue
        self._width = width
        self._next = 0  # the first click that is not judged yet
        self._answers: dict[str, list[int]] = {}  # of each user, by number
        self.ranks = np.zeros(len(clicks), np.int32)
        self.answered = np.zeros(len(clicks), np.bool_)
        self.states = np.zeros(len(clicks), np.int8)
        self._user_numbers: dict[str, int] = {}
        self._times, self._users, self._states = array("q"), array("l"), array("b")
        self._scores, self._rows = array("d"), array("i")
        self.event_ids: list[str] = []
        self.items = np.zeros((0, width), np.int32)
        self.item_ids: list[str] = []

    def take(self, events: Sequence[Event], levels: Sequence[DriftLevel], chosen: Choices) -> None:
        """Note the recommendations that answer some events, and judge the clicks before the last of them.

        Args:
            events: that are answered, in their order.
            levels: the user's drift at each.
            chosen: the items for each.
        """
        if not events:
            return
        rows = np.full((len(events), self._width), -1, np.int32)
        rows[np.arange(self._width) < chosen.counts[:, None]] = chosen.rows
        self._rows.frombytes(rows.tobytes())
        self._times.extend([event.time for event in events])
        self._states.extend([STATES.index(level.state) for level in levels])
        self._scores.extend([level.score for level in levels])
        for number, event in enumerate(events, len(self.event_ids)):
            user_id = event.behaviour.user_id
            self._answers.setdefault(user_id, []).append(number)
            self._users.append(self._user_numbers.setdefault(user_id, len(self._user_numbers)))
        self.event_ids += [event.behaviour.event_id for event in events]
        self._judge(events[-1].time)

    def close(self) -> None:
        """Judge the clicks that are left, as nothing more comes, and give the items that were recommended numbers."""
        self._judge(None)
        ids = self._catalogue.ids
        rows = np.frombuffer(self._rows, np.int32).reshape(-1, self._width)
        shown = np.zeros(len(ids) + 1, np.bool_)  # the last is what −1 means
        shown[rows] = True
        shown[-1] = False
        self.item_ids = [ids[row] or "" for row in np.flatnonzero(shown).tolist()]
        numbers = shown.cumsum(dtype=np.int32) - 1
        numbers[-1] = -1
        self.items = numbers[rows]

    def _judge(self, before: int | None) -> None:
        """Judge the clicks of earlier times than `before`: no recommendation that counts for them can come any more."""
        clicks = self._clicks
        while self._next < len(clicks) and (before is None or clicks[self._next].time < before):
            click = clicks[self._next].behaviour
            assert isinstance(click, Click)
            answers = self._answers.get(click.user_id, [])
            found = self._latest(answers, clicks[self._next].time, click.event_id)
            if found is not None:
                answer = answers[found]
                rows = self._rows[answer * self._width : (answer + 1) * self._width]
                self.answered[self._next] = rows[0] >= 0
                self.states[self._next] = self._states[answer]
                row = self._catalogue.rows.get(click.item_id)
                if row is not None and row in rows:
                    self.ranks[self._next] = rows.index(row) + 1
                self._forget(answers, found)
            self._next += 1

    def _latest(self, answers: Sequence[int], time: int, event_id: str) -> int | None:
        for place in range(len(answers) - 1, -1, -1):
            if self._times[answers[place]] <= time and self.event_ids[answers[place]] != event_id:
                return place
        return None

    def _forget(self, answers: list[int], found: int) -> None:
        """Drop what no later click can be judged by: all before the latest two that different events triggered."""
        for place in range(found - 1, -1, -1):
            if self.event_ids[answers[place]] != self.event_ids[answers[found]]:
                del answers[:place]
                return

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
