"""What the decoder promises: never an exception, and a reason that names the field."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.decode import Event, Reject, decode_click, decode_item, decode_search
from stream.events import Item

NOW = 1_795_000_000_000
GOOD = {"event_id": "e1", "user_id": "u", "query": "tent", "timestamp": NOW}


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    topic: str = "searches"
    partition: int = 0
    offset: int = 7
    timestamp: int = NOW


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def test_a_valid_search_is_an_event_at_its_event_time() -> None:
    event = decode_search(Record(b"u", changed()))
    assert isinstance(event, Event)
    assert (event.time, event.behaviour.event_id) == (NOW, "e1")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2026-09-01T00:00:00Z", 1_788_220_800_000), ("2026-09-01T02:00:00.250+02:00", 1_788_220_800_250)],
)
def test_rfc_3339_times_with_a_zone_are_understood(written: str, meant: int) -> None:
    event = decode_search(Record(b"u", changed(timestamp=written)))
    assert isinstance(event, Event)
    assert event.time == meant


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        (b"u", b"{", "value"),
        (b"u", b"\xff\xfe", "value"),
        (b"u", b"[]", "value"),
        (b"u", None, "value"),
        (b"u", b'{"event_id":"e","user_id":"u","query":"\xff","timestamp":1}', "value"),
        (b"u", changed(query=None), "query"),
        (b"u", changed(query=["tent"]), "query"),
        (b"u", changed(query="x" * 1_048_576), "query"),
        (b"u", json.dumps({k: v for k, v in GOOD.items() if k != "query"}).encode(), "query"),
        (b"u", changed(event_id=""), "event_id"),
        (b"u", changed(event_id=3), "event_id"),
        (b"u", changed(user_id=None), "user_id"),
        (b"u", changed(timestamp=-1), "timestamp"),
        (b"u", changed(timestamp=float("nan")), "value"),
        (b"u", changed(timestamp=1.5), "timestamp"),
        (b"u", changed(timestamp="yesterday"), "timestamp"),
        (b"u", changed(timestamp="2026-09-01T00:00:00"), "timestamp"),
        (b"u", changed(timestamp=NOW + 1000 * 365 * 86_400_000), "timestamp"),
        (b"u", changed(timestamp=NOW - 1000 * 365 * 86_400_000), "timestamp"),
        (b"u", changed(timestamp=NOW // 1000), "timestamp"),
        (b"u", changed(timestamp=NOW + 2 * 86_400_000), "timestamp"),
        (b"someone else", changed(), "key"),
        (b"\xff", changed(), "key"),
        (None, changed(), "key"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_the_field_named(key: bytes | None, value: bytes | None, field: str) -> None:
    reject = decode_search(Record(key, value))
    assert isinstance(reject, Reject)
    assert reject.error.startswith(f"{field}: ")
    assert len(reject.error) < 300


def test_unknown_fields_are_left_for_newer_consumers() -> None:
    assert isinstance(decode_search(Record(b"u", changed(session="s"))), Event)


@given(st.one_of(st.none(), st.binary(max_size=64)), st.one_of(st.none(), st.binary(max_size=300)))
def test_no_bytes_make_a_decoder_raise(key: bytes | None, value: bytes | None) -> None:
    record = Record(key, value)
    assert isinstance(decode_search(record), Event | Reject)
    assert isinstance(decode_click(record), Event | Reject)
    assert isinstance(decode_item(record), Item | str | Reject)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "item_id", "position"]), _json), st.sampled_from([b"u", b"", None]))
def test_no_json_makes_a_decoder_raise(fields: dict[str, object], key: bytes | None) -> None:
    record = Record(key, json.dumps({**GOOD, **fields}).encode())
    assert isinstance(decode_search(record), Event | Reject)
    assert isinstance(decode_click(record), Event | Reject)


def test_a_tombstone_of_an_item_is_its_id() -> None:
    assert decode_item(Record(b"i1", None)) == "i1"


def test_an_item_whose_key_is_another_is_rejected() -> None:
    reject = decode_item(Record(b"i2", b'{"item_id":"i1","title":"Tent"}'))
    assert isinstance(reject, Reject)
    assert reject.error.startswith("key: ")
