"""What does an event cost in the pipeline alone, and in which step? A data folder through `Pipeline`, without Kafka.

    python tests/bench/bench_pipeline.py ../shared/data/bestbuy [--limit N] [--batch 1024] [--items N] [--output recs.jsonl]

Prints one JSON line: events/s, and CPU µs an event of each step. Queries are encoded beforehand unless `--encode` asks for it, so
that the numbers are those of the pipeline and not of ONNX Runtime. With --items the catalogue is filled up to so many by titles of
random words from those that are there; encoding a million of them takes minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stream.app import COLLECT_AFTER
from stream.decode import Record
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.replay.source import read_folder
from stream.replay.variant import Variant
from stream.settings import Settings

STEPS = ("window", "embed", "drift", "recommend", "publish")


def timed(owner: Any, name: str, spent: dict[str, float]) -> None:
    """Add the CPU time of the calls of `owner.name` to `spent[name]`."""
    function: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **rest: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **rest)
        finally:
            spent[name] += time.process_time() - began

    setattr(owner, name, call)


def filled(items: Sequence[Record], count: int) -> list[Record]:
    """These items, and so many more that there are `count`."""
    chance = random.Random(7)
    titles = [json.loads(item.value or b"{}").get("title", "").split() for item in items]
    words = [word for title in titles for word in title]
    made = []
    for number in range(count - len(items)):
        title = " ".join(chance.choices(words, k=max(1, len(chance.choice(titles)))))
        key, value = f"made-{number}", {"item_id": f"made-{number}", "title": title}
        made.append(KafkaRecord("items", 0, len(items) + number, 0, key.encode(), json.dumps(value).encode()))
    return [*items, *made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--items", type=int, default=0, help="in the catalogue, at least")
    parser.add_argument("--model", type=Path, help="model folder")
    parser.add_argument("--encode", action="store_true", help="count encoding too")
    parser.add_argument("--output", type=Path, help="write the recommendations, for score.py")
    options = parser.parse_args()

    settings = Settings()
    encoder = Encoder(options.model or settings.model.folder)
    recording = read_folder(options.data, settings.topics, options.limit)
    variant, events = Variant(settings, encoder, filled(recording.items, options.items)), recording.events
    if not options.encode:
        encoder.encode(sorted({query for event in events if (query := event.behaviour.query)}))

    spent = dict.fromkeys(STEPS, 0.0)
    for step in STEPS:
        timed(variant.pipeline, step, spent)
    outputs: list[Output] = []
    gc.freeze()  # the events are all in memory only here
    gc.set_threshold(*COLLECT_AFTER)
    began, began_cpu = time.perf_counter(), time.process_time()
    for at in range(0, len(events), options.batch):
        answers = variant.pipeline.process(Batch(events[at : at + options.batch]), variant.states).outputs
        variant.knowledge.memory.take_delta()
        if options.output is not None:
            outputs += answers
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    if options.output is not None:
        topic = settings.topics.name("recommendations")
        options.output.write_bytes(b"".join(output.value + b"\n" for output in outputs if output.topic == topic and output.value))
    result = {
        "question": "what does an event cost in the pipeline",
        "events": len(events),
        "batch": options.batch,
        "items": len(variant.knowledge.catalogue),
        "events_per_second": round(len(events) / seconds),
        "cpu_us_per_event": round(cpu / len(events) * 1e6, 1),
        "cpu_us_per_step": {step: round(spent[step] / len(events) * 1e6, 1) for step in STEPS},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
