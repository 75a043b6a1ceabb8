"""Beyond `exact_items`, candidates are ranked instead of the whole catalogue."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranker import TITLES, D, T, search, streams, unit

from stream.encoder import Encoder
from stream.engine.reader import KafkaRecord
from stream.events import Item, RecommendedItem
from stream.knowledge import Knowledge
from stream.recommend.catalogue import Catalogue
from stream.recommend.features import Occasion
from stream.recommend.memory import Memory
from stream.recommend.ngrams import ngrams, normalise
from stream.recommend.recommender import Recommender
from stream.recommend.titles import Titles
from stream.recommend.vectors import UNIT, LargeVectors, coarse, on_grid
from stream.settings import Recommend, Settings

Answers = list[list[RecommendedItem] | None]


def rounded(text: str) -> np.ndarray:
    """A vector that 16 bits a number can hold: small and large catalogues have the same then."""
    return (np.rint(unit(text) / UNIT) * UNIT).astype(np.float32)


def catalogue_of(titles: list[str], exact_items: int | None) -> Catalogue:
    catalogue = Catalogue(D, exact_items)
    for number, title in enumerate(titles):
        catalogue.put(Item(item_id=f"i{number}", title=title), rounded(title))
    return catalogue


def recommender(titles: list[str], exact_items: int | None) -> Recommender:
    chosen = Recommend()
    return Recommender(catalogue_of(titles, exact_items), Memory(chosen), chosen)


def assert_same(found: Answers, expected: Answers) -> None:
    """Items and their order the same; scores up to the rounding of a sum."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        for one, other in zip(ours or [], theirs or [], strict=True):
            assert one.item_id == other.item_id
            assert one.score == pytest.approx(other.score, abs=2e-6)


@settings(deadline=None)
@given(streams)
def test_when_everything_is_a_candidate_the_answers_are_those_of_the_whole_catalogue(events):
    large = recommender(TITLES, 5)
    assert large.catalogue.large is not None
    found, expected = large.process(events), recommender(TITLES, None).process(events)
    assert_same(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [item.reasons for item in ours or []] == [item.reasons for item in theirs or []]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([*TITLES[:4], None]), st.booleans(), st.integers(0, 3)),
        max_size=40,
    )
)
def test_items_that_come_change_and_go_while_it_runs_are_followed(changes):
    """From a small catalogue to a large one and back, answering now and then: always as if everything were scored."""
    large, small = recommender([], 3), recommender([], None)
    for step, (item_id, title, ask, click) in enumerate(changes):
        for subject in (large, small):
            if title is None:
                subject.catalogue.remove(item_id)
            else:
                subject.catalogue.put(Item(item_id=item_id, title=title), rounded(title))
        if ask:
            events = [
                search("red fox", T + step),
                Occasion(T + step, clicked="abcd"[click], query="red fox", query_vector=unit("red fox")),
                Occasion(T + step),
            ]
            assert_same(large.process(events), small.process(events))
        assert large.catalogue.rows == small.catalogue.rows
        np.testing.assert_allclose(large.catalogue.centre, small.catalogue.centre, atol=1e-7)


MANY = [f"{a} {b} {n}" for n in range(34) for a in ("red", "blue", "green", "old") for b in ("fox", "castle", "racer")]


@settings(deadline=None, max_examples=40)
@given(streams, st.sets(st.integers(1, 29)))
def test_where_a_batch_ends_makes_no_difference_to_the_last_bit(events, cuts):
    whole = recommender(MANY, 100).process(events)
    ends = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    cut = recommender(MANY, 100)
    assert [items for begin, end in itertools.pairwise(ends) for items in cut.process(events[begin:end])] == whole


def clustered(count: int, dimension: int, kinds: int, seed: int, kinds_of: np.ndarray | None = None) -> np.ndarray:
    random = np.random.default_rng(seed)
    around = random.standard_normal((kinds, dimension))
    of_kind = random.integers(0, kinds, count) if kinds_of is None else kinds_of
    vectors = around[of_kind] + 0.7 * random.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_nineteen_of_twenty_nearest_vectors_are_found():
    vectors = clustered(20_000, 64, 200, seed=1)
    index = LargeVectors(64, first=1000)
    for row, vector in enumerate(vectors):
        index.put(row, vector)
    queries = clustered(20_000, 64, 200, seed=1)[:200] + 0.05
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = index.nearest(on_grid(queries), 10)[0]
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert np.mean([len({*one} & {*other}) / 10 for one, other in zip(found.tolist(), best.tolist(), strict=True)]) >= 0.95


def test_nineteen_of_twenty_recommended_items_are_those_of_the_whole_catalogue_scored():
    random, size = np.random.default_rng(2), 6_000
    kinds = np.random.default_rng(3).integers(0, 120, size)
    vectors = clustered(size, D, 120, seed=2, kinds_of=kinds)
    words = ["".join(random.choice(list("bdfgklmnprstaeiou"), 5)) for _ in range(300)]
    titles = [f"{words[kind]} {words[kind + random.integers(1, 3)]} {random.choice(words)}" for kind in kinds.tolist()]
    chosen = Recommend()
    ours, theirs = (Recommender(Catalogue(D, bound), Memory(chosen), chosen) for bound in (500, None))
    for subject in (ours, theirs):
        for number, (title, vector) in enumerate(zip(titles, vectors, strict=True)):
            subject.catalogue.put(Item(item_id=f"i{number}", title=title), vector)
    events, asked = [], {}
    for step in range(400):
        item = int(size * random.random() ** 3)
        vector = vectors[item] + 0.3 * random.standard_normal(D).astype(np.float32)
        vector /= np.linalg.norm(vector)
        query = " ".join(titles[item].split()[: random.integers(1, 4)])
        vector = asked.setdefault(query, vector)
        profile = vectors[int(size * random.random() ** 3)] * np.float32(0.7)
        clicked = f"i{item}" if step % 2 else None
        events.append(Occasion(T + step * 1000, clicked, query, vector, (), profile))
    pairs = list(zip(ours.process(events), theirs.process(events), strict=True))[100:]
    shares = [len({i.item_id for i in one or []} & {i.item_id for i in other or []}) / 10 for one, other in pairs]
    assert np.mean(shares) >= 0.95


def test_a_removed_vector_is_never_found_again_and_a_changed_one_where_it_is_now():
    vectors = clustered(3_000, D, 30, seed=3)
    index = LargeVectors(D, first=500)
    for row, vector in enumerate(vectors):
        index.put(row, vector)
    query = on_grid(vectors[7])[None]
    assert index.nearest(query, 5)[0][0, 0] == 7
    index.remove(7)
    index.put(8, -vectors[8])
    assert 7 not in index.nearest(query, 50)[0]
    assert index.nearest(on_grid(-vectors[8])[None], 1)[0][0, 0] == 8
    index.put(7, vectors[9])
    assert {7, 9} <= set(index.nearest(on_grid(vectors[9])[None], 5)[0][0].tolist())
    live = np.concatenate([vectors[:7], vectors[9:10], -vectors[8:9], vectors[9:]])
    np.testing.assert_allclose(index.centre(), live.mean(axis=0), atol=1e-5)


def test_a_vector_is_kept_to_sixteen_bits():
    index = LargeVectors(D, first=10)
    index.put(0, unit("red fox"))
    assert np.abs(index.vector(0) - unit("red fox")).max() <= UNIT / 2


def test_a_search_finds_the_same_alone_and_among_others():
    index = LargeVectors(D, first=500)
    vectors = clustered(3_000, D, 30, seed=4)
    for row, vector in enumerate(vectors):
        index.put(row, vector)
    queries = on_grid(vectors[:100])
    rows, products = index.nearest(queries, 20)
    for number, query in enumerate(queries):
        alone = index.nearest(query[None], 20)
        np.testing.assert_array_equal(alone[0][0], rows[number])
        np.testing.assert_array_equal(alone[1][0], products[number])
    np.testing.assert_allclose(products[0], index.products(rows[0], queries[:1])[:, 0], atol=0.02)


@given(st.integers(0, 2**32 - 1), st.sampled_from([D, 384, 1024]))
def test_products_of_coarse_vectors_are_exact_in_single_precision(seed, dimension):
    """So that the list a vector belongs to is the same whatever it is computed with."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((9, dimension)) * (random.random(dimension) < random.random() + 0.01)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rounded = coarse(vectors / np.where(lengths > 0, lengths, 1.0) * np.array([2.0] + [1.0] * 8)[:, None])
    exact = rounded[:1].astype(np.float64) @ rounded[1:].T.astype(np.float64)
    np.testing.assert_array_equal(rounded[:1] @ rounded[1:].T, exact)
    np.testing.assert_array_equal((rounded[:1, ::-1] * rounded[1:, ::-1]).cumsum(axis=1)[:, -1], exact[0])


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([*TITLES, "", "戦争と平和"]), st.booleans()), max_size=60))
def test_coverage_is_the_share_of_ngrams_that_a_title_has_after_any_changes(changes):
    titles, expected = Titles(), {}
    for row, title, stays in changes:
        if expected.pop(row, None) is not None:
            titles.remove(row)
        if stays:
            titles.put(row, title)
            expected[row] = title
    if not expected:
        return
    rows = np.array(sorted(expected))
    texts = ["red castle 1", "平和", "zzz", "", *TITLES]
    looked_up = [titles.look_up(text, 100) for text in texts]
    together = titles.coverage(looked_up, np.repeat(np.arange(len(texts)), len(rows)), np.tile(rows, len(texts)))
    for text, found, shared in zip(texts, looked_up, together.reshape(len(texts), -1), strict=True):
        grams = ngrams(normalise(text))
        shares = [len(grams & ngrams(normalise(expected[row]))) / max(1, len(grams)) for row in rows.tolist()]
        np.testing.assert_array_equal(shared, np.array(shares, np.float32))
        assert found.mean_coverage == pytest.approx(np.mean(shares))
        by_share = [row for share, row in sorted(zip(shares, rows.tolist(), strict=True), key=lambda s: (-s[0], s[1])) if share]
        assert set(found.rows.tolist()) == set(by_share)
        assert sorted(titles.look_up(text, 3).rows.tolist()) == sorted(by_share[:3])


def test_titles_that_share_a_rare_word_are_found_among_many_that_share_common_ones():
    titles = Titles()
    for row in range(5_000):
        titles.put(row, "blue running shoe" if row != 3_210 else "blue running shoe zyxwv")
    assert titles.look_up("shoe zyxvw", 10).rows.tolist() == [3_210]
    assert len(titles.look_up("blue running shoe", 10).rows) == 0  # everybody has it: it tells nothing


def test_the_nearest_items_of_a_profile_are_told_of_small_and_large_catalogues_alike():
    large, small = catalogue_of(TITLES, 5), catalogue_of(TITLES, None)
    assert large.nearest(unit("red fox 1"), 7) == small.nearest(unit("red fox 1"), 7)


PROGRAM = """
import hashlib, msgspec
from test_large_catalogue import MANY, T, recommender, search
from stream.recommend.features import Occasion
subject = recommender(MANY, 100)
events = [Occasion(T + i, f"i{i * 7 % 300}", "red fox", search("red fox").query_vector) for i in range(200)]
print(hashlib.sha256(msgspec.json.encode(subject.process(events))).hexdigest())
"""


def test_two_processes_answer_alike_to_the_last_bit():
    def digest(hash_seed: str, threads: str) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONHASHSEED": hash_seed,
            "OMP_NUM_THREADS": threads,
        }
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    first = digest("1", "1")
    assert first
    assert digest("2", "4") == first


def test_catching_up_leaves_the_next_search_nothing_to_do_and_changes_nothing_that_is_found():
    vectors = clustered(3_000, D, 30, seed=4)
    lazy, eager = LargeVectors(D, first=500), LargeVectors(D, first=500)
    for row, vector in enumerate(vectors):
        lazy.put(row, vector)
        eager.put(row, vector)
        if row % 700 == 699:
            eager.remove(row - 5)
            lazy.remove(row - 5)
            eager.catch_up()
    eager.catch_up()
    assert not eager._changed
    queries = on_grid(vectors[::100])
    for ours, theirs in zip(lazy.nearest(queries, 20), eager.nearest(queries, 20), strict=True):
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_what_is_put_into_the_catalogue_is_in_its_index_before_anybody_asks(tiny_model: Path) -> None:
    knowledge = Knowledge(Settings(recommend=Recommend(exact_items=500)), Encoder(tiny_model, device="cpu"))
    knowledge.put_items(
        KafkaRecord("items", 0, n, T, f"i{n}".encode(), json.dumps({"item_id": f"i{n}", "title": f"red fox {n}"}).encode())
        for n in range(600)
    )
    assert knowledge.catalogue.large is not None
    assert not knowledge.catalogue.large.vectors._changed
