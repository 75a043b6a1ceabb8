"""What goes out: recommendations, changes of drift state, dead letters."""

from __future__ import annotations

import hashlib

import msgspec

from stream.decode import Erasure, Event, Reject
from stream.engine.checkpoint import Output
from stream.events import DriftChange, DriftLevel, Recommendation, RecommendedItem, State, Trigger
from stream.settings import Topics

_encode = msgspec.json.Encoder().encode


def recommendation(topics: Topics, event: Event, items: list[RecommendedItem], drift: DriftLevel, model: str) -> Output:
    """Answer one event. Its id follows from the event and the model, so that a repeat is recognisable."""
    user_id = event.behaviour.user_id
    identity = "\0".join((event.record.topic, user_id, event.behaviour.event_id, model))
    answer = Recommendation(
        recommendation_id=hashlib.blake2b(identity.encode(), digest_size=12).hexdigest(),
        user_id=user_id,
        timestamp=event.time,
        trigger=trigger(event),
        items=items,
        drift=drift,
        model=model,
    )
    return Output(topics.name("recommendations"), event.record.key, _encode(answer))


def drift_change(topics: Topics, event: Event, before: State, now: DriftLevel, model: str) -> Output:
    """Tell that a user's drift state has changed."""
    change = DriftChange(
        user_id=event.behaviour.user_id,
        timestamp=event.time,
        trigger=trigger(event),
        before=before,
        after=now.state,
        score=now.score,
        model=model,
    )
    return Output(topics.name("drift"), event.record.key, _encode(change))


def erasure(topics: Topics, erased: Erasure) -> list[Output]:
    """Put a tombstone behind what was published of a user, so that compaction removes it."""
    return [Output(topics.name(topic), erased.record.key, None) for topic in ("recommendations", "drift")]


def dead_letter(topics: Topics, reject: Reject) -> Output:
    """Set a record aside as it came; the headers say where it came from and what is wrong with it."""
    record = reject.record
    headers = [
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
        ("error", reject.error.encode()),
    ]
    return Output(topics.name("dead_letters"), record.key, record.value, headers)


def trigger(event: Event) -> Trigger:
    """Name the record that an output answers."""
    record = event.record
    return Trigger(topic=record.topic, partition=record.partition, offset=record.offset, event_id=event.behaviour.event_id)
