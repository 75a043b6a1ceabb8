"""One way of answering, replayed: the worker's own core, with everything that it learns in memory and no Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stream.decode import Event, Record, Reject
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings
from stream.state import UserState

AHEAD = 16_384  # events whose texts are encoded together: full micro-batches of every length


class MemoryStates:
    """Users' states, all of them decoded."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], UserState] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        """Return a user's state, None for one never seen."""
        return self._states.get((partition, user_id))

    def keep(self, partition: int, states: dict[str, UserState]) -> None:
        """Keep the states that a batch has changed."""
        for user_id, state in states.items():
            self._states[partition, user_id] = state


class Variant:
    """Settings and a model, with the catalogue, and what was learned since the replay began.

    Attributes:
        rejected_items: dead letters of the items that cannot be used.
    """

    def __init__(self, settings: Settings, encoder: Encoder, items: Iterable[Record]) -> None:
        self.settings = settings
        self.encoder = encoder
        self.knowledge = Knowledge(settings, encoder)
        self.rejected_items = self.knowledge.put_items(items)
        self.pipeline = Pipeline(settings, encoder, self.knowledge.recommender)
        self.states = MemoryStates()

    def answer(self, entries: Sequence[Event | Reject]) -> list[Output]:
        """Return what a worker would publish for the next events, in their order."""
        work = self.pipeline.process(Batch(list(entries), {}), self.states)
        self.knowledge.memory.take_delta()  # for other workers, of which there are none
        return work.outputs

    def replay(self, entries: Sequence[Event | Reject]) -> Iterator[list[Output]]:
        """Answer all events, batch by batch; every text is encoded ahead, since a text's vector does not depend on time."""
        size = self.settings.engine.batch_size
        for begin in range(0, len(entries), AHEAD):
            block = entries[begin : begin + AHEAD]
            self.encoder.encode(sorted({e.behaviour.query for e in block if isinstance(e, Event) and e.behaviour.query}))
            for start in range(0, len(block), size):
                yield self.answer(block[start : start + size])
