"""The events of a chaos run: seeded, with duplicates, late events and rubbish among them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

BEGIN = 1_767_225_600_000  # 2026-01-01
STEP_MS = 1_000
WORDS = ["garden", "hose", "red", "blue", "shoe", "running", "game", "war", "space", "coffee", "grinder"]


class Sent(NamedTuple):
    """A record for a topic."""

    topic: str
    key: bytes
    value: bytes


def items(count: int = 200) -> list[Sent]:
    """The catalogue."""
    made = []
    for number in range(count):
        words = random.Random(number).sample(WORDS, 3)
        item = {"item_id": f"item-{number}", "title": f"{' '.join(words)} {number}", "category": words[0]}
        made.append(Sent("items", item["item_id"].encode(), json.dumps(item).encode()))
    return made


def events(count: int, *, seed: int, users: int, catalogue: int = 200) -> Iterator[Sent]:
    """Searches and clicks. One in a hundred comes twice, one in a hundred late by up to a minute, one in two hundred is broken."""
    rng = random.Random(seed)
    earlier: list[Sent] = []
    for number in range(count):
        chance = rng.random()
        if chance < 0.01 and earlier:
            yield rng.choice(earlier)
            continue
        user = f"user-{rng.randrange(users)}"
        if chance < 0.015:
            yield Sent("clicks", user.encode(), b'{"event_id": "broken')
            continue
        time = BEGIN + number * STEP_MS - (rng.randrange(60_000) if chance > 0.99 else 0)
        body = {"event_id": f"e-{number}", "user_id": user, "timestamp": time}
        if rng.random() < 0.3:
            record = Sent("searches", user.encode(), json.dumps(body | {"query": " ".join(rng.sample(WORDS, 2))}).encode())
        else:
            record = Sent("clicks", user.encode(), json.dumps(body | {"item_id": f"item-{rng.randrange(catalogue)}"}).encode())
        earlier.append(record)
        if len(earlier) > 500:
            earlier.pop(0)
        yield record
