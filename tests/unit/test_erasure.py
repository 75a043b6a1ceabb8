"""What an erasure does to a user's state, to what was published, and to what was learned from the user."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.decode import Erasure, Event, Reject, decode_click, decode_erasure, decode_search
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch, Intake, Partition
from stream.engine.reader import KafkaRecord
from stream.events import Item
from stream.pipeline import Pipeline
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import DAY, Memory
from stream.recommend.recommender import Recommender
from stream.settings import Recommend, Settings
from stream.state import UserState

START = 1_756_684_800_000
TITLES = ["red hose", "blue shoe", "war game", "coffee grinder"]


def search(offset: int, user: str, query: str, time: int) -> Event:
    event = {"event_id": f"s{offset}", "user_id": user, "query": query, "timestamp": time}
    found = decode_search(KafkaRecord("searches", 0, offset, time, user.encode(), json.dumps(event).encode()))
    assert isinstance(found, Event), found
    return found


def click(offset: int, user: str, item: str, time: int) -> Event:
    event = {"event_id": f"c{offset}", "user_id": user, "item_id": item, "timestamp": time}
    found = decode_click(KafkaRecord("clicks", 0, offset, time, user.encode(), json.dumps(event).encode()))
    assert isinstance(found, Event), found
    return found


def erase(offset: int, user: str, time: int) -> Erasure:
    found = decode_erasure(KafkaRecord("erasures", 0, offset, time, user.encode(), None))
    assert isinstance(found, Erasure), found
    return found


class Kept:
    """States as a store would keep them: in binary form."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        stored = self.states.get(user_id)
        return None if stored is None else Pipeline.decode_state(stored)

    def keep(self, partition: int, states: dict[str, UserState | None]) -> None:
        for user_id, state in states.items():
            if state is None:
                self.states.pop(user_id, None)
            else:
                self.states[user_id] = state.encode()


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, device="cpu", variant="fp32", threads=1, cache_size=1000)


def run(encoder: Encoder, batches: Sequence[Sequence[Event | Erasure]]) -> tuple[Kept, list[Output], Memory]:
    """Answer batches one after the other, the memory's records read back after each."""
    settings = Settings()
    catalogue, memory = Catalogue(encoder.dimension), Memory(settings.recommend)
    items = [Item(item_id=f"i{number}", title=title) for number, title in enumerate(TITLES)]
    for item, vector in zip(items, encoder.encode([item_text(item) for item in items]), strict=True):
        catalogue.put(item, vector)
    pipeline, kept = Pipeline(settings, encoder, Recommender(catalogue, memory, settings.recommend)), Kept()
    outputs: list[Output] = []
    for entries in batches:
        work = pipeline.process(Batch(entries), kept)
        outputs += work.outputs
        assert {user.decode() for user, state in work.states.get(0, {}).items() if state is None}.isdisjoint(kept.states)
        memory.take_delta()
        if (unlearned := memory.take_unlearned()) is not None:
            memory.merge(unlearned)
    return kept, outputs, memory


HISTORY = [
    search(0, "anna", "red hose", START),
    click(1, "anna", "i0", START + 1000),
    search(2, "bert", "war game", START + 2000),
    erase(3, "anna", START + 3000),
    click(4, "anna", "i1", START + 4000),
    click(5, "bert", "i2", START + 5000),
]


def test_events_after_an_erasure_begin_a_new_user(encoder: Encoder) -> None:
    kept, _, _ = run(encoder, [HISTORY])
    as_new, _, _ = run(encoder, [[entry for entry in HISTORY if isinstance(entry, Event) and (entry.time > START + 3000)]])
    assert kept.states["anna"] == as_new.states["anna"]
    assert set(kept.states) == {"anna", "bert"}


def test_an_erasure_alone_leaves_nothing(encoder: Encoder) -> None:
    kept, _, memory = run(encoder, [HISTORY[:4]])
    assert set(kept.states) == {"bert"}
    assert not [
        key for key in memory.export_changes() if b"hose" in key and memory.by_item(memory.after_query(key[1:].decode(), START))
    ]


def test_tombstones_go_out_behind_what_was_published_before_and_ahead_of_what_comes_after(encoder: Encoder) -> None:
    _, outputs, _ = run(encoder, [HISTORY])
    of_anna = [output.value for output in outputs if output.topic == "recommendations" and output.key == b"anna"]
    events = [None if value is None else json.loads(value)["trigger"]["event_id"] for value in of_anna]
    assert events == ["s0", "c1", None, "c4"]
    assert [output.key for output in outputs if output.topic == "drift" and output.value is None] == [b"anna"]


@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_it_makes_no_difference_where_a_batch_ends(encoder: Encoder, cuts: list[bool]) -> None:
    batches: list[list[Event | Erasure]] = [[]]
    for entry, cut in zip(HISTORY, [*cuts, False], strict=True):
        batches[-1].append(entry)
        if cut:
            batches.append([])
    kept, outputs, _ = run(encoder, batches)
    together, expected, _ = run(encoder, [HISTORY])
    assert kept.states == together.states
    assert [(o.topic, o.key) for o in outputs] == [(o.topic, o.key) for o in expected]


def test_an_erasure_takes_its_place_by_kafka_time_behind_events_of_the_same_millisecond() -> None:
    async def merged() -> list[str]:
        intake = Intake(
            {"searches": decode_search, "clicks": decode_click, "erasures": decode_erasure}, wait=0, backlog_wait=0, capacity=100
        )
        intake.assign({Partition(topic, 0): 0 for topic in ("searches", "clicks", "erasures")})
        intake.put(Partition("erasures", 0), [erase(0, "anna", START + 10).record], 0)
        intake.put(Partition("clicks", 0), [click(n, "anna", "i0", START + 5 * n).record for n in range(4)], 0)
        intake.put(Partition("searches", 0), [search(0, "anna", "hose", START + 10).record], 0)
        return [f"{entry.record.topic} {entry.record.offset}" for entry in (await intake.take(10)).entries]

    assert asyncio.run(merged()) == ["clicks 0", "clicks 1", "searches 0", "clicks 2", "erasures 0", "clicks 3"]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [(None, None, "key"), (b"", None, "key"), (b"\xff", None, "key"), (b"anna", b"{}", "value"), (b"anna", b"", "value")],
)
def test_what_is_no_erasure_is_set_aside(key: bytes | None, value: bytes | None, fault: str) -> None:
    found = decode_erasure(KafkaRecord("erasures", 0, 0, START, key, value))
    assert isinstance(found, Reject)
    assert found.error.startswith(f"{fault}: ")


clicks = st.lists(
    st.tuples(
        st.integers(START, START + 30 * DAY),
        st.sampled_from(["i1", "i2", "i3"]),
        st.sampled_from(["halo", "Halo 3", "fable", "a query of my own"]),
    ),
    max_size=20,
)


@given(clicks, clicks)
def test_the_memory_knows_after_an_erasure_what_the_others_have_taught_it(
    mine: list[tuple[int, str, str]], others: list[tuple[int, str, str]]
) -> None:
    memory, without = Memory(Recommend()), Memory(Recommend())
    for time, item, query in [*mine, *others]:
        memory.learn(time, item, query)
    for time, item, query in others:
        without.learn(time, item, query)
    for time, item, query in mine:
        memory.unlearn(time, item, query)
    if (unlearned := memory.take_unlearned()) is not None:
        memory.merge(unlearned)
    for query in ("halo", "halo3", "fable", "aqueryofmyown"):
        now = START + 30 * DAY
        for after in (Memory.after_query, Memory.after_similar_queries):
            expected = without.by_item(after(without, query, now))
            assert memory.by_item(after(memory, query, now)) == pytest.approx(expected, rel=1e-6)
    stored = {key for key, value in memory.export_changes().items() if value is not None and key.startswith(b"q")}
    assert stored == {key for key in without.export_changes() if key.startswith(b"q")}, "what nobody else has typed is gone"


def test_forgetting_what_was_never_learned_does_nothing() -> None:
    memory = Memory(Recommend())
    memory.learn(START, "i1", "halo")
    memory.unlearn(START, "i2", "halo")
    memory.unlearn(START, "i1", "fable")
    unlearned = memory.take_unlearned()
    assert unlearned is not None
    memory.merge(unlearned)
    assert memory.by_item(memory.after_query("halo", START)) == {"i1": 1.0}
    assert memory.by_item(memory.after_query("fable", START)) == {}
