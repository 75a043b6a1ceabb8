"""JSON Schema files of the wire types: what consumers and producers code against. `python -m stream.schemas FOLDER` writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from stream.events import Click, DriftChange, Item, Recommendation, Search

TYPES: dict[str, type[msgspec.Struct]] = {
    "searches": Search,
    "clicks": Click,
    "items": Item,
    "recommendations": Recommendation,
    "drift": DriftChange,
}


def schema(topic: str) -> bytes:
    """Return the JSON Schema (2020-12) of a topic's values."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(TYPES[topic])}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write(folder: Path) -> None:
    """Write one file a topic."""
    folder.mkdir(parents=True, exist_ok=True)
    for topic in TYPES:
        (folder / f"{topic}.json").write_bytes(schema(topic))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
