"""One way of answering, replayed: the worker's own core in its steps, with everything that it learns in memory and no Kafka."""

from __future__ import annotations

import math
import mmap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.decode import Entry, Event, Record
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.events import DriftLevel
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline, Turn, occasion
from stream.profile import Vector
from stream.recommend.features import Occasion
from stream.recommend.recommender import Choices
from stream.replay.freshness import StalePipeline
from stream.settings import Settings, SettingsError, read_settings
from stream.state import UserState


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


class Room(NamedTuple):
    """Memory that a fork of this process shares: vectors on their way to it, and what it has chosen on the way back.

    Attributes:
        profiles: after each event that has one, in order, (events, d).
        queries: one vector of each query, (events, d).
        rows, scores, reasons: as in `Choices`, (events · items of an answer,).
    """

    profiles: Vector
    queries: Vector
    rows: NDArray[np.intp]
    scores: NDArray[np.float64]
    reasons: NDArray[np.int64]


def _shared(kind: type[np.generic], *shape: int) -> NDArray[Any]:
    return np.frombuffer(mmap.mmap(-1, np.dtype(kind).itemsize * math.prod(shape)), kind).reshape(shape)


class Asked(NamedTuple):
    """What there is to recommend upon: the occasions of some events, in a form that is cheap to send to another process.

    Attributes:
        occasions: without their vectors: time, clicked, query, previous, learn, answer.
        known: which events have a profile, (events,).
        queries: the row of each event's query vector in the room, (events,); -1 where there is none.
        unlearned: what the memory is to forget after these events; None where there is nothing.
    """

    occasions: Sequence[tuple[int, str | None, str | None, Sequence[str], bool, bool]]
    known: NDArray[np.bool_]
    queries: NDArray[np.int32]
    unlearned: bytes | None

    @classmethod
    def of(cls, occasions: Sequence[Occasion], unlearned: bytes | None, room: Room) -> Asked:
        """Put the vectors into the room, and return the rest."""
        known = np.array([o.profile is not None for o in occasions], np.bool_)
        profiles = [o.profile for o in occasions if o.profile is not None]
        if profiles:
            np.concatenate(profiles, out=room.profiles[: len(profiles)].reshape(-1))
        queries = np.full(len(occasions), -1, np.int32)
        rows: dict[int, int] = {}  # of a vector, by its identity: a batch has one for each query
        for place, o in enumerate(occasions):
            if o.query_vector is not None:
                if (row := rows.get(id(o.query_vector))) is None:
                    row = rows[id(o.query_vector)] = len(rows)
                    room.queries[row] = o.query_vector
                queries[place] = row
        rest = [(o.time, o.clicked, o.query, o.previous, o.learn, o.answer) for o in occasions]
        return cls(rest, known, queries, unlearned)

    def whole(self, room: Room) -> list[Occasion]:
        """Return the occasions, with vectors that lie in the room."""
        profiles = iter(room.profiles)
        vectors = [*room.queries[: self.queries.max(initial=-1) + 1], None]  # the last is what -1 means
        places = zip(self.occasions, self.known.tolist(), self.queries.tolist(), strict=True)
        return [
            Occasion(time, clicked, query, vectors[row], previous, next(profiles) if known else None, learn, answer)
            for (time, clicked, query, previous, learn, answer), known, row in places
        ]


class Published(NamedTuple):
    """What a variant answered to some entries.

    Attributes:
        outputs: what a worker would publish.
        events: those that are answered, in their order.
        levels: the user's drift at each of these.
        chosen: the items for each of these.
    """

    outputs: list[Output]
    events: list[Event]
    levels: list[DriftLevel]
    chosen: Choices


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

    def room(self, events: int) -> Room:
        """Make room for what belongs to so many events."""
        items = events * self.settings.recommend.count
        profiles, queries = (_shared(np.float32, events, self.encoder.dimension) for _ in range(2))
        return Room(profiles, queries, _shared(np.intp, items), _shared(np.float64, items), _shared(np.int64, items))

    def follow(self, entries: Sequence[Entry], room: Room) -> tuple[list[Turn], Asked]:
        """Bring the users' states up to date with the next entries; return the events, and what `recommend` needs to know of them.

        Args:
            entries: in the order in which they happened.
            room: for so many or more.
        """
        turns, users = self.pipeline.follow(Batch(entries), self.states)
        for partition, changed in users.items():
            self.states.keep(partition, changed)
        return turns, Asked.of([occasion(turn) for turn in turns], self.knowledge.memory.take_unlearned(), room)

    def recommend(self, asked: Asked, room: Room) -> NDArray[np.intp]:
        """Choose items, and learn across users; return how many items each event has, (events,), with what they are in the room."""
        memory = self.knowledge.memory
        chosen = self.knowledge.recommender.choose(asked.whole(room))
        memory.take_delta()  # for other workers, of which there are none
        if asked.unlearned is not None:
            memory.merge(asked.unlearned)
        items = len(chosen.rows)
        room.rows[:items], room.scores[:items], room.reasons[:items] = chosen.rows, chosen.scores, chosen.reasons
        return chosen.counts

    def publish(self, entries: Sequence[Entry], turns: Sequence[Turn], counts: NDArray[np.intp], room: Room) -> Published:
        """Return what a worker would publish for the same entries, and what of; `room` may be used again when that has been read."""
        items, wanted = int(counts.sum()), [turn.answered for turn in turns]
        chosen = Choices(counts, room.rows[:items], room.scores[:items], room.reasons[:items])
        outputs = self.pipeline.publish(Batch(entries), turns, self.knowledge.recommender.items(chosen, wanted))
        answered = [turn for turn in turns if turn.answered]
        levels = [turn.drift for turn in answered if turn.drift is not None]  # all of them have one
        return Published(outputs, [turn.event for turn in answered], levels, chosen._replace(counts=counts[wanted]))
