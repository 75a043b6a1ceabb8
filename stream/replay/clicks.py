"""The clicks that recommendations are judged by, and the slices that they fall into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from stream.decode import Entry, Event, Record, decode_item
from stream.events import Click, Item

CATEGORIES = 12  # the most clicked get a slice of their own

Flags = NDArray[np.bool_]


class NothingToJudgeError(Exception):
    """No click is left to judge recommendations by; the message says why."""


@dataclass(frozen=True)
class Clicks:
    """All clicks in the order of event time and event_id, and who and what they are about.

    Attributes:
        events: the clicks.
        users: number of the click's user, (clicks,).
        judged: which clicks count: not those of the warm-up, (clicks,).
        slices: by name, which clicks belong to it, (clicks,); slices of one kind share the name up to the colon.
    """

    events: list[Event]
    users: NDArray[np.int64]
    judged: Flags
    slices: dict[str, Flags]

    def __len__(self) -> int:
        """Return how many clicks there are."""
        return len(self.events)

    @property
    def item_ids(self) -> list[str]:
        """Return the item that each click chose."""
        return [event.behaviour.item_id for event in self.events if isinstance(event.behaviour, Click)]

    @property
    def times(self) -> NDArray[np.int64]:
        """Return the clicks' event times, (clicks,), ms."""
        return np.array([event.time for event in self.events], np.int64)


def read_clicks(entries: Iterable[Entry], items: Iterable[Record], *, skip: int, start: int) -> Clicks:
    """Collect the clicks among the entries.

    Args:
        entries: a recording's.
        items: records of the catalogue, for the categories.
        skip: the first so many clicks are warm-up.
        start: so are those before this event time, ms.

    Raises:
        NothingToJudgeError: all of them are warm-up.
    """
    events = [e for e in entries if isinstance(e, Event) and isinstance(e.behaviour, Click)]
    events.sort(key=lambda e: (e.time, e.behaviour.event_id))
    judged = np.array([n >= skip and e.time >= start for n, e in enumerate(events)], np.bool_)
    if not judged.any():
        raise NothingToJudgeError(f"all {len(events)} clicks are warm-up (the first {skip}, and those before {start} ms)")
    numbers: dict[str, int] = {}
    users = np.array([numbers.setdefault(e.behaviour.user_id, len(numbers)) for e in events], np.int64)
    slices = {name: flags & judged for name, flags in _slices(events, _categories(items)).items()}
    return Clicks(events, users, judged, {name: flags for name, flags in slices.items() if flags.any()})


def _slices(events: Sequence[Event], categories: dict[str, str]) -> dict[str, Flags]:
    flags: dict[str, list[bool]] = {"new user": [], "unseen query": [], "unseen item": []}
    users: set[str] = set()
    queries: set[str] = set()
    items: set[str] = set()
    for event in events:
        click = event.behaviour
        assert isinstance(click, Click)
        query = letters(click.query or "")
        flags["new user"].append(click.user_id not in users)
        flags["unseen query"].append(bool(query) and query not in queries)
        flags["unseen item"].append(click.item_id not in items)
        users.add(click.user_id)
        queries.add(query)
        items.add(click.item_id)
    slices = {name: np.array(values, np.bool_) for name, values in flags.items()}
    hours = np.array([datetime.fromtimestamp(event.time / 1000, UTC).hour for event in events])
    slices |= {f"hour: {hour:02d} UTC": hours == hour for hour in range(24)}
    kinds = np.array([categories.get(event.behaviour.item_id, "") for event in events if isinstance(event.behaviour, Click)])
    often = [name for name, _ in Counter(kinds.tolist()).most_common() if name][:CATEGORIES]
    return slices | {f"category: {name}": kinds == name for name in often}


def letters(query: str) -> str:
    """Return what makes two queries the same: their letters and digits, in lower case."""
    return "".join(character for character in query.lower() if character.isalnum())


def _categories(items: Iterable[Record]) -> dict[str, str]:
    found = (decode_item(record) for record in items)
    return {item.item_id: item.category for item in found if isinstance(item, Item) and item.category}
