"""Messages as a broken producer, or a malicious one, would send them: good ones, changed at random."""

from __future__ import annotations

import json
from random import Random

from worker_process import Sent

START = 1_756_684_800_000
USERS = ["anna", "bert", "çelik", "0"]

# What is put in the place of a value, or between two bytes. Some are no JSON.
DEEP = b'{"a":' * 2_000 + b"1" + b"}" * 2_000
VALUES = [b"null", b"true", b"-1", b"0", b"1e400", b"1.5", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b"9" * 40]
VALUES += [b"9" * 5_000, b'"2025-02-30"', b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59.999999-14:00"', DEEP]
BYTES = [b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\", b'"', b"{", b"}", b"[", b",", b":", b" ", b"\n"]


def good(random: Random) -> Sent:
    """A search or a click that is in order. Times and event_ids are few, so that duplicates and late events occur."""
    user = random.choice(USERS)
    number = random.randrange(2_000)
    event = {"event_id": f"e{number}", "user_id": user, "timestamp": START + 60_000 * number}
    if random.random() < 0.5:
        value = {**event, "query": random.choice(["garden hose", "", "  ", "чайник", "a" * 900])}
        return Sent("searches", user.encode(), json.dumps(value, ensure_ascii=random.random() < 0.5).encode())
    value = {
        **event,
        "item_id": f"i{random.randrange(8)}",
        "query": random.choice([None, "kettle"]),
        "position": random.randrange(3),
    }
    return Sent("clicks", user.encode(), json.dumps(value).encode())


def mutated(random: Random) -> Sent:
    """The same after one to four changes of its bytes, its fields, its key or its topic."""
    sent = good(random)
    for _ in range(random.choices((1, 2, 3, 4), (8, 4, 2, 1))[0]):
        sent = random.choices((_bytes, _field, _key, _topic), (5, 5, 1, 1))[0](random, sent)
    return sent


def _bytes(random: Random, sent: Sent) -> Sent:
    value = sent.value or b""
    at = random.randrange(len(value) + 1)
    until = min(len(value), at + random.choice((1, 1, 2, 8, 64)))
    piece = random.choice([value[:at], value[until:], b"", value[at:until] * 2, random.randbytes(1), random.choice(BYTES)])
    kept = random.random() < 0.3
    return sent._replace(value=value[:at] + piece + value[at if kept else until :])


def _field(random: Random, sent: Sent) -> Sent:
    """Leave a field out, give it another value, give it twice, or nest it; by text, since the result need not be JSON."""
    try:
        event = json.loads(sent.value or b"")
    except (ValueError, RecursionError):
        return sent
    if not isinstance(event, dict) or not event:
        return sent
    name = random.choice(list(event))
    value = event[name]
    parts = [(key, json.dumps(other).encode()) for key, other in event.items() if key != name]
    doubled = json.dumps(value * 2 if isinstance(value, str) else [value]).encode()
    odd = random.choice([random.choice(VALUES), doubled])
    parts += random.choice([[], [(name, odd)], [(name, json.dumps(value).encode()), (name, odd)], [(name.upper(), odd)]])
    return sent._replace(value=b"{" + b", ".join(json.dumps(key).encode() + b": " + other for key, other in parts) + b"}")


def _key(random: Random, sent: Sent) -> Sent:
    return sent._replace(key=random.choice([None, b"", b"\xff", b"anna", b"k" * 600, (sent.key or b"")[:-1]]))


def _topic(random: Random, sent: Sent) -> Sent:
    other = sent._replace(topic="clicks" if sent.topic == "searches" else "searches")
    return random.choice([other, sent._replace(value=None)])
