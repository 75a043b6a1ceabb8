"""What belongs together: a query and the item that was clicked for it; an item and the one clicked next."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from model_export.data import Log
from model_export.noise import misspell
from stream.events import Click, Search
from stream.pipeline import QUERY_MEMORY_MS
from stream.recommend.ngrams import normalise

SUCCESSION_MS = 1_800_000  # clicks further apart than that are of two visits


class Asked(NamedTuple):
    """A click and the query that it answers; `time` in ms."""

    time: int
    query: str
    item_id: str


def asked(log: Log) -> list[Asked]:
    """Return the clicks on items of the catalogue that answer a query: their own, or the user's last within half an hour."""
    searched: dict[str, tuple[int, str]] = {}
    found = []
    for event in log.events:
        behaviour = event.behaviour
        if isinstance(behaviour, Search):
            searched[behaviour.user_id] = (event.time, behaviour.query)
            continue
        query = behaviour.query
        if query is None and (last := searched.get(behaviour.user_id)) and event.time - last[0] <= QUERY_MEMORY_MS:
            query = last[1]
        if query and query.strip() and behaviour.item_id in log.items:
            found.append(Asked(event.time, query, behaviour.item_id))
    return found


def succeeded(log: Log) -> list[tuple[str, str]]:
    """Return the pairs of different items that a user clicked one after the other in one visit."""
    last: dict[str, tuple[int, str]] = {}
    pairs = []
    for event in log.events:
        behaviour = event.behaviour
        if isinstance(behaviour, Click) and behaviour.item_id in log.items:
            before = last.get(behaviour.user_id)
            if before and event.time - before[0] <= SUCCESSION_MS and before[1] != behaviour.item_id:
                pairs.append((before[1], behaviour.item_id))
            last[behaviour.user_id] = event.time, behaviour.item_id
    return pairs


class Pair(NamedTuple):
    """An anchor's text, the item that belongs to it, and all that do: none of these may count as a negative."""

    anchor: str
    item_id: str
    positives: frozenset[str]
    is_query: bool


def make_pairs(log: Log, texts: Mapping[str, str], most: int = 5) -> list[Pair]:
    """Return the training pairs of a log.

    A pair that was seen n times comes 1 + log2(n) times, rounded down, and at most `most` times: what is frequent is
    remembered by the worker anyway, the encoder is for what is rare.

    Args:
        log: the past.
        texts: of the items, by id.
        most: the limit.
    """
    queries = Counter((normalise(a.query) or a.query, a.item_id) for a in asked(log))
    spelt = {normalise(a.query) or a.query: a.query for a in asked(log)}
    items = Counter((texts[a], b) for a, b in succeeded(log))
    belonging: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for is_query, counts in ((True, queries), (False, items)):
        for anchor, item in counts:
            belonging[anchor, is_query].add(item)
    pairs = []
    for is_query, counts in ((True, queries), (False, items)):
        for (anchor, item), count in counts.items():
            positives = belonging[anchor, is_query]
            if not is_query:
                positives = positives | {i for i, text in texts.items() if text == anchor}
            pair = Pair(spelt[anchor] if is_query else anchor, item, frozenset(positives), is_query)
            pairs.extend([pair] * min(most, count.bit_length()))
    return pairs


class Example(NamedTuple):
    """A pair as it goes into a batch: the anchor perhaps misspelt, and items near it that do not belong to it."""

    anchor: str
    pair: Pair
    negatives: tuple[str, ...]


class Pairs:
    """Makes examples of pairs, and batches of examples.

    Args:
        pairs: to learn from.
        texts: of the items, by id.
        hard: for each pair the items nearest to it that do not belong to it, nearest first.
        tokenizer: without padding.
        noise: share of the queries that are misspelt.
        negatives: how many of the hard ones an example takes, drawn anew each time.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        texts: Mapping[str, str],
        hard: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        *,
        noise: float,
        negatives: int = 1,
    ) -> None:
        self.pairs, self.texts, self.hard, self.noise, self.negatives = pairs, texts, hard, noise, negatives
        self.tokenizer = tokenizer

    def example(self, number: int, random: Random) -> Example:
        """Return one pair as it is met this time."""
        pair = self.pairs[number]
        anchor = misspell(pair.anchor, random) if pair.is_query and random.random() < self.noise else pair.anchor
        near = self.hard[number]
        return Example(anchor, pair, tuple(random.sample(near, min(self.negatives, len(near)))))

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return a batch of B examples and the M different items in it.

        `anchor_ids` and `anchor_mask` (B, length), `item_ids` and `item_mask` (M, length), `target` (B,): the place of the
        own item, `allowed` (B, M): false where an item belongs to the anchor and is not its target.
        """
        own = [example.pair.item_id for example in examples]
        items = list(dict.fromkeys([*own, *(item for example in examples for item in example.negatives)]))
        place = {item: row for row, item in enumerate(items)}
        allowed = torch.ones(len(examples), len(items), dtype=torch.bool)
        for row, example in enumerate(examples):
            for item in example.pair.positives:
                if item in place and item != example.pair.item_id:
                    allowed[row, place[item]] = False
        anchor_ids, anchor_mask = pad(self.tokenizer, [example.anchor for example in examples])
        item_ids, item_mask = pad(self.tokenizer, [self.texts[item] for item in items])
        return {
            "anchor_ids": anchor_ids,
            "anchor_mask": anchor_mask,
            "item_ids": item_ids,
            "item_mask": item_mask,
            "target": torch.tensor([place[item] for item in own]),
            "allowed": allowed,
        }


def pad(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, int64 (texts, longest)."""
    tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    ids = torch.zeros(len(tokens), max(map(len, tokens)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, known in enumerate(tokens):
        ids[row, : len(known)] = torch.tensor(known)
        mask[row, : len(known)] = 1
    return ids, mask


def hard_negatives(
    pairs: Sequence[Pair], anchors: NDArray[np.float32], items: NDArray[np.float32], ids: Sequence[str], count: int
) -> list[list[str]]:
    """Return for each pair the `count` items nearest to its anchor that do not belong to it, nearest first.

    Args:
        pairs: of length n.
        anchors: unit vectors of their anchors, (n, d).
        items: unit vectors of the catalogue, (m, d).
        ids: of the catalogue, m.
        count: how many.
    """
    found: list[list[str]] = []
    for pair, row in zip(pairs, anchors, strict=True):
        order: Any = np.argsort(-(items @ row), kind="stable")[: count + len(pair.positives)]
        near = [ids[place] for place in order.tolist() if ids[place] not in pair.positives]
        found.append(near[:count])
    return found
