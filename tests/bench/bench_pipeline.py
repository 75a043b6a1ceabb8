"""What does an event cost in the pipeline alone, and in which step? A data folder through `Pipeline`, without Kafka.

    python tests/bench/bench_pipeline.py ../shared/data/bestbuy [--limit N] [--batch 1024] [--output recs.jsonl]

Prints one JSON line: events/s, and CPU µs an event of each step. Encoding is done beforehand unless `--encode` asks for it, so
that the numbers are those of the pipeline and not of ONNX Runtime.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream.decode import Event, Reject, decode_click, decode_item, decode_search
from stream.encoder import Encoder
from stream.engine.intake import Batch
from stream.events import Item
from stream.lines import DataFolder, read_lines
from stream.pipeline import Pipeline
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.ranker import learned
from stream.recommend.recommender import Recommender
from stream.settings import Settings
from stream.state import UserState


class Line(NamedTuple):
    """A line of a file as a record of a topic."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes


class States:
    """Users' states in a dict."""

    def __init__(self) -> None:
        self.users: dict[str, UserState] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        return self.users.get(user_id)

    def keep(self, partition: int, states: dict[str, UserState]) -> None:
        self.users.update(states)


def records(path: Path, topic: str, key: str) -> Iterator[Line]:
    for offset, value in enumerate(read_lines(path)):
        yield Line(topic, 0, offset, 0, json.loads(value)[key].encode(), value)


def in_order(folder: DataFolder) -> list[Event | Reject]:
    """All events by event time; of one instant, searches first."""
    found: list[Event | Reject] = [decode_click(line) for line in records(folder.clicks, "clicks", "user_id")]
    if folder.searches is not None:
        found += [decode_search(line) for line in records(folder.searches, "searches", "user_id")]
    events = [entry for entry in found if isinstance(entry, Event)]
    return sorted(events, key=lambda event: (event.time, event.record.topic == "clicks", event.record.offset))


def timed(owner: Any, name: str, spent: Counter[str], label: str) -> None:
    """Add the CPU time of calls of `owner.name` to `spent[label]`."""
    function: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **rest: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **rest)
        finally:
            spent[label] += time.process_time() - began

    setattr(owner, name, call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=sys.maxsize)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--model", type=Path, help="model folder")
    parser.add_argument("--encode", action="store_true", help="count encoding too")
    parser.add_argument("--output", type=Path, help="write the recommendations, for score.py")
    options = parser.parse_args()

    settings = Settings()
    encoder = Encoder(options.model or settings.model.folder)
    folder = DataFolder.find(options.data)
    catalogue = Catalogue(encoder.dimension)
    items = [item for item in map(decode_item, records(folder.items, "items", "item_id")) if isinstance(item, Item)]
    for item, vector in zip(items, encoder.encode([item_text(item) for item in items]), strict=True):
        catalogue.put(item, vector)
    weights = learned(settings.recommend, encoder.manifest.rank)
    pipeline = Pipeline(settings, encoder, Recommender(catalogue, Memory(weights), weights))
    events = in_order(folder)[: options.limit]
    if not options.encode:
        encoder.encode(sorted({query for event in events if (query := event.behaviour.query)}))

    spent: Counter[str] = Counter()
    for step in ("window", "embed", "drift", "recommend", "publish"):
        timed(pipeline, step, spent, step)
    states, outputs = States(), []
    gc.freeze()  # the events are all in memory only here
    began, began_cpu = time.perf_counter(), time.process_time()
    for at in range(0, len(events), options.batch):
        work = pipeline.process(Batch(list(events[at : at + options.batch])), states)
        if options.output is not None:
            outputs += work.outputs
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    if options.output is not None:
        answers = [output.value for output in outputs if output.topic == settings.topics.name("recommendations")]
        options.output.write_bytes(b"\n".join(answers) + b"\n")
    result = {
        "question": "what does an event cost in the pipeline",
        "events": len(events),
        "batch": options.batch,
        "items": len(catalogue),
        "events_per_second": round(len(events) / seconds),
        "cpu_us_per_event": round(cpu / len(events) * 1e6, 1),
        "cpu_us_per_step": {step: round(value / len(events) * 1e6, 1) for step, value in spent.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
