"""The program with one part broken on purpose: `python sabotage.py WHAT worker …`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any

from stream.engine import recovery
from stream.engine.checkpoint import Checkpoint, Membership, Work
from stream.engine.transport import BatchConsumer
from stream.pipeline import Pipeline


def a_query_crashes_a_step() -> None:
    """Every step that meets the query `poison` crashes; half of the users' states and of the memory are changed by then."""
    recommend = Pipeline.recommend

    def crashing(self: Pipeline, turns: Any) -> Any:
        answers = recommend(self, turns)
        if any(turn.query == "poison" for turn in turns):
            raise ZeroDivisionError("poison")
        return answers

    Pipeline.recommend = crashing  # type: ignore[method-assign]


def a_step_crashes_once() -> None:
    """The first batch crashes, whatever it holds."""
    recommend, crashed = Pipeline.recommend, []

    def crashing(self: Pipeline, turns: Any) -> Any:
        if not crashed:
            crashed.append(True)
            raise ZeroDivisionError("once")
        return recommend(self, turns)

    Pipeline.recommend = crashing  # type: ignore[method-assign]


def every_event_crashes() -> None:
    """The model is at fault, say."""
    recommend = Pipeline.recommend

    def crashing(self: Pipeline, turns: Any) -> Any:
        if turns:
            raise ZeroDivisionError("always")
        return recommend(self, turns)

    Pipeline.recommend = crashing  # type: ignore[method-assign]


def recovery_hangs() -> None:
    """Restoring states never comes to an end."""
    recovery.replay_changelog = lambda *_: time.sleep(3600)  # type: ignore[assignment]


def offsets_before_results() -> None:
    """The checkpoint's order is wrong, and the worker dies in between: at its third batch."""
    deliver, batches = Checkpoint._deliver, []

    async def commit(self: Checkpoint, work: Work, member: Membership) -> None:
        assert await self._commit_offsets(work.offsets, member)
        batches.append(work)
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        deliver(self, work)
        self._write(work)

    Checkpoint.commit = commit  # type: ignore[method-assign]


def the_changelog_is_not_read() -> None:
    """The worker takes part in the group as one does that is told to stop before its tables are registered."""
    subscribe = BatchConsumer.subscribe

    async def without(self: BatchConsumer, topics: Iterable[str]) -> None:
        await subscribe(self, [topic for topic in topics if not topic.endswith("-changelog")])

    BatchConsumer.subscribe = without  # type: ignore[method-assign]


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    from stream.cli import app

    app()
