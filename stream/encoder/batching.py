"""Micro-batches: which texts go through the model together.

On a CPU a vector must not depend on its neighbours. So a micro-batch holds texts of one token count only: nothing is padded, and
every sum in the model runs over the same terms in the same order whoever else is in the batch. (The graph's half of that
promise is in `model_export`: pooling by a product, int8 with fixed scales.) Nor is any arithmetic spent on padding.

On a GPU it is launching that takes the time, .6 ms a run, and not arithmetic: token counts are padded to a multiple, so that
there are fewer runs. How much a text is padded depends on itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Within 10 % of the fastest from 128 to 512 on a CPU, where several go at once: products run at full speed from a hundred rows on.
TOKEN_BUDGET = 256
GPU_TOKEN_BUDGET = 16_384  # within 4 % of the fastest from 4,096 to 65,536 on an H200
GPU_MULTIPLE = 8  # the fastest of 1, 4, 8, 12, 16 and 32 with real queries; 1 takes 1.7 times as long, for 256 texts 5 times


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
