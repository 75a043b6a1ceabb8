"""Micro-batches: which texts go through the model together.

A vector must not depend on its neighbours. So a micro-batch holds texts of one token count only: nothing is padded, and
every sum in the model runs over the same terms in the same order whoever else is in the batch. (The graph's half of that
promise is in `model_export`: pooling by a product, int8 with fixed scales.) Nor is any arithmetic spent on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Within 10 % of the fastest from 128 to 512 on a CPU, where several go at once: products run at full speed from a hundred rows on.
TOKEN_BUDGET = 256
# By reckoning, not measured: the smallest product, of 16,384 rows and 384 columns, is 384 tiles of 128 x 128, some three for each
# of the 132 units of an H100; an eighth of that would leave most of them without work. Activations take some 100 MB.
GPU_TOKEN_BUDGET = 16_384


def micro_batches(lengths: Sequence[int], token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Yield lists of positions in `lengths`, shortest first: one token count and at most `token_budget` tokens to a list.

    Each position comes once. A text longer than the budget goes alone.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    for position in order:
        length = lengths[position]
        if batch and (length != lengths[batch[0]] or (len(batch) + 1) * length > token_budget):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
