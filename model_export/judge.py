"""What an encoder is worth to the recommender: the log replayed through the worker's own pipeline, test-then-learn.

Similarity of texts alone does not tell: what the encoder knows, the memory of clicks may know better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from model_export.data import Log
from stream.decode import Event
from stream.drift import HandSetDetector
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.events import Click, RecommendedItem
from stream.pipeline import QUERY_MEMORY_MS, Pipeline, Turn
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.ngrams import normalise
from stream.recommend.recommender import Recommender
from stream.replay.variant import MemoryStates
from stream.settings import Settings

BATCH = 1024

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def judge(log: Log, start: int, encode: Encode, settings: Settings) -> dict[str, float]:
    """Return map@5 over the clicks from `start` (ms) on: `all`, and `unseen`, whose query nobody had clicked after.

    What came before `start` is learned and not answered. Each click is judged by the user's latest recommendation before it.

    Args:
        log: past and future.
        start: where the future begins.
        encode: texts to unit vectors (texts, d).
        settings: the worker's.
    """
    queries = {event.behaviour.query for event in log.events if event.behaviour.query}
    texts = {item_id: item_text(item) for item_id, item in log.items.items()}
    wanted = sorted(queries | set(texts.values()))
    encoder = _Known(dict(zip(wanted, encode(wanted), strict=True)))
    catalogue = Catalogue(encoder.dimension)
    for item_id, item in log.items.items():
        catalogue.put(item, encoder.vectors[texts[item_id]])
    recommender = Recommender(catalogue, Memory(settings.recommend), settings.recommend)
    pipeline = _Judged(settings, cast(Encoder, encoder), recommender, start)
    states = MemoryStates()
    for first in range(0, len(log.events), BATCH):
        pipeline.process(Batch(log.events[first : first + BATCH]), states)
    return pipeline.result()


class _Known:
    """Vectors that were computed before."""

    version = "candidate"

    def __init__(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        self.vectors = vectors
        self.dimension = len(next(iter(vectors.values())))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self.vectors[text] for text in texts]) if texts else np.empty((0, self.dimension), np.float32)


class _Judged(Pipeline):
    """The pipeline, with its answers compared to what was clicked instead of published."""

    def __init__(self, settings: Settings, encoder: Encoder, recommender: Recommender, start: int) -> None:
        super().__init__(settings, encoder, recommender, HandSetDetector(settings.drift, encoder.dimension))
        self._start = start
        self._latest: dict[str, list[str]] = {}
        self._queries: set[str] = set()
        self._gains: dict[str, list[float]] = {"all": [], "unseen": []}

    def result(self) -> dict[str, float]:
        """Return the mean of each slice; a slice without clicks is left out."""
        return {name: float(np.mean(gains)) for name, gains in self._gains.items() if gains}

    def recommend(self, turns: Sequence[Turn]) -> list[list[RecommendedItem] | None]:
        """Leave out the answers that no click will be judged by."""
        for turn in turns:
            turn.answered = turn.event.time >= self._start - QUERY_MEMORY_MS
        return super().recommend(turns)

    def publish(self, batch: Batch, turns: Sequence[Turn], answers: Sequence[list[RecommendedItem] | None]) -> list[Output]:
        """Judge each click by what was recommended before it, then take note of the answer to it."""
        for turn, items in zip(turns, answers, strict=True):
            if isinstance(turn.event.behaviour, Click):
                self._judge(turn.event, turn.query)
            if items is not None:
                self._latest[turn.event.behaviour.user_id] = [item.item_id for item in items]
        return []

    def _judge(self, event: Event, query: str | None) -> None:
        click = event.behaviour
        assert isinstance(click, Click)
        if event.time >= self._start:
            items = self._latest.get(click.user_id, [])[:5]
            gain = 1 / (items.index(click.item_id) + 1) if click.item_id in items else 0.0
            self._gains["all"].append(gain)
            if query and normalise(query) not in self._queries:
                self._gains["unseen"].append(gain)
        if query:
            self._queries.add(normalise(query))
