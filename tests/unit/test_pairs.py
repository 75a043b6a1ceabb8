"""What retrieve learns from: pairs of a log, negatives that are none of theirs, and queries misspelt."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import write_shop

from model_export.contrast import vectors
from model_export.data import Source
from model_export.export import load_base
from model_export.noise import misspell
from model_export.pairs import Pairs, hard_negatives, make_pairs, succeeded
from stream.recommend.catalogue import item_text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


class TestTypingNoise:
    @given(st.text("abcdefghij klmnop", min_size=2, max_size=30), st.integers())
    def test_is_one_or_two_errors(self, text: str, seed: int) -> None:
        wrong = misspell(text, Random(seed))
        assert abs(len(wrong) - len(text)) <= 2
        assert wrong

    def test_alters_most_texts_in_several_ways(self) -> None:
        found = {misspell("coffee grinder", Random(seed)) for seed in range(200)}
        assert len(found) > 50
        assert sum(misspell("hose", Random(seed)) != "hose" for seed in range(200)) > 180

    def test_meets_the_share_of_queries_asked_for_and_no_item(self, shop: Path, tiny_base: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        tokenizer = load_base(str(tiny_base)).tokenizer
        for share in (0.0, 0.5, 1.0):
            made = Pairs(pairs, texts, [[] for _ in pairs], tokenizer, noise=share)
            examples = [made.example(n, Random(n)) for n in range(len(pairs))]
            altered = [e.anchor != e.pair.anchor for e in examples if e.pair.is_query]
            assert np.mean(altered) == pytest.approx(share, abs=0.1)
            assert not any(e.anchor != e.pair.anchor for e in examples if not e.pair.is_query)


class TestPairs:
    def test_join_a_query_with_the_click_that_followed_and_a_click_with_the_next(self, shop: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        assert {pair.is_query for pair in pairs} == {True, False}
        for pair in pairs:
            assert pair.item_id in pair.positives
        for before, after in succeeded(log):
            assert before.split("-")[0] == after.split("-")[0]
            assert before != after

    def test_never_count_what_belongs_to_an_anchor_as_a_negative(self, shop: Path, tiny_base: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        base = load_base(str(tiny_base))
        anchors = vectors(base, [pair.anchor for pair in pairs])
        items, ids = vectors(base, list(texts.values())), list(texts)
        near = hard_negatives(pairs, anchors, items, ids, 4)
        for pair, row, found in zip(pairs, anchors, near, strict=True):
            assert len(found) == 4
            assert not pair.positives & set(found)
            others = [float(items[ids.index(i)] @ row) for i in ids if i not in pair.positives and i not in found]
            assert min(float(items[ids.index(i)] @ row) for i in found) >= max(others)
        made = Pairs(pairs, texts, near, base.tokenizer, noise=0.0)
        examples = [made.example(n, Random(n)) for n in range(24)]
        batch = made.collate(examples)
        listed = list(dict.fromkeys([*(e.pair.item_id for e in examples), *(i for e in examples for i in e.negatives)]))
        assert len(batch["item_ids"]) == len(listed) > len({e.pair.item_id for e in examples})
        for row, example in enumerate(examples):
            assert listed[int(batch["target"][row])] == example.pair.item_id
            refused = {item for item, allowed in zip(listed, batch["allowed"][row].tolist(), strict=True) if not allowed}
            assert refused == (example.pair.positives & set(listed)) - {example.pair.item_id}
