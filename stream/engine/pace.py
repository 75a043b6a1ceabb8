"""How many events make a batch.

Larger batches are cheaper: a user's state is written once a batch, and so is a transaction. But nothing can be read before its batch is
done, and what crashes is done again. So a batch may take about so long, and what an event costs depends on model and machine.
"""

from __future__ import annotations

FIRST = 1024  # events, before anything has been measured
STEP = 4.0  # that the limit may change by, up or down, after one batch


class Pace:
    """The limit of a batch, learned from the batches before.

    Args:
        target: seconds that computing a full batch may take.
        most: events, however fast they are.
    """

    def __init__(self, target: float, most: int) -> None:
        self._target = target
        self._most = most
        self.limit = min(FIRST, most)

    def took(self, events: int, seconds: float) -> None:
        """Learn from a batch. One that was neither full nor slow says nothing: a few events cost more each."""
        if events < self.limit and seconds <= self._target:
            return
        fits = events * self._target / max(seconds, 1e-9)
        step = min(max(fits, self.limit / STEP), self.limit * STEP)
        self.limit = min(max(int(step), 1), self._most)
