from hypothesis import given
from hypothesis import strategies as st

from stream.encoder.batching import micro_batches

lengths = st.lists(st.integers(2, 40), max_size=200)
budgets = st.integers(1, 300)


@given(lengths, budgets)
def test_every_text_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    assert sorted(position for batch in micro_batches(lengths, budget) for position in batch) == list(range(len(lengths)))


@given(lengths, budgets)
def test_a_batch_holds_one_token_count_so_that_nothing_is_padded(lengths: list[int], budget: int) -> None:
    assert all(len({lengths[position] for position in batch}) == 1 for batch in micro_batches(lengths, budget))


@given(lengths, budgets)
def test_a_batch_keeps_the_budget_unless_one_text_alone_exceeds_it(lengths: list[int], budget: int) -> None:
    for batch in micro_batches(lengths, budget):
        assert len(batch) == 1 or sum(lengths[position] for position in batch) <= budget


@given(lengths, budgets)
def test_no_two_batches_could_have_been_one(lengths: list[int], budget: int) -> None:
    batches = list(micro_batches(lengths, budget))
    for one, next_one in zip(batches, batches[1:], strict=False):
        length = lengths[one[0]]
        assert lengths[next_one[0]] > length or (len(one) + 1) * length > budget
