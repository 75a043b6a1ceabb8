from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.recommend import queries
from stream.recommend.clicks import Clicks, Evidence
from stream.recommend.memory import DAY, Memory
from stream.recommend.ngrams import normalise
from stream.recommend.queries import KnownQueries
from stream.settings import Recommend

T = 1_700_000_000_000
clicks = st.lists(
    st.tuples(
        st.integers(T, T + 400 * DAY),
        st.sampled_from(["i1", "i2", "i3", "i4"]),
        st.sampled_from([None, "", "halo", "Halo 3", "halo reach", "fable"]),
        st.lists(st.sampled_from(["i1", "i2", "i3"]), max_size=2),
    ),
    max_size=30,
)


def learned(events, **changes) -> Memory:
    memory = Memory(Recommend(**changes))
    for event in events:
        memory.learn(*event)
    return memory


def contents(memory: Memory, time: int) -> dict[str, float]:
    """Everything that a memory answers, under one name each."""
    found = {}
    for item in ("i1", "i2", "i3", "i4"):
        found[f"popular {item}"] = memory.popularity(item, time)
        found |= {f"{item} then {other}": mass for other, mass in memory.by_item(memory.after_items([item], time)).items()}
    for query in ("halo", "halo3", "haloreach", "fable", "halo rech"):
        found |= {f"query {query} {item}": mass for item, mass in memory.by_item(memory.after_query(query, time)).items()}
        found |= {
            f"like {query} {item}": mass for item, mass in memory.by_item(memory.after_similar_queries(query, time)).items()
        }
    return {name: mass for name, mass in found.items() if mass > 1e-12}


def test_a_click_counts_one_and_half_as_much_after_a_half_life():
    memory = Memory(Recommend(popularity_half_life_days=3, query_half_life_days=7, followed_half_life_days=30))
    memory.learn(T, "a", "Halo", ["b"])
    assert memory.popularity("a", T) == pytest.approx(1.0)
    assert memory.popularity("a", T + 3 * DAY) == pytest.approx(0.5)
    assert memory.by_item(memory.after_query("halo", T + 7 * DAY)) == pytest.approx({"a": 0.5})
    assert memory.by_item(memory.after_items(["b"], T + 30 * DAY)) == pytest.approx({"a": 0.5})
    assert memory.popularity("unknown", T) == 0.0
    assert memory.by_item(memory.after_query("unknown", T)) == {}


def test_sums_stay_right_over_many_years():
    memory = Memory(Recommend(popularity_half_life_days=0.5))
    days = range(0, 4000, 100)
    for day in days:
        memory.learn(T + day * DAY, "a")
    end = T + 3950 * DAY
    expected = sum(2.0 ** (-(end - T - day * DAY) / DAY / 0.5) for day in days)
    assert memory.popularity("a", end) == pytest.approx(expected)


def test_an_event_from_long_before_all_others_is_answered_in_bounds():
    memory = learned([(T + 4000 * DAY, "a", "halo", ["b"])])
    assert math.isfinite(memory.popularity("a", T))
    assert memory.by_item(memory.after_query("halo", T))["a"] < 2.0**33


@given(clicks, st.randoms(use_true_random=False))
def test_the_order_in_which_clicks_come_does_not_matter(events, random):
    shuffled = list(events)
    random.shuffle(shuffled)
    end = T + 401 * DAY
    assert contents(learned(shuffled), end) == pytest.approx(contents(learned(events), end), rel=1e-9)


@given(clicks, st.integers(1, 5), st.randoms(use_true_random=False))
def test_workers_that_merge_each_others_deltas_in_any_order_know_what_one_worker_would(events, share, random):
    everything = learned(events)
    parts = [events[i::share] for i in range(share)]
    deltas = [delta for part in parts if (delta := learned(part).take_delta()) is not None]
    random.shuffle(deltas)
    merged = Memory(Recommend())
    for delta in deltas:
        merged.merge(delta)
    end = T + 401 * DAY
    assert contents(merged, end) == pytest.approx(contents(everything, end), rel=1e-9)


@given(clicks, clicks)
def test_two_deltas_merge_to_exactly_the_same_either_way_round(first, second):
    deltas = [delta for events in (first, second) if (delta := learned(events).take_delta()) is not None]
    one, other = Memory(Recommend()), Memory(Recommend())
    for delta in deltas:
        one.merge(delta)
    for delta in reversed(deltas):
        other.merge(delta)
    assert contents(one, T + 401 * DAY).keys() == contents(other, T + 401 * DAY).keys()
    for item in ("i1", "i2", "i3", "i4"):
        assert one.popularity(item, T + 401 * DAY) == other.popularity(item, T + 401 * DAY)


@given(clicks, st.integers(1, 7))
def test_a_memory_stored_now_and_then_comes_back_as_it_was(events, step):
    memory, store = Memory(Recommend()), {}
    for number, event in enumerate(events):
        memory.learn(*event)
        if number % step == 0:
            store |= memory.export_changes()
    store |= memory.export_changes()
    assert memory.export_changes() == {}
    again = Memory(Recommend())
    again.load((key, value) for key, value in store.items() if value is not None)
    assert again.export_changes() == {}
    assert contents(again, T + 401 * DAY) == pytest.approx(contents(memory, T + 401 * DAY), rel=1e-12)


def test_a_delta_holds_only_what_was_learned_here_since_the_last_one():
    memory, other = learned([(T, "a", "halo", [])]), learned([(T, "b")])
    first = memory.take_delta()
    assert first is not None
    assert memory.take_delta() is None
    other.merge(first)
    own = other.take_delta()
    assert own is not None
    memory.merge(own)
    assert memory.take_delta() is None
    assert memory.popularity("a", T) == pytest.approx(1.0)
    assert memory.popularity("b", T) == pytest.approx(1.0)


def test_what_cannot_be_read_is_refused_and_changes_nothing():
    memory = Memory(Recommend())
    delta = learned([(T, "a")], popularity_half_life_days=5).take_delta()
    assert delta is not None
    with pytest.raises(ValueError, match="half-lives"):
        memory.merge(delta)
    with pytest.raises(ValueError, match="not a delta"):
        memory.merge(b"\xc1nonsense")
    with pytest.raises(ValueError, match="not a value"):
        memory.load([(b"pa", b"\xc1nonsense")])
    with pytest.raises(ValueError, match="not a key"):
        memory.load([(b"zz", b"")])
    assert len(memory) == 0


def test_memory_is_bounded_and_keeps_what_has_faded_least():
    memory = Memory(Recommend(memory_keys=100, memory_items_per_key=10))
    store: dict[bytes, bytes | None] = {}
    for number in range(1000):
        memory.learn(T + number * DAY // 10, f"i{number}", f"query {number}", ["always"])
        store |= memory.export_changes()
    assert len(memory) <= 3 * 100
    assert len(memory.by_item(memory.after_items(["always"], T))) <= 20
    now = T + 100 * DAY
    assert memory.popularity("i999", now) > 0.9
    assert memory.popularity("i3", now) == 0.0
    assert memory.by_item(memory.after_query("query999", now))
    assert not memory.by_item(memory.after_query("query3", now))
    assert store[b"pi3"] is None
    assert sum(value is not None for value in store.values()) == len(memory)
    similar = memory.queries.similar("query99").names
    assert similar
    assert all(memory.by_item(memory.after_query(name, now)) for name in similar)
    assert memory.by_item(memory.after_similar_queries("query99", now))


def test_a_query_is_the_same_however_it_is_spaced_and_cased():
    assert normalise("  Xbox   360 ") == normalise("xbox360") == "xbox360"
    assert normalise("CAFÉ") == normalise("cafe\u0301")
    assert normalise("?! ") == ""
    assert len(normalise("x" * 1_000_000)) == 200


def test_a_misspelt_query_finds_the_one_that_was_meant():
    memory = learned([(T, "mw3", "modern warfare 3", []), (T, "gow", "gears of war", []), (T, "fifa", "fifa 12", [])])
    found = memory.by_item(memory.after_similar_queries(normalise("modern warefare3"), T))
    assert max(found, key=lambda item: found[item]) == "mw3"
    assert memory.by_item(memory.after_similar_queries("", T)) == {}


NOTHING = Clicks(0)
names = st.text("abc", min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(names, unique=True, max_size=150), names, st.integers(1, 6), st.sets(st.integers(0, 150)))
def test_neighbours_do_not_depend_on_when_they_were_asked_for(known, query, count, asked):
    often, once = KnownQueries(count, 10.0), KnownQueries(count, 10.0)
    for number, name in enumerate(known):
        if number in asked:
            often.similar(query)
        often.add(name, NOTHING)
        once.add(name, NOTHING)
    assert often.similar(query) == once.similar(query)
    assert len(once.similar(query).names) <= count
    assert query not in once.similar(query).names
    reordered = KnownQueries(count, 10.0)
    for name in sorted(known):
        reordered.add(name, NOTHING)
    assert reordered.similar(query) == once.similar(query)


def test_neighbours_are_the_same_when_what_was_asked_had_to_be_forgotten(monkeypatch):
    names = [f"{a}{b}{c}" for a in "xyz" for b in "abcdefgh" for c in "123456789"]
    remembering = KnownQueries(8, 10.0)
    for name in names:
        remembering.add(name, NOTHING)
    expected = {name: remembering.similar(name) for name in names}
    monkeypatch.setattr(queries, "KEPT", 5)
    forgetful = KnownQueries(8, 10.0)
    for number, name in enumerate(names):
        forgetful.add(name, NOTHING)
        forgetful.similar(name)
        forgetful.similar(names[number // 2])
    assert {name: forgetful.similar(name) for name in names} == expected


@given(clicks, clicks)
def test_giving_items_other_numbers_changes_nothing_that_is_remembered(before, after):
    subject, plain = learned(before, memory_keys=1), learned(before, memory_keys=1)
    for memory in (subject, plain):
        memory.learn(T, "gone")
    for number in range(5):
        subject.learn(T - 400 * DAY, f"forgotten {number}")
        plain.learn(T - 400 * DAY, f"forgotten {number}")
    subject.compact()
    assert subject.generation == 1
    assert len(subject.item_ids) < len(plain.item_ids)
    for event in after:
        subject.learn(*event)
        plain.learn(*event)
    assert contents(subject, T + 401 * DAY) == contents(plain, T + 401 * DAY)
    assert subject.export_changes() == plain.export_changes()


@given(clicks, st.integers(-400, 400))
def test_what_is_laid_out_for_many_events_is_what_each_would_be_told_alone(learned_clicks, days):
    memory, evidence = learned(learned_clicks), Evidence()
    time = T + days * DAY
    told = [
        memory.after_query("halo", time),
        memory.after_similar_queries("halo3", time + DAY),
        memory.after_items(["i1", "i2"], time - DAY),
    ]
    for line, terms in enumerate(told):
        evidence.add(line, terms)
    lines, numbers, masses = evidence.flat()
    for line, terms in enumerate(told):
        found: dict[str, float] = {}
        for number, mass in zip(numbers[lines == line], masses[lines == line], strict=True):
            found[memory.item_ids[number]] = found.get(memory.item_ids[number], 0.0) + mass
        assert found == pytest.approx(memory.by_item(terms), rel=1e-12)
