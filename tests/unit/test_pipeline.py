"""The whole core over random events: where batches end, and whether states were written in between, changes no bit of the outcome."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.decode import Event, Reject
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.events import Item
from stream.pipeline import Pipeline
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.recommender import Recommender
from stream.settings import Recommend, Settings
from stream.state import UserState, decode

BEGIN = 1_767_225_600_000
HOUR = 3_600_000
TITLES = ["garden hose red", "garden hose blue", "running shoe", "space war game", "coffee grinder", ""]
ITEMS = [Item(item_id=f"i{number}", title=title) for number, title in enumerate(TITLES)]
QUERIES = ["garden hose", "shoes", "where is my order", "war", " ", ""]


class Happening(NamedTuple):
    """What hypothesis makes an event of. `repeats` is how many events back the one lies that comes again."""

    user: int
    hours: float
    click: int | None
    query: str
    repeats: int | None


happenings = st.lists(
    st.builds(
        Happening,
        user=st.integers(0, 2),
        hours=st.floats(-3, 30).map(lambda hours: round(hours, 2)),
        click=st.none() | st.integers(0, len(ITEMS)),  # the last one is unknown to the catalogue
        query=st.sampled_from(QUERIES),
        repeats=st.none() | st.none() | st.integers(1, 4),
    ),
    min_size=1,
    max_size=40,
)


def entries(made: list[Happening]) -> list[Event | Reject]:
    decoded: list[Event | Reject] = []
    values: list[tuple[str, bytes, bytes]] = []
    now = BEGIN
    for number, event in enumerate(made):
        now += round(event.hours * HOUR)
        body: dict[str, object] = {"event_id": f"e{number}", "user_id": f"u{event.user}", "timestamp": now}
        if event.repeats is not None and event.repeats <= len(values):
            values.append(values[-event.repeats])
        elif event.click is None:
            values.append(("searches", f"u{event.user}".encode(), msgspec.json.encode(body | {"query": event.query})))
        else:
            values.append(("clicks", f"u{event.user}".encode(), msgspec.json.encode(body | {"item_id": f"i{event.click}"})))
        topic, key, value = values[-1]
        read = Pipeline.decode_search if topic == "searches" else Pipeline.decode_click
        partition = int(key[1:])  # a user has one: the key decides
        decoded.append(read(KafkaRecord(topic, partition, number, 0, key, value)))
    return decoded


class States:
    """Users' states between batches: as they are, or written and read again each time, as after a restart."""

    def __init__(self, written: bool) -> None:
        self.written = written
        self.users: dict[str, UserState] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        return self.users.get(user_id)

    def keep(self, partition: int, states: dict[str, UserState]) -> None:
        for user_id, state in states.items():
            self.users[user_id] = decode(state.encode()) if self.written else state


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, device="cpu", threads=1)


def made_of(encoder: Encoder, chosen: Recommend) -> Pipeline:
    catalogue = Catalogue(encoder.dimension)
    for item, vector in zip(ITEMS, encoder.encode([item_text(item) for item in ITEMS]), strict=True):
        catalogue.put(item, vector)
    return Pipeline(Settings(), encoder, Recommender(catalogue, Memory(chosen), chosen))


def run(encoder: Encoder, events: list[Event | Reject], cuts: list[int], written: bool) -> tuple[list[Output], dict[str, bytes]]:
    pipeline = made_of(encoder, Recommend())
    states, outputs = States(written), []
    places = sorted({0, *(cut % (len(events) + 1) for cut in cuts), len(events)})
    for begin, end in zip(places, places[1:], strict=False):
        outputs += pipeline.process(Batch(events[begin:end]), states).outputs
    return outputs, {user: state.encode() for user, state in states.users.items()}


@given(made=happenings, cuts=st.lists(st.integers(0, 40), max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_batches_end_makes_no_difference_to_any_output_or_state(
    encoder: Encoder, made: list[Happening], cuts: list[int]
) -> None:
    events = entries(made)
    at_once = run(encoder, events, [], written=False)
    assert run(encoder, events, cuts, written=False) == at_once
    assert run(encoder, events, list(range(len(events))), written=True) == at_once


@given(made=happenings, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_profile_is_that_of_a_recomputation_whatever_the_order_of_arrival_and_the_duplicates(
    encoder: Encoder, made: list[Happening], order: object
) -> None:
    events = [entry for entry in entries(made) if isinstance(entry, Event)]
    shuffled = [*events, *events[: len(events) // 2]]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    _, states = run(encoder, list(shuffled), [], written=False)
    half_lives = Settings().profile.half_lives_ms
    for user, stored in states.items():
        own = {(e.record.topic, e.behaviour.event_id): e for e in events if e.behaviour.user_id == user}.values()
        vectors = {id(e): vector(encoder, e) for e in own}
        counted = [e for e in own if vectors[id(e)] is not None]
        profile = decode(stored).profile
        if not counted:
            assert profile.weights[0] == 0.0
            continue
        newest = max(e.time for e in counted)
        weights = {id(e): 1.0 if e.record.topic == "clicks" else 0.5 for e in counted}
        fades = np.array([weights[id(e)] * 2.0 ** ((e.time - newest) / half_lives) for e in counted])
        expected = np.einsum("nk,nd->kd", fades, np.array([vectors[id(e)] for e in counted], np.float64))
        assert profile.time == newest
        assert np.allclose(profile.weights, fades.sum(axis=0), rtol=1e-9)
        assert np.allclose(profile.sums, expected, atol=1e-5)


def test_a_profile_counts_each_time_scale_by_the_recommenders_shares(encoder: Encoder) -> None:
    events = entries([Happening(0, 0, None, "shoes", None), Happening(0, 30, None, "war", None)])
    for scale, shares in enumerate(np.eye(3).tolist()):
        pipeline, states = made_of(encoder, Recommend(profile_shares=shares)), States(written=False)
        turns, _ = pipeline.follow(Batch(events), states)
        means = turns[-1].user.profile.means()
        assert means is not None
        np.testing.assert_array_equal(turns[-1].profile, means[scale])


def vector(encoder: Encoder, event: Event) -> np.ndarray | None:
    behaviour = event.behaviour
    if event.record.topic == "clicks":
        known = {item.item_id: item for item in ITEMS}
        item = known.get(behaviour.item_id)  # type: ignore[union-attr]
        return None if item is None else encoder.encode([item_text(item)])[0]
    return encoder.encode([behaviour.query])[0] if (behaviour.query or "").strip() else None
