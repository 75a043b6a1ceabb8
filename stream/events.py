"""The wire types: what producers send and what consumers receive, and nothing else.

Every type is a `msgspec.Struct`, so decoding validates: a missing or mistyped field raises `msgspec.ValidationError`, whose
message names the field. Times are integer epoch milliseconds; producers may also send RFC 3339 with a zone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Identifier = Annotated[str, Meta(min_length=1, max_length=512)]
Query = Annotated[str, Meta(max_length=1000, description="what was typed; longer ones are refused")]
EventTime = Annotated[int | datetime, Meta(description="event time: integer epoch milliseconds, or RFC 3339 with a zone")]
Milliseconds = Annotated[int, Meta(description="integer epoch milliseconds")]


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody typed a query. Topic `searches`, keyed by `user_id`."""

    event_id: Identifier
    user_id: Identifier
    query: Query
    timestamp: EventTime


class Click(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody chose an item. Topic `clicks`, keyed by `user_id`."""

    event_id: Identifier
    user_id: Identifier
    item_id: Identifier
    timestamp: EventTime
    query: Query | None = None
    position: Annotated[int, Meta(ge=0)] | None = None
    recommendation_id: Identifier | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Something that can be recommended. Compacted topic `items`, keyed by `item_id`; a null value removes it."""

    item_id: Identifier
    title: Annotated[str, Meta(max_length=10_000)]
    category: Annotated[str, Meta(max_length=1000)] | None = None
    text: Annotated[str, Meta(max_length=100_000)] | None = None
    attributes: dict[str, Any] | None = None


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """The input record that an output answers."""

    topic: str
    partition: int
    offset: int
    event_id: str


class RecommendedItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One suggestion. `reasons` names what spoke for it, strongest first."""

    item_id: str
    score: float
    reasons: list[str]


State = Literal["stable", "drifting", "shifted"]


class DriftLevel(msgspec.Struct, frozen=True, kw_only=True):
    """How far a user's recent interest has left the long-standing one."""

    score: Annotated[float, Meta(ge=0, le=1)]
    state: State


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one event. Topic `recommendations`, keyed by `user_id`; `items` best first, without repeats."""

    recommendation_id: str
    user_id: str
    timestamp: Milliseconds
    trigger: Trigger
    items: list[RecommendedItem]
    drift: DriftLevel
    model: str


class DriftChange(msgspec.Struct, frozen=True, kw_only=True):
    """A user's drift state changed. Topic `drift`, keyed by `user_id`."""

    user_id: str
    timestamp: Milliseconds
    trigger: Trigger
    before: State
    after: State
    score: Annotated[float, Meta(ge=0, le=1)]
    model: str
