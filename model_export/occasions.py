"""What the ranker saw at each answer of a replayed log, and what was clicked next: what its weights are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.data import Log
from stream.decode import Event
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.events import Click, RecommendedItem
from stream.pipeline import Pipeline, Turn, occasion
from stream.profile import Vector
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.features import Features, Occasion
from stream.recommend.memory import Memory
from stream.recommend.ranker import FEATURES
from stream.recommend.recommender import Recommender
from stream.replay.variant import MemoryStates
from stream.settings import Recommend, Settings

BATCH = 256
CELLS = 8_000_000  # examples times items: 0.3 GB of features


@dataclass(frozen=True)
class Examples:
    """Answers of which the user's next click is known.

    Attributes:
        features: (len(FEATURES), examples, items), as the ranker gets them; but 0 for the profile, which `profiles` tells in parts.
        profiles: (time scales, examples, items), similarity to the profile of each time scale; 0 where there is none.
        next_item: (examples,), the column of the item that was clicked next.
        after_click: (examples,), whether a click was answered.
        clicked: (examples,), the column of the item of that click; -1 where there is none.
    """

    features: NDArray[np.float32]
    profiles: NDArray[np.float32]
    next_item: NDArray[np.intp]
    after_click: NDArray[np.bool_]
    clicked: NDArray[np.intp]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.next_item)


class Occasions:
    """A log on its way through the pipeline, up to where the memory begins: that much is the same whatever the weights.

    Args:
        log: in the order of events.
        encoder: as the worker uses it.
        settings: the worker's.
        since: only answers to events from then on (ms) become examples; what came before is what the memory knows by then.
    """

    def __init__(self, log: Log, encoder: Encoder, settings: Settings, since: int) -> None:
        self.catalogue = Catalogue(encoder.dimension)
        items = list(log.items.values())
        for item, vector in zip(items, encoder.encode([item_text(item) for item in items]), strict=True):
            self.catalogue.put(item, vector)
        self._next = _next_clicks(log.events)
        self._since = since
        pipeline = _Watched(settings, encoder, Recommender(self.catalogue, Memory(settings.recommend), settings.recommend))
        states = MemoryStates()
        for first in range(0, len(log.events), BATCH):
            pipeline.process(Batch(log.events[first : first + BATCH]), states)
        self._occasions = pipeline.occasions
        self._scales = len(settings.profile.half_lives_days)

    def examples(self, settings: Recommend) -> Examples:
        """Return what the ranker would have seen with these settings, of every n-th answer if all are more than `CELLS`."""
        rows = self.catalogue.rows
        followed = (place for place, item in enumerate(self._next) if item in rows)
        answers = [place for place in followed if self._occasions[place].time >= self._since]
        wanted = set(answers[:: 1 + len(answers) * len(rows) // CELLS])
        kept = sorted(wanted)
        tables = list(self._tables(settings, wanted))
        profiles = list(self._profiles(kept))
        clicked = [self._occasions[place].clicked for place in kept]
        return Examples(
            np.concatenate([np.zeros((len(FEATURES), 0, len(rows)), np.float32), *tables], axis=1),
            np.concatenate([np.zeros((self._scales, 0, len(rows)), np.float32), *profiles], axis=1),
            np.array([rows[str(self._next[place])] for place in kept], np.intp),
            np.array([item is not None for item in clicked], np.bool_),
            np.array([-1 if item is None else rows.get(item, -1) for item in clicked], np.intp),
        )

    def _tables(self, settings: Recommend, wanted: set[int]) -> Iterator[NDArray[np.float32]]:
        memory = Memory(settings)
        features = Features(self.catalogue, memory, settings)
        for first in range(0, len(self._occasions), BATCH):
            features.begin()
            noted = 0
            for place, event in enumerate(self._occasions[first : first + BATCH], start=first):
                if event.learn and event.clicked is not None:
                    memory.learn(event.time, event.clicked, event.query, event.previous[: settings.previous_clicks])
                if place in wanted:
                    features.note(event._replace(profile=None))
                    noted += 1
            if noted:
                yield features.table().astype(np.float32)

    def _profiles(self, places: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        unknown = np.zeros((self._scales, self.catalogue.dimension), np.float32)
        for first in range(0, len(places), BATCH):
            profiles = [self._occasions[place].profile for place in places[first : first + BATCH]]
            stacked = np.stack([unknown if profile is None else profile for profile in profiles], axis=1)
            yield np.stack([self.catalogue.similarities(scale) for scale in stacked])


def _next_clicks(events: Sequence[Event]) -> list[str | None]:
    """Return for each event what the user clicked next, None where the next thing was not a click."""
    found: list[str | None] = [None] * len(events)
    latest: dict[str, int] = {}
    for place, event in enumerate(events):
        behaviour = event.behaviour
        if isinstance(behaviour, Click) and behaviour.user_id in latest:
            found[latest[behaviour.user_id]] = behaviour.item_id
        latest[behaviour.user_id] = place
    return found


class _Watched(Pipeline):
    """The pipeline, taking down what would be recommended for instead of recommending."""

    def __init__(self, settings: Settings, encoder: Encoder, recommender: Recommender) -> None:
        super().__init__(settings, encoder, recommender)
        self.occasions: list[Occasion] = []

    def interests(self, profiles: Vector) -> Vector:
        return profiles  # by time scale: their shares are still to be learned

    def recommend(self, turns: Sequence[Turn]) -> list[list[RecommendedItem] | None]:
        self.occasions += map(occasion, turns)
        return [None for _ in turns]

    def publish(self, batch: Batch, turns: Sequence[Turn], answers: Sequence[list[RecommendedItem] | None]) -> list[Output]:
        return []
