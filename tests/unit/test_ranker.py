from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events import Item
from stream.recommend.catalogue import Catalogue
from stream.recommend.features import Occasion, mean_profiles
from stream.recommend.memory import DAY, Memory
from stream.recommend.ranker import FEATURES, LEAST_SHARE, MOST_REASONS, Ranker, best_rows, reasons, strongest
from stream.recommend.recommender import Recommender
from stream.settings import Recommend

D = 16
T = 1_700_000_000_000
TITLES = [f"{a} {b} {n}" for n in (1, 2, 3) for a in ("red", "blue", "green", "old") for b in ("fox", "castle", "racer")]


def unit(text: str) -> np.ndarray:
    vector = np.random.default_rng(list(text.encode())).standard_normal(D).astype(np.float32)
    return vector / np.linalg.norm(vector)


def catalogue_of(titles: list[str]) -> Catalogue:
    catalogue = Catalogue(D)
    for number, title in enumerate(titles):
        catalogue.put(Item(item_id=f"i{number}", title=title), unit(title))
    return catalogue


def recommender(titles: list[str] = TITLES, **changes) -> Recommender:
    chosen = Recommend(**changes)
    return Recommender(catalogue_of(titles), Memory(chosen), chosen)


def answer(to: Recommender, occasion: Occasion) -> list[str]:
    [items] = to.process([occasion])
    assert items is not None
    return [item.item_id for item in items]


def search(query: str, time: int = T, **rest) -> Occasion:
    return Occasion(time, query=query, query_vector=unit(query), **rest)


@st.composite
def occasions(draw):
    query = draw(st.sampled_from([None, "", "red fox", "redfox 1", "bleu castle", "castle", "unheard of", "?"]))
    seed = draw(st.integers(0, 3))
    profile = np.random.default_rng(seed).standard_normal(D).astype(np.float32) / 4 if seed else None
    return Occasion(
        time=T + draw(st.integers(0, 40 * DAY)),
        clicked=draw(st.sampled_from([None, None, "i0", "i1", "i2", "i30", "unknown"])),
        query=query,
        query_vector=unit(query) if query else None,
        previous=draw(st.lists(st.sampled_from(["i0", "i1", "i5", "unknown"]), max_size=3)),
        profile=profile,
        learn=draw(st.integers(0, 9)) > 0,
        answer=draw(st.integers(0, 4)) > 0,
    )


streams = st.lists(occasions(), max_size=30)


@settings(deadline=None)
@given(streams, st.sets(st.integers(1, 29)))
def test_where_a_batch_ends_makes_no_difference_to_the_last_bit(events, cuts):
    whole = recommender().process(events)
    ends = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    cut = recommender()
    pieces = [items for begin, end in itertools.pairwise(ends) for items in cut.process(events[begin:end])]
    assert pieces == whole


@settings(deadline=None)
@given(streams, streams)
def test_an_answer_never_knows_what_comes_later(before, after):
    assert recommender().process([*before, *after])[: len(before)] == recommender().process(before)


@settings(deadline=None)
@given(streams, st.sets(st.integers(0, 35), max_size=36))
def test_every_answer_is_full_without_repeats_and_without_items_that_are_gone(events, gone):
    subject = recommender()
    subject.process(events)
    for number in gone:
        subject.catalogue.remove(f"i{number}")
    for event, items in zip(events, subject.process(events), strict=True):
        assert (items is not None) == event.answer
        if items is not None:
            ids = [item.item_id for item in items]
            assert len(set(ids)) == len(ids) == min(10, len(TITLES) - len(gone))
            assert not {f"i{number}" for number in gone} & set(ids)
            scores = [item.score for item in items]
            assert scores == sorted(scores, reverse=True)
            assert all(0.0 <= score <= 1.0 and round(score, 6) == score for score in scores)
            assert all(item.reasons and set(item.reasons) <= {*FEATURES, "catalogue"} for item in items)


@settings(deadline=None)
@given(streams, st.booleans())
def test_probabilities_sum_to_one(events, removed):
    subject = recommender(count=1000)
    if removed:
        subject.catalogue.remove("i0")
    for items in subject.process(events):
        assert items is None or sum(item.score for item in items) == pytest.approx(1.0, abs=1e-4)


def test_a_new_user_without_a_query_gets_what_is_popular():
    subject = recommender()
    subject.process([Occasion(T, clicked="i7", answer=False) for _ in range(5)])
    [items] = subject.process([Occasion(T + 1)])
    assert items is not None
    assert items[0].item_id == "i7"
    assert items[0].reasons == ["popular"]


def test_the_first_query_ever_is_answered_by_the_titles():
    [items] = recommender().process([search("red fox 1")])
    assert items is not None
    assert items[0].item_id == "i0"
    assert set(items[0].reasons) <= {"text", "coverage"}


def test_a_query_without_a_vector_is_answered_by_its_letters():
    assert answer(recommender(), Occasion(T, query="green racer 2"))[0] == f"i{TITLES.index('green racer 2')}"


def test_what_was_clicked_after_a_query_leads_the_next_time():
    subject = recommender()
    subject.process([Occasion(T, clicked="i20", query="gift for dad", query_vector=unit("gift for dad"))] * 3)
    [items] = subject.process([search("Gift for  DAD")])
    assert items is not None
    assert (items[0].item_id, items[0].reasons[0]) == ("i20", "query")


def test_what_was_clicked_after_a_query_helps_one_that_is_misspelt():
    subject = recommender()
    subject.process([Occasion(T, clicked="i20", query="gift for daddy", query_vector=unit("gift for daddy"))] * 3)
    [items] = subject.process([search("gift for dady")])
    assert items is not None
    assert (items[0].item_id, items[0].reasons[0]) == ("i20", "similar-queries")


def test_after_a_click_comes_what_followed_it_and_not_the_same_again():
    subject = recommender()
    for user in range(4):
        subject.process([Occasion(T + user, clicked="i3"), Occasion(T + user, clicked="i30", previous=["i3"])])
    [items] = subject.process([Occasion(T + 10, clicked="i3")])
    assert items is not None
    assert (items[0].item_id, items[0].reasons[0]) == ("i30", "followed-item")
    assert items[1].item_id != "i3"


def test_an_item_that_people_click_again_may_be_shown_again():
    subject = recommender()
    for user in range(6):
        subject.process([Occasion(T + user, clicked="i3"), Occasion(T + user, clicked="i3", previous=["i3"])])
    assert answer(subject, Occasion(T + 10, clicked="i3"))[0] == "i3"


def test_a_profile_decides_between_items_when_nothing_else_does():
    [items] = recommender().process([Occasion(T, profile=unit(TITLES[11]))])
    assert items is not None
    assert (items[0].item_id, items[0].reasons) == ("i11", ["profile"])


def test_a_time_scale_counts_as_much_as_its_share():
    one, other = unit(TITLES[11]), unit(TITLES[20])
    profiles = np.stack([[one, other], [other, one]])  # of two users: short, then long
    for shares, share in (([], 0.5), ([1.0, 0.0], 1.0), ([3.0, 1.0], 0.75)):
        means = mean_profiles(profiles, Recommend(profile_shares=shares))
        np.testing.assert_allclose(means, [share * one + (1 - share) * other, share * other + (1 - share) * one], atol=1e-6)
    for shares in ([1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="profile_shares"):
            mean_profiles(profiles, Recommend(profile_shares=shares))


def test_a_new_item_is_recommended_by_its_text_the_moment_it_arrives():
    subject = recommender()
    assert answer(subject, search("velvet submarine"))
    subject.catalogue.put(Item(item_id="new", title="Velvet Submarine"), unit("velvet submarine"))
    assert answer(subject, search("velvet submarine"))[0] == "new"


def test_an_item_clicked_before_it_was_in_the_catalogue_arrives_with_its_popularity():
    subject = recommender()
    subject.process([Occasion(T, clicked="late")] * 3)
    subject.catalogue.put(Item(item_id="late", title="Late"), unit("late"))
    assert answer(subject, Occasion(T + 1))[0] == "late"


def test_a_duplicate_teaches_nothing():
    subject = recommender()
    subject.process([Occasion(T, clicked="i1", query="red", learn=False)])
    assert len(subject.memory) == 0


def test_popularity_is_right_again_after_a_long_silence():
    subject = recommender(popularity_half_life_days=0.5)
    subject.process([Occasion(T, clicked="i1")] * 50)
    later = T + 3000 * DAY
    subject.process([Occasion(later, clicked="i2")])
    assert answer(subject, Occasion(later))[0] == "i2"
    assert answer(subject, Occasion(T))


def test_what_another_worker_learned_is_used_at_once():
    subject, other = recommender(), recommender()
    other.process([Occasion(T, clicked="i9", query="red")] * 3)
    subject.process([Occasion(T)])
    delta = other.memory.take_delta()
    assert delta is not None
    subject.memory.merge(delta)
    assert subject.process([search("red", T + 1)]) == other.process([search("red", T + 1)])


def test_an_empty_catalogue_has_nothing_to_recommend():
    assert recommender([]).process([search("red"), Occasion(T, answer=False)]) == [[], None]
    assert recommender().process([]) == []


def test_with_a_single_item_that_is_never_repeated_there_is_still_an_answer():
    assert answer(recommender(["red fox"], repeat=0.0), Occasion(T, clicked="i0")) == ["i0"]


def test_of_equally_likely_items_the_earlier_row_comes_first():
    live = np.array([True, False, True, True, True])
    events, rows = best_rows(np.array([[0.2, 0.0, 0.2, 0.4, 0.2], [0.0] * 5, [0.1, 0.0, 0.5, 0.4, 0.3]]), live, 3)
    assert events.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.tolist() == [3, 0, 2, 0, 2, 3, 2, 3, 4]


def test_reasons_are_the_greatest_shares_strongest_first():
    shares = np.array([[0.5, 0, 0, 0.3, 0.05, 0, 0.15], [0, 0, 0, 0, 0, 0, 0], [0.02, 0.98, 0, 0, 0, 0, 0]])
    assert list(map(reasons, strongest(shares.T).tolist())) == [["query", "text", "popular"], ["catalogue"], ["similar-queries"]]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5]), min_size=7, max_size=7), min_size=1, max_size=9))
def test_of_equal_shares_the_earlier_feature_is_the_stronger_reason(rows):
    for shares, code in zip(rows, strongest(np.array(rows).T).tolist(), strict=True):
        strong = sorted((-share, number) for number, share in enumerate(shares) if share >= LEAST_SHARE)[:MOST_REASONS]
        assert reasons(code) == ([FEATURES[number] for _, number in strong] or ["catalogue"])


def test_the_formula_by_hand():
    chosen = Recommend(text_weight=2, popular_prior=1, similar_prior=0.5, query_prior=1, followed_prior=2, repeat=0.1)
    features = np.zeros((len(FEATURES), 2))
    features[0] = [3, 0]  # query
    features[1] = [0, 1]  # similar-queries
    features[2] = [0, 1]  # followed-item
    features[3] = [0.5, 0]  # text
    features[6] = [1, 0]  # popular
    prior = np.array([2 * np.e, 1]) / (2 * np.e + 1)
    similar = (features[1] + 0.5 * prior) / 1.5
    asked = (features[0] + similar) / 4
    again = asked * [0.1, 1]
    expected = [asked, (features[2] + 2 * again / again.sum()) / 3, (features[2] + 2 * asked) / 3]
    live = np.ones(2, np.bool_)
    three = np.repeat(features[:, None], 3, axis=1)
    ranking = Ranker(chosen).rank(three, live, after_click=np.array([False, True, True]), clicked=np.array([-1, 0, -1]))
    np.testing.assert_allclose(ranking.probabilities, expected)
