from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Item
from stream.recommend.catalogue import LONGEST_TEXT, Catalogue, item_text

D = 8


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(D).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_the_text_of_an_item_begins_with_its_title_and_names_its_attributes():
    item = Item(
        item_id="1",
        title="Toy Story",
        category="Films",
        text="Toys come alive.",
        attributes={"genres": ["Comedy", "Films"], "year": 1995, "new": False, "cast": {"lead": "Hanks"}, "gone": None},
    )
    assert item_text(item) == "Toy Story. Films. Toys come alive.. Comedy. 1995. Hanks"


def test_an_item_without_a_title_is_known_by_what_else_it_has():
    assert item_text(Item(item_id="7", title=" ", category="games")) == "games"
    assert item_text(Item(item_id="7", title="")) == "7"


def test_the_text_of_an_item_is_bounded():
    item = Item(item_id="1", title="t" * 10_000, text="x" * 100_000, attributes={"a": ["y" * 10_000] * 10})
    assert len(item_text(item)) == LONGEST_TEXT


def test_an_item_can_be_found_until_it_is_removed():
    catalogue = Catalogue(D)
    catalogue.put(Item(item_id="a", title="Halo"), unit(1))
    catalogue.put(Item(item_id="b", title="Fable"), unit(2))
    assert len(catalogue) == 2
    assert "a" in catalogue
    assert catalogue.title("a") == "Halo"
    np.testing.assert_array_equal(catalogue.vector("a"), unit(1))
    assert catalogue.remove("a")
    assert not catalogue.remove("a")
    assert "a" not in catalogue
    assert catalogue.vector("a") is None
    assert catalogue.title("a") is None
    assert len(catalogue) == 1
    assert catalogue.live.tolist() == [False, True]
    assert catalogue.similarities(unit(1))[0] == 0.0
    assert catalogue.coverage("halo")[0] == 0.0


def test_a_changed_item_is_found_by_its_new_title_only():
    catalogue = Catalogue(D)
    catalogue.put(Item(item_id="a", title="Halo"), unit(1))
    version = catalogue.version
    catalogue.put(Item(item_id="a", title="Fable"), unit(2))
    assert len(catalogue) == 1
    assert catalogue.version != version
    assert catalogue.coverage("fable")[0] == 1.0
    assert catalogue.coverage("halo")[0] < 0.2
    np.testing.assert_allclose(catalogue.similarities(unit(2))[0], 1.0, atol=1e-6)


def test_similarities_are_cosines_to_every_item_however_many_there_are():
    catalogue = Catalogue(D)
    for i in range(700):
        catalogue.put(Item(item_id=str(i), title=f"title {i}"), unit(i))
    similarities = catalogue.similarities(unit(5000))
    assert similarities.shape == (700,)
    np.testing.assert_allclose(similarities, np.stack([unit(i) for i in range(700)]) @ unit(5000), atol=1e-6)


def test_similarities_do_not_change_in_the_last_bit_as_the_catalogue_grows():
    catalogue, before = Catalogue(D), []
    for i in range(1100):
        catalogue.put(Item(item_id=str(i), title=f"title {i}"), unit(i))
        if i % 217 == 0:
            before.append(catalogue.similarities(unit(5000)))
    for similarities in before:
        np.testing.assert_array_equal(similarities, catalogue.similarities(unit(5000))[: len(similarities)])


def test_a_misspelt_title_is_covered_better_than_any_other():
    catalogue = Catalogue(D)
    for i, title in enumerate(["Call of Duty: Modern Warfare 3", "Gears of War 3", "Medal of Honor", ""]):
        catalogue.put(Item(item_id=str(i), title=title), unit(i))
    assert int(np.argmax(catalogue.coverage("modren warfar3"))) == 0
    assert not catalogue.coverage("  !? ").any()


def test_a_vector_that_does_not_fit_is_refused():
    catalogue = Catalogue(D)
    with pytest.raises(ValueError, match="shape"):
        catalogue.put(Item(item_id="a", title="Halo"), np.ones(D + 1, np.float32))
    with pytest.raises(ValueError, match="finite"):
        catalogue.put(Item(item_id="a", title="Halo"), np.full(D, np.nan, np.float32))
    assert len(catalogue) == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 9)), max_size=40))
def test_after_any_changes_the_catalogue_is_as_if_only_the_last_of_each_item_had_come(changes):
    catalogue, expected = Catalogue(D), {}
    for item_id, stays, seed in changes:
        if stays:
            catalogue.put(Item(item_id=item_id, title=f"t{seed}"), unit(seed))
            expected[item_id] = seed
        else:
            assert catalogue.remove(item_id) == (expected.pop(item_id, None) is not None)
    assert set(catalogue.rows) == set(expected)
    assert int(catalogue.live.sum()) == len(expected)
    for item_id, seed in expected.items():
        assert catalogue.ids[catalogue.rows[item_id]] == item_id
        assert catalogue.title(item_id) == f"t{seed}"
        np.testing.assert_array_equal(catalogue.vector(item_id), unit(seed))
