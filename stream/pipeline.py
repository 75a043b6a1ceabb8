"""From a batch of events to everything that follows from it.

    decode → window → embed → drift → recommend → publish

This is the whole product on one page, and each word is also a file. It knows no Kafka, no Faust and no clock: the worker, the replay
and the tests call it alike. Where a batch ends makes no difference to any result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stream.decode import Event, Reject, decode_click, decode_search
from stream.encoder import Encoder
from stream.engine.checkpoint import Work
from stream.engine.intake import Batch
from stream.events import Click, DriftLevel, RecommendedItem, State
from stream.profile import Vector
from stream.publish import dead_letter, drift_change, recommendation
from stream.recommend.features import Occasion
from stream.recommend.recommender import Recommender
from stream.settings import Settings
from stream.state import UserState, decode, model_hash
from stream.window import CLICK, SEARCH, Admission, Behaviour, remembered

QUERY_MEMORY_MS = 1_800_000  # half an hour: how long a search explains the clicks that follow it


class States(Protocol):
    """Where users' states come from and are kept between batches."""

    def get(self, partition: int, user_id: str) -> UserState | None:
        """Return a user's state, None for one never seen."""
        ...

    def keep(self, partition: int, states: dict[str, UserState]) -> None:
        """Keep the states that a batch has changed."""
        ...


@dataclass(slots=True)
class Turn:
    """One event on its way through the steps, and what each of them adds."""

    event: Event
    user: UserState
    admission: Admission
    query: str | None  # what was typed: by this event, or shortly before this click
    previous: list[str]  # items clicked before, latest first
    vector: Vector | None = None  # of the behaviour: its query's or its item's
    query_vector: Vector | None = None
    profile: Vector | None = None  # means per time scale after the event, (K, d)
    before: State = "stable"
    drift: DriftLevel | None = None
    answered: bool = True


class Pipeline:
    """The steps. Holds no state of its own: users' states come and go with the batch, the rest lives in the recommender."""

    decode_search = staticmethod(decode_search)
    decode_click = staticmethod(decode_click)
    decode_state = staticmethod(decode)

    def __init__(self, settings: Settings, encoder: Encoder, recommender: Recommender) -> None:
        self.settings = settings
        self.encoder = encoder
        self.recommender = recommender
        self.catalogue = recommender.catalogue
        self.model = encoder.version
        self._model_hash = model_hash(encoder.version)

    def process(self, batch: Batch, states: States) -> Work:
        """Answer a batch of events in their order, and keep the users' new states in `states`."""
        work = _Changes(batch)
        turns = self.window(batch, states, work)
        self.embed(turns)
        self.drift(turns)
        answers = self.recommend(turns)
        return self.publish(turns, answers, states, work)

    def window(self, batch: Batch, states: States, work: _Changes) -> list[Turn]:
        """Put each event into its user's window; duplicates, and events too late to be told from them, teach nothing."""
        size, span = self.settings.window.size, int(self.settings.window.days * 86_400_000)
        turns = []
        for entry in batch.entries:
            if isinstance(entry, Reject):
                continue
            behaviour, partition = entry.behaviour, entry.record.partition
            users = work.users.setdefault(partition, {})
            user = users.get(behaviour.user_id)
            if user is None:
                user = states.get(partition, behaviour.user_id) or self._stranger()
                users[behaviour.user_id] = user
            query, previous = _context(entry, user.window.behaviours, self.settings.recommend.previous_clicks)
            admission = user.window.admit(remembered(entry.time, behaviour), size, span)
            turns.append(Turn(entry, user, admission, query, previous))
        if self.settings.recommend.emit == "latest-per-user":
            newest = {id(turn.user): turn for turn in turns}
            for turn in turns:
                turn.answered = newest[id(turn.user)] is turn
        return turns

    def embed(self, turns: Sequence[Turn]) -> None:
        """Encode what was typed; clicked items have their vectors in the catalogue. Profiles of another model are made anew."""
        outdated = {id(t.user): t.user for t in turns if t.user.model != self._model_hash}
        queries = {turn.query for turn in turns if turn.query}
        for user in outdated.values():
            queries.update(b.subject for b in user.window.behaviours if b.kind == SEARCH)
        texts = sorted(query for query in queries if query.strip())
        vectors = dict(zip(texts, self.encoder.encode(texts), strict=True))
        for user in outdated.values():
            self._rebuild(user, turns, vectors)
        for turn in turns:
            turn.query_vector = vectors.get(turn.query) if turn.query else None
            behaviour = turn.event.behaviour
            if isinstance(behaviour, Click):
                turn.vector = self.catalogue.vector(behaviour.item_id)
            else:
                turn.vector = turn.query_vector

    def drift(self, turns: Sequence[Turn]) -> None:
        """Update profile and drift, event by event."""
        settings, centre = self.settings, self.catalogue.centre
        scales = settings.profile.half_lives_ms
        for turn in turns:
            user = turn.user
            turn.before = user.drift.state
            if turn.admission is Admission.NEW and turn.vector is not None:
                is_click = isinstance(turn.event.behaviour, Click)
                weight = settings.profile.click_weight if is_click else settings.profile.search_weight
                user.profile.add(turn.event.time, turn.vector, weight, scales)
                user.drift.update(turn.vector, centre, settings.drift)
            turn.profile = user.profile.means()
            turn.drift = user.drift.level(settings.drift)

    def recommend(self, turns: Sequence[Turn]) -> list[list[RecommendedItem] | None]:
        """Choose items for every event that is to be answered."""
        return self.recommender.process([occasion(turn) for turn in turns])

    def publish(
        self, turns: Sequence[Turn], answers: Sequence[list[RecommendedItem] | None], states: States, work: _Changes
    ) -> Work:
        """Put together what goes out, and the states that it rests on."""
        topics = self.settings.topics
        outputs = [dead_letter(topics, entry) for entry in work.batch.entries if isinstance(entry, Reject)]
        for turn, items in zip(turns, answers, strict=True):
            assert turn.drift is not None
            if items is not None:
                outputs.append(recommendation(topics, turn.event, items, turn.drift, self.model))
            if turn.drift.state != turn.before:
                outputs.append(drift_change(topics, turn.event, turn.before, turn.drift, self.model))
        for partition, users in work.users.items():
            states.keep(partition, users)
        encoded = {p: {u.encode(): s.encode() for u, s in users.items()} for p, users in work.users.items()}
        return Work(work.batch.offsets, outputs, encoded)

    def _stranger(self) -> UserState:
        return UserState.new(self._model_hash, len(self.settings.profile.half_lives_ms), self.encoder.dimension)

    def _rebuild(self, user: UserState, turns: Sequence[Turn], queries: dict[str, Vector]) -> None:
        """Make a profile anew from the window as it was before this batch."""
        fresh = {
            remembered(t.event.time, t.event.behaviour).event for t in turns if t.user is user and t.admission is Admission.NEW
        }
        vectors = [None if b.event in fresh else self._vector(b, queries) for b in user.window.behaviours]
        user.rebuild(self._model_hash, vectors, self.catalogue.centre, self.settings.profile, self.settings.drift)

    def _vector(self, behaviour: Behaviour, queries: dict[str, Vector]) -> Vector | None:
        if behaviour.kind == CLICK:
            return self.catalogue.vector(behaviour.subject)
        return queries.get(behaviour.subject)


@dataclass
class _Changes:
    """The users that a batch touches, by partition."""

    batch: Batch
    users: dict[int, dict[str, UserState]] = field(default_factory=dict)


def _context(event: Event, history: Sequence[Behaviour], clicks: int) -> tuple[str | None, list[str]]:
    """Return the query that an event answers to, and the items that the user clicked before it, latest first."""
    behaviour = event.behaviour
    query = behaviour.query
    if query is None:
        recent = (b for b in reversed(history) if b.kind == SEARCH and b.time <= event.time)
        last = next(recent, None)
        if last is not None and event.time - last.time <= QUERY_MEMORY_MS:
            query = last.subject
    previous = [b.subject for b in reversed(history) if b.kind == CLICK and b.time <= event.time]
    return query, previous[:clicks]


def occasion(turn: Turn) -> Occasion:
    """Return what the recommender has to know of an event."""
    return Occasion(
        time=turn.event.time,
        clicked=turn.event.behaviour.item_id if isinstance(turn.event.behaviour, Click) else None,
        query=turn.query,
        query_vector=turn.query_vector,
        previous=turn.previous,
        profile=turn.profile,
        learn=turn.admission is Admission.NEW,
        answer=turn.answered,
    )
