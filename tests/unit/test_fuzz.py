"""Whatever bytes come, decoding them gives an event that holds what it promises, or a reason, and never an exception."""

import random as randomness
from collections import Counter

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutation import mutated

from stream.decode import EARLIEST, LATEST, Erasure, Event, Reject, decode_click, decode_erasure, decode_item, decode_search
from stream.engine.reader import KafkaRecord
from stream.events import Item
from stream.lines import behaviour_line, item_line
from stream.window import remembered, unpack

EXAMPLES, PER_EXAMPLE = 1_000, 110


outcomes: Counter[str] = Counter()


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**63))
def _decode_many(seed: int) -> None:
    random = randomness.Random(seed)
    for _ in range(PER_EXAMPLE):
        sent = mutated(random)
        record = KafkaRecord(sent.topic, 0, 7, random.choice((-1, 0, 1_756_684_800_000)), sent.key, sent.value)
        found = (decode_search if sent.topic == "searches" else decode_click)(record)
        outcomes[type(found).__name__] += 1
        if isinstance(found, Event):
            behaviour = found.behaviour
            assert EARLIEST <= found.time < LATEST
            assert record.key == behaviour.user_id.encode()
            assert 1 <= len(behaviour.event_id) <= 512
            [kept] = unpack(remembered(found.time, behaviour).packed, 1)  # and can be kept
            assert kept.subject == (behaviour.query if sent.topic == "searches" else behaviour.item_id)
        else:
            assert found.record is record
            fault, _, reason = found.error.partition(": ")
            assert fault in {
                "value",
                "key",
                "event_id",
                "user_id",
                "query",
                "item_id",
                "timestamp",
                "position",
                "recommendation_id",
            }
            assert reason
            assert len(found.error.encode()) < 400  # a header, and not a copy of the record
        assert isinstance(decode_item(record), Item | str | Reject)
        assert isinstance(decode_erasure(record), Erasure | Reject)
        behaviour_line(sent.topic, sent.value or b"")
        item_line(sent.topic, sent.value or b"")


def test_a_hundred_thousand_mutated_messages_are_events_or_rejects() -> None:
    outcomes.clear()
    _decode_many()
    assert outcomes.total() >= 100_000
    # The changes are neither all fatal nor all harmless, or little would be tested.
    assert 0.05 < outcomes["Event"] / outcomes.total() < 0.8, outcomes


@given(st.binary(max_size=200), st.one_of(st.none(), st.binary(max_size=20)))
@example(b'{"a": ' * 2_000, b"a")
def test_any_bytes_at_all_are_an_event_or_a_reject(value: bytes, key: bytes | None) -> None:
    for decode in (decode_search, decode_click):
        assert isinstance(decode(KafkaRecord("searches", 0, 0, -1, key, value)), Event | Reject)
