"""The committed schemas are those of the code, and what we publish fits them."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from stream.events import DriftLevel, Recommendation, RecommendedItem, Search, Trigger
from stream.schemas import TYPES, schema

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("topic", TYPES)
def test_the_committed_schema_is_that_of_the_type(topic: str) -> None:
    assert (FOLDER / f"{topic}.json").read_bytes() == schema(topic), "run `python -m stream.schemas docs/schemas`"


def test_a_recommendation_fits_its_schema_and_a_broken_one_does_not() -> None:
    recommendation = Recommendation(
        recommendation_id="r",
        user_id="u",
        timestamp=1,
        trigger=Trigger(topic="clicks", partition=0, offset=3, event_id="e"),
        items=[RecommendedItem(item_id="i", score=0.5, reasons=["query"])],
        drift=DriftLevel(score=0.1, state="stable"),
        model="m",
    )
    value = json.loads(msgspec.json.encode(recommendation))
    document = json.loads(schema("recommendations"))
    jsonschema.validate(value, document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, "drift": {"score": 2, "state": "stable"}}, document)


def test_a_search_fits_its_schema() -> None:
    search = Search(event_id="e", user_id="u", query="tent", timestamp=1_700_000_000_000)
    jsonschema.validate(json.loads(msgspec.json.encode(search)), json.loads(schema("searches")))
