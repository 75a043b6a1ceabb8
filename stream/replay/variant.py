"""One way of answering, replayed: the worker's own core, with everything that it learns in memory and no Kafka."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from stream.decode import Event, Record, Reject
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.replay.freshness import StalePipeline
from stream.settings import Settings, SettingsError, read_settings
from stream.state import UserState

AHEAD = 16_384  # events whose texts are encoded together: full micro-batches of every length


def read_variant(path: Path) -> Settings:
    """Return the settings with those of a file put over environment and `driftstream.toml`.

    Raises:
        SettingsError: naming the file and the setting at fault.
    """
    try:
        with path.open("rb") as file:
            return read_settings(tomllib.load(file))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, SettingsError) as error:
        raise SettingsError(f"{path}: {error}") from error


class MemoryStates:
    """Users' states, all of them decoded."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], UserState] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        """Return a user's state, None for one never seen."""
        return self._states.get((partition, user_id))

    def keep(self, partition: int, states: Mapping[str, UserState | None]) -> None:
        """Keep the states that a batch has changed; None for users who were erased."""
        for user_id, state in states.items():
            if state is None:
                self._states.pop((partition, user_id), None)
            else:
                self._states[partition, user_id] = state


class Variant:
    """Settings and a model, with the catalogue, and what was learned since the replay began.

    Attributes:
        rejected_items: dead letters of the items that cannot be used.

    Args:
        settings: of a worker.
        encoder: may be shared by variants of one model.
        items: records of the catalogue.
        profile_period_ms: where given, profiles are brought up to date only when such a period of event time ends.
    """

    def __init__(
        self, settings: Settings, encoder: Encoder, items: Iterable[Record], profile_period_ms: int | None = None
    ) -> None:
        self.settings = settings
        self.encoder = encoder
        self.knowledge = Knowledge(settings, encoder)
        self.knowledge.put_items(items)
        self.rejected_items = self.knowledge.outputs()
        recommender = self.knowledge.recommender
        self.pipeline = (
            Pipeline(settings, encoder, recommender)
            if profile_period_ms is None
            else StalePipeline(settings, encoder, recommender, profile_period_ms)
        )
        self.states = MemoryStates()

    def answer(self, entries: Sequence[Event | Reject]) -> list[Output]:
        """Return what a worker would publish for the next events, in their order."""
        work = self.pipeline.process(Batch(list(entries)), self.states)
        self.knowledge.memory.take_delta()  # for other workers, of which there are none
        return work.outputs


def replay(
    variants: Sequence[Variant], entries: Sequence[Event | Reject], batches: Iterable[slice] | None = None
) -> Iterator[tuple[int, list[list[Output]]]]:
    """Let all variants answer the events in one pass, batch by batch.

    Texts are encoded ahead, in full micro-batches: a text's vector does not depend on time.

    Args:
        variants: answer in turn.
        entries: in the order in which they happened.
        batches: consecutive parts of them; if not given, of the first variant's batch size.

    Yields:
        How many entries have been answered, and the outputs of each variant for the last batch of them.
    """
    size = variants[0].settings.engine.batch_size
    encoders = {id(variant.encoder): variant.encoder for variant in variants}.values()
    encoded = 0
    for batch in batches or (slice(start, start + size) for start in range(0, len(entries), size)):
        if batch.stop > encoded:
            ahead = entries[encoded : max(batch.stop, encoded + AHEAD)]
            texts = sorted({e.behaviour.query for e in ahead if isinstance(e, Event) and e.behaviour.query})
            for encoder in encoders:
                encoder.encode(texts)
            encoded += len(ahead)
        yield min(batch.stop, len(entries)), [variant.answer(entries[batch]) for variant in variants]
