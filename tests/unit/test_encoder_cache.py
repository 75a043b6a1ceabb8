from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.encoder.cache import EmbeddingCache


def tokens(text: str) -> bytes:
    return text.lower().encode()


def vector(sequence: bytes) -> NDArray[np.float32]:
    return np.array([len(sequence), sum(sequence)], np.float32)


def ask(cache: EmbeddingCache, texts: list[str]) -> list[str]:
    """Look the texts up, put in those that were unknown, and return what had to be computed."""
    out = np.full((len(texts), 2), np.nan, np.float32)
    unknown = cache.get(texts, out)
    if not unknown:
        missing = []
    else:
        sequences = [tokens(texts[position]) for position in unknown]
        cache.spell({texts[position]: tokens(texts[position]) for position in unknown})
        found = np.full((len(sequences), 2), np.nan, np.float32)
        missing = list(dict.fromkeys(sequences[position] for position in cache.find(sequences, found)))
        out[unknown] = found
    for text, row in zip(texts, out, strict=True):
        assert tokens(text) in missing or np.array_equal(row, vector(tokens(text)))
    if missing:
        cache.put(missing, np.stack([vector(sequence) for sequence in missing]))
    return [sequence.decode() for sequence in missing]


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
        assert {text for text in "abcdefgh" if text in cache} == set(expected)
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


@given(st.integers(0, 8), st.lists(st.lists(st.sampled_from("abcdABCDa"), max_size=8), max_size=20))
def test_spellings_of_the_same_tokens_share_a_vector(size: int, calls: list[list[str]]) -> None:
    cache = EmbeddingCache(size, 2)
    computed: list[str] = []
    for texts in calls:
        computed += ask(cache, texts)
        assert len(cache) <= size
        assert sum(text in cache for text in "abcdABCD") <= size
    if size == 8:  # all spellings fit
        assert sorted(computed) == sorted({text.lower() for texts in calls for text in texts})
