"""What a fresh profile is worth: the worker's core, but recommending by a profile of the last full hour or day."""

from __future__ import annotations

from collections.abc import Sequence

from stream.encoder import Encoder
from stream.engine.intake import Batch
from stream.pipeline import Pipeline, States, Turn, Users
from stream.profile import Vector
from stream.recommend.recommender import Recommender
from stream.settings import Settings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class StalePipeline(Pipeline):
    """Profiles are brought up to date only when a period of event time ends, as a batch job would.

    Everything else is as fresh as ever: the query, the items clicked before, popularity and co-behaviour.
    """

    def __init__(self, settings: Settings, encoder: Encoder, recommender: Recommender, period_ms: int) -> None:
        super().__init__(settings, encoder, recommender)
        self._period = period_ms
        self._current: dict[str, tuple[int, Vector | None]] = {}  # by user: the period of the newest profile, and the profile
        self._finished: dict[str, Vector | None] = {}  # the newest profile of an earlier period

    def follow(self, batch: Batch, states: States) -> tuple[list[Turn], Users]:
        """Forget users who were erased; an erasure is the last entry of its batch."""
        turns, users = super().follow(batch, states)
        for changed in users.values():
            for user in (user for user, state in changed.items() if state is None):
                self._current.pop(user, None)
                self._finished.pop(user, None)
        return turns, users

    def drift(self, turns: Sequence[Turn]) -> None:
        """Update profile and drift, and put the profile of the last finished period in the place of the newest."""
        super().drift(turns)
        for turn in turns:
            user, period = turn.event.behaviour.user_id, turn.event.time // self._period
            known = self._current.get(user)
            if known is not None and known[0] < period:
                self._finished[user] = known[1]
            # A copy: what it is a part of holds the profiles of a hundred users.
            self._current[user] = (period, None if turn.profile is None else turn.profile.copy())
            turn.profile = self._finished.get(user)
