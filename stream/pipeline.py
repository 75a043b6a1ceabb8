"""From a batch of events to everything that follows from it.

    decode → window → embed → drift → recommend → publish

This is the whole product on one page, and each word is also a file. It knows no Kafka, no Faust and no clock: the worker, the replay
and the tests call it alike. Where a batch ends makes no difference to any result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stream.decode import Entry, Erasure, Event, Reject, decode_click, decode_erasure, decode_search
from stream.drift import Detector, HandSetDetector, Step
from stream.encoder import Encoder
from stream.engine.checkpoint import Output, Work
from stream.engine.intake import Batch
from stream.events import Click, DriftLevel, RecommendedItem, State
from stream.learned_drift import LearnedDetector
from stream.profile import Vector, add_to_each
from stream.publish import dead_letter, drift_change, erasure, recommendation
from stream.recommend.features import Occasion, mean_profiles
from stream.recommend.recommender import Recommender
from stream.rounds import rounds, together
from stream.settings import Settings
from stream.state import UserState, decode, model_hash
from stream.window import CLICK, SEARCH, Admission, Behaviour, remembered

Users = dict[int, dict[str, UserState | None]]
"""The users that a batch touches and their new states, by partition; None for those whom it erases."""

QUERY_MEMORY_MS = 1_800_000  # half an hour: how long a search explains the clicks that follow it


class States(Protocol):
    """Where users' states come from and are kept between batches."""

    def get(self, partition: int, user_id: str) -> UserState | None:
        """Return a user's state, None for one never seen."""
        ...

    def keep(self, partition: int, states: dict[str, UserState | None]) -> None:
        """Keep the states that a batch has changed; None for users who were erased."""
        ...


@dataclass(slots=True)
class Turn:
    """One event on its way through the steps, and what each of them adds."""

    event: Event
    user: UserState
    admission: Admission
    query: str | None  # what was typed: by this event, or shortly before this click
    previous: list[str]  # items clicked before, latest first
    vector: Vector | None = None  # its query's or its item's, where profile and drift are to take it in
    query_vector: Vector | None = None
    profile: Vector | None = None  # after the event, (d,)
    before: State = "stable"
    drift: DriftLevel | None = None
    answered: bool = True
    clicked: str | None = field(init=False)  # the item, where it is a click

    def __post_init__(self) -> None:
        """Read it off the event."""
        behaviour = self.event.behaviour
        self.clicked = behaviour.item_id if isinstance(behaviour, Click) else None


class Pipeline:
    """The steps. Holds no state of its own: users' states come and go with the batch, the rest lives in the recommender."""

    decode_search = staticmethod(decode_search)
    decode_click = staticmethod(decode_click)
    decode_erasure = staticmethod(decode_erasure)
    decode_state = staticmethod(decode)

    def __init__(self, settings: Settings, encoder: Encoder, recommender: Recommender, detector: Detector | None = None) -> None:
        """Take the parts; without a `detector`, it is the one in the model folder, or else the one set by hand."""
        self.settings = settings
        self.encoder = encoder
        self.recommender = recommender
        self.catalogue = recommender.catalogue
        self.model = encoder.version
        self._model_hash = model_hash(encoder.version)
        if detector is None and encoder.manifest.drift is not None:
            detector = LearnedDetector(encoder.folder, encoder.manifest, self._model_hash)
        self.detector = detector or HandSetDetector(settings.drift, encoder.dimension)

    @staticmethod
    def texts(entries: Sequence[Entry]) -> list[str]:
        """Return what will have to be encoded for these: `embed` finds it done where somebody has begun early."""
        return [e.behaviour.query for e in entries if isinstance(e, Event) and e.behaviour.query]

    def process(self, batch: Batch, states: States) -> Work:
        """Answer a batch of events in their order, and keep the users' new states in `states`."""
        turns, users = self.follow(batch, states)
        outputs = self.publish(batch, turns, self.recommend(turns))
        for partition, changed in users.items():
            states.keep(partition, changed)
        encoded = {p: {u.encode(): None if s is None else s.encode() for u, s in changed.items()} for p, changed in users.items()}
        return Work(batch.offsets, outputs, encoded)

    def follow(self, batch: Batch, states: States) -> tuple[list[Turn], Users]:
        """Take the steps that concern each user alone; return the events, and the new states of their users."""
        turns, users = self.window(batch, states)
        self.embed(turns)
        self.drift(turns)
        return turns, users

    def window(self, batch: Batch, states: States) -> tuple[list[Turn], Users]:
        """Put each event into its user's window; duplicates, and events too late to be told from them, teach nothing.

        An erasure takes the user's state away. Events after it begin a new user.
        """
        size, span = self.settings.window.size, int(self.settings.window.days * 86_400_000)
        turns: list[Turn] = []
        changed: Users = {}
        for entry in batch.entries:
            if isinstance(entry, Reject):
                continue
            partition = entry.record.partition
            users = changed.setdefault(partition, {})
            user_id = entry.user_id if isinstance(entry, Erasure) else entry.behaviour.user_id
            user = users[user_id] if user_id in users else states.get(partition, user_id)
            if isinstance(entry, Erasure):
                users[user_id] = None
                self._unlearn(user)
                continue
            user = users[user_id] = user or self._stranger()
            behaviour = entry.behaviour
            query, previous = _context(entry, user.window.behaviours, self.settings.recommend.previous_clicks)
            admission = user.window.admit(remembered(entry.time, behaviour, query), size, span)
            turns.append(Turn(entry, user, admission, query, previous))
        if self.settings.recommend.emit == "latest-per-user":
            newest = {id(turn.user): turn for turn in turns}
            for turn in turns:
                turn.answered = newest[id(turn.user)] is turn
        return turns, changed

    def embed(self, turns: Sequence[Turn]) -> None:
        """Encode what was typed; clicked items have their vectors in the catalogue. Profiles of another model are made anew."""
        current = self._model_hash, self.detector.identity
        outdated = {id(t.user): t.user for t in turns if (t.user.model, t.user.drift.detector) != current}
        queries = {turn.query for turn in turns if turn.query}
        for user in outdated.values():
            queries.update(b.subject for b in user.window.behaviours if b.kind == SEARCH)
        texts = sorted(query for query in queries if query.strip())
        vectors = dict(zip(texts, self.encoder.encode(texts), strict=True))
        for user in outdated.values():
            self._rebuild(user, turns, vectors)
        for turn in turns:
            turn.query_vector = vectors.get(turn.query) if turn.query else None
            if turn.admission is Admission.NEW:
                turn.vector = turn.query_vector if turn.clicked is None else self.catalogue.vector(turn.clicked)

    def drift(self, turns: Sequence[Turn]) -> None:
        """Update profile and drift, of different users together, of each user event by event."""
        settings = self.settings.profile
        weights = settings.click_weight, settings.search_weight
        nothing = np.zeros(self.encoder.dimension, np.float32)
        for places in rounds([turn.user for turn in turns]):
            some = [turns[place] for place in places]
            means = add_to_each(
                [turn.user.profile for turn in some],
                [turn.event.time for turn in some],
                together([nothing if turn.vector is None else turn.vector for turn in some]),
                [0.0 if turn.vector is None else weights[turn.clicked is None] for turn in some],
                settings.half_lives_ms,
            )
            for turn, interest in zip(some, self.interests(means), strict=True):
                turn.profile = interest if turn.user.profile.known else None
        steps = [Step(turn.user.drift, turn.vector, None if turn.clicked is None else self._item(turn.clicked)) for turn in turns]
        levels = self.detector.watch(steps, self.catalogue.centre)
        for turn, (before, level) in zip(turns, levels, strict=True):
            turn.before, turn.drift = before, level

    def interests(self, profiles: Vector) -> Vector:
        """Return what the recommender has to know of profiles (n, K, d): their means over the time scales, (n, d)."""
        return mean_profiles(profiles, self.recommender.settings)

    def recommend(self, turns: Sequence[Turn]) -> list[list[RecommendedItem] | None]:
        """Choose items for every event that is to be answered."""
        return self.recommender.process([occasion(turn) for turn in turns])

    def publish(self, batch: Batch, turns: Sequence[Turn], answers: Sequence[list[RecommendedItem] | None]) -> list[Output]:
        """Put together what goes out."""
        topics = self.settings.topics
        outputs: list[Output] = []
        answered = zip(turns, answers, strict=True)
        for entry in batch.entries:
            if isinstance(entry, Reject):
                outputs.append(dead_letter(topics, entry))
                continue
            if isinstance(entry, Erasure):
                outputs += erasure(topics, entry)
                continue
            turn, items = next(answered)
            assert turn.drift is not None
            if items is not None:
                outputs.append(recommendation(topics, turn.event, items, turn.drift, self.model))
            if turn.drift.state != turn.before:
                outputs.append(drift_change(topics, turn.event, turn.before, turn.drift, self.model))
        return outputs

    def _stranger(self) -> UserState:
        scales = len(self.settings.profile.half_lives_ms)
        return UserState.new(self._model_hash, scales, self.encoder.dimension, self.detector.new())

    def _unlearn(self, user: UserState | None) -> None:
        """Let the memory forget what this user typed, as far as the window still knows it. Who has typed it, it never knew."""
        for behaviour in user.window.behaviours if user else ():
            if behaviour.query is not None:
                self.recommender.memory.unlearn(behaviour.time, behaviour.subject, behaviour.query)

    def _rebuild(self, user: UserState, turns: Sequence[Turn], queries: dict[str, Vector]) -> None:
        """Make what another model or detector left anew, from the window as it was before this batch."""
        fresh = {
            remembered(t.event.time, t.event.behaviour).event for t in turns if t.user is user and t.admission is Admission.NEW
        }
        known = [b for b in user.window.behaviours if b.event not in fresh]
        vectors = [self._vector(b, queries) for b in known]
        if user.model != self._model_hash:
            user.rebuild(self._model_hash, known, vectors, self.encoder.dimension, self.settings.profile)
        steps = [
            Step(user.drift, vector, self._item(b.subject) if b.kind == CLICK else None)
            for b, vector in zip(known, vectors, strict=True)
            if vector is not None
        ]
        user.drift = self.detector.rebuilt(steps, self.catalogue.centre)

    def _item(self, item_id: str) -> tuple[str, str]:
        return item_id, self.catalogue.title(item_id) or ""

    def _vector(self, behaviour: Behaviour, queries: dict[str, Vector]) -> Vector | None:
        if behaviour.kind == CLICK:
            return self.catalogue.vector(behaviour.subject)
        return queries.get(behaviour.subject)


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
        clicked=turn.clicked,
        query=turn.query,
        query_vector=turn.query_vector,
        previous=turn.previous,
        profile=turn.profile,
        learn=turn.admission is Admission.NEW,
        answer=turn.answered,
    )
