"""A few users' ways through their interests: what they did, what they were shown, and when they were found to drift."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream.decode import Entry, Erasure, Event, Record, decode_item
from stream.drift import STATES
from stream.events import Click, Item
from stream.replay.ledger import Ledger

JOURNEYS = 4
LEAST_EVENTS = 12
MOST_EVENTS = 160  # the newest are shown
ROWS = 6  # interests of a user that get a row of their own
OTHER = "other"


class Shelf(NamedTuple):
    """What to call an item, and what kind of thing it is."""

    title: str
    category: str


def shelves(items: Iterable[Record]) -> dict[str, Shelf]:
    """Return title and category of each item."""
    found = (decode_item(record) for record in items)
    return {i.item_id: Shelf(i.title.strip() or i.item_id, i.category or "") for i in found if isinstance(i, Item)}


def journeys(
    entries: Sequence[Entry], ledger: Ledger, shelf: Mapping[str, Shelf], shifts: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Choose the users whose interest moved most, and tell what happened.

    Users whose state left stable come before others, those with a known shift before those without, longer stories first. Of users
    who were erased nothing is told.

    Args:
        entries: of the recording.
        ledger: of the base.
        shelf: of the catalogue.
        shifts: known truth, event_id of the shift by user_id; empty where none is known.
    """
    rows: dict[int, list[int]] = defaultdict(list)
    for row, user in enumerate(ledger.users.tolist()):
        rows[user].append(row)
    moved = {int(user) for user in np.unique(ledger.users[ledger.drift_states > 0])}
    names = list(ledger.user_numbers)
    erased = {entry.user_id for entry in entries if isinstance(entry, Erasure)}
    told = [user for user, mine in rows.items() if len(mine) >= LEAST_EVENTS and names[user] not in erased]
    told.sort(key=lambda user: (user not in moved, names[user] not in shifts, -min(len(rows[user]), MOST_EVENTS), names[user]))
    chosen = told[:JOURNEYS]
    wanted = {names[user] for user in chosen}
    events = (entry for entry in entries if isinstance(entry, Event))
    by_id = {(e.behaviour.user_id, e.behaviour.event_id): e for e in events if e.behaviour.user_id in wanted}
    return [_journey(names[user], rows[user][-MOST_EVENTS:], ledger, by_id, shelf, shifts.get(names[user])) for user in chosen]


def _journey(
    user: str,
    rows: Sequence[int],
    ledger: Ledger,
    events: Mapping[tuple[str, str], Event],
    shelf: Mapping[str, Shelf],
    shift: str | None,
) -> dict[str, Any]:
    items = ledger.item_ids
    clicked = [b.item_id for row in rows if isinstance(b := events[user, ledger.event_ids[row]].behaviour, Click)]
    categories = {shelf[item].category for item in clicked if item in shelf}
    by_category = len(categories) > 1

    def interest(item: str) -> str:
        known = shelf.get(item)
        return item if known is None else (known.category or known.title) if by_category else known.title

    often = [name for name, _ in Counter(map(interest, clicked)).most_common(ROWS)]
    steps: list[dict[str, Any]] = []
    state = 0
    for number, row in enumerate(rows, start=1):
        behaviour = events[user, ledger.event_ids[row]].behaviour
        shown = [items[item] for item in ledger.items[row] if item >= 0]
        did = interest(behaviour.item_id) if isinstance(behaviour, Click) else None
        first = interest(shown[0]) if shown else None
        now = int(ledger.drift_states[row])
        steps.append(
            {
                "n": number,
                "time": int(ledger.times[row]),
                "did": did if did in often else OTHER if did is not None else None,
                "what": shelf[behaviour.item_id].title
                if isinstance(behaviour, Click) and behaviour.item_id in shelf
                else (behaviour.query or ""),
                "shown": first if first in often else OTHER if first is not None else None,
                "titles": " · ".join(shelf[item].title for item in shown[:3] if item in shelf),
                "score": float(ledger.scores[row]),
                "change": STATES[now] if now != state else None,
                "shift": ledger.event_ids[row] == shift,
            }
        )
        state = now
    return {"user": user, "events": len(rows), "rows": [*often, OTHER], "steps": steps}
