from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.encoder.cache import EmbeddingCache


def vector(text: str) -> NDArray[np.float32]:
    return np.array([len(text), sum(map(ord, text))], np.float32)


def ask(cache: EmbeddingCache, texts: list[str]) -> list[str]:
    """Look the texts up, put in those that were unknown, and return these."""
    out = np.full((len(texts), 2), np.nan, np.float32)
    missing = list(dict.fromkeys(texts[position] for position in cache.get(texts, out)))
    for text, row in zip(texts, out, strict=True):
        assert text in missing or np.array_equal(row, vector(text))
    if missing:
        cache.put(missing, np.stack([vector(text) for text in missing]))
    return missing


@given(st.integers(0, 5), st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), max_size=20))
def test_it_keeps_the_texts_used_last_and_their_own_vectors(size: int, calls: list[list[str]]) -> None:
    cache = EmbeddingCache(size, 2)
    expected: OrderedDict[str, None] = OrderedDict()
    for texts in calls:
        known = [text for text in texts if text in expected]
        missing = ask(cache, texts)
        assert set(missing) == set(texts) - set(known)
        for text in [*known, *missing]:
            expected[text] = None
            expected.move_to_end(text)
        while len(expected) > size:
            expected.popitem(last=False)
        assert len(cache) == len(expected)
    assert ask(cache, list(expected)) == []


def test_a_text_that_is_used_again_outlives_one_that_is_not() -> None:
    cache = EmbeddingCache(2, 2)
    ask(cache, ["old"])
    ask(cache, ["idle"])
    ask(cache, ["old"])
    ask(cache, ["new"])
    assert ask(cache, ["old", "new"]) == []
    assert ask(cache, ["idle"]) == ["idle"]


def test_more_texts_than_fit_are_no_trouble() -> None:
    cache = EmbeddingCache(3, 2)
    assert len(ask(cache, [f"text {n}" for n in range(10)])) == 10
    assert ask(cache, ["text 7", "text 8", "text 9"]) == []
