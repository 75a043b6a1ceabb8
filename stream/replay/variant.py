"""One way of answering, replayed: the worker's own core in its two halves, with everything that it learns in memory and no Kafka."""

from __future__ import annotations

import math
import mmap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from stream.decode import Entry, Event, Record
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.events import DriftLevel, State
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline, Turn
from stream.profile import Vector
from stream.replay.freshness import StalePipeline
from stream.settings import Settings, SettingsError, read_settings
from stream.state import UserState
from stream.window import Admission


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
    """Memory that a fork of this process shares, for the vectors of a batch's events: they are most of what is to be sent.

    Attributes:
        profiles: after each event that has one, in order, (events, K, d).
        queries: one vector of each query, (events, d).
    """

    profiles: Vector
    queries: Vector


def _shared(*shape: int) -> Vector:
    return np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32).reshape(shape)


class Followed(NamedTuple):
    """What was found out about each event by following its user, in a form that is cheap to send to another process.

    Attributes:
        events: admission, query, previous, before, score, state and answered, as in `Turn`.
        known: which events have a profile, (events,); the profiles are in the room.
        queries: the row of each event's query vector in the room, (events,); -1 where there is none.
        unlearned: what the memory is to forget after these events; None where there is nothing.
    """

    events: list[tuple[Admission, str | None, list[str], State, float, State, bool]]
    known: NDArray[np.bool_]
    queries: NDArray[np.int32]
    unlearned: bytes | None

    @classmethod
    def of(cls, turns: Sequence[Turn], unlearned: bytes | None, room: Room) -> Followed:
        """Take it from the pipeline's first half, and put the vectors into the room."""
        events = []
        known = np.array([turn.profile is not None for turn in turns], np.bool_)
        if known.any():
            profiles = [turn.profile for turn in turns if turn.profile is not None]
            np.concatenate(profiles, out=room.profiles[: len(profiles)].reshape(-1, room.profiles.shape[2]))
        queries = np.full(len(turns), -1, np.int32)
        rows: dict[int, int] = {}  # of a vector, by its identity: a batch has one for each query
        for place, turn in enumerate(turns):
            drift = turn.drift
            assert drift is not None
            events.append((turn.admission, turn.query, turn.previous, turn.before, drift.score, drift.state, turn.answered))
            if (vector := turn.query_vector) is not None:
                if (row := rows.get(id(vector))) is None:
                    row = rows[id(vector)] = len(rows)
                    room.queries[row] = vector
                queries[place] = row
        return cls(events, known, queries, unlearned)

    def turns(self, events: Sequence[Event], room: Room) -> list[Turn]:
        """Return what the pipeline's second half takes; the users' states have stayed where they are."""
        nobody = cast(UserState, None)
        found = []
        profiles = iter(room.profiles)
        vectors = list(room.queries[: self.queries.max(initial=-1) + 1])
        told = zip(events, self.events, self.known.tolist(), self.queries.tolist(), strict=True)
        for event, (admission, query, previous, before, score, state, answered), known, row in told:
            vector = vectors[row] if row >= 0 else None
            turn = Turn(event, nobody, admission, query, previous, query_vector=vector, before=before, answered=answered)
            turn.drift = DriftLevel(score=score, state=state)
            turn.profile = next(profiles) if known else None
            found.append(turn)
        return found


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
        """Make room for so many events' vectors."""
        scales, dimension = len(self.settings.profile.half_lives_days), self.encoder.dimension
        return Room(_shared(events, scales, dimension), _shared(events, dimension))

    def follow(self, entries: Sequence[Entry], room: Room) -> Followed:
        """Bring the users' states up to date with the next entries; return what `answer` needs to know of them.

        Args:
            entries: in the order in which they happened.
            room: takes up their vectors, made for so many or more.
        """
        turns, users = self.pipeline.follow(Batch(entries), self.states)
        for partition, changed in users.items():
            self.states.keep(partition, changed)
        return Followed.of(turns, self.knowledge.memory.take_unlearned(), room)

    def answer(self, entries: Sequence[Entry], followed: Followed, room: Room) -> list[Output]:
        """Return what a worker would publish for the same entries, and learn across users from them."""
        memory = self.knowledge.memory
        events = [entry for entry in entries if isinstance(entry, Event)]
        outputs = self.pipeline.answer(Batch(entries), followed.turns(events, room))
        memory.take_delta()  # for other workers, of which there are none
        if followed.unlearned is not None:
            memory.merge(followed.unlearned)
        return outputs
