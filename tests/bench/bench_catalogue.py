"""How does the cost of an event grow with the catalogue, and how near do the answers come to scoring every item?

    python tests/bench/bench_catalogue.py [--items 1000 10000 100000 1000000] [--rounds 5] [--probes 200]

A line for each size but the first: `theirs` is the cost with so many items as --items names first, `ours` that with more, so that a
ratio of 0.67 is a growth of 1.5. What each size took, step by step, goes to standard error.

The shop is invented, since no model encodes a million titles in minutes: items of a kind share words of their titles and lie around
one vector, kinds around that of a department. Searches are for some words of an item, misspelt now and then, at a vector near to it;
the click that follows is on it or on its like; some items are sought much more than others. The pipeline is the worker's, with vectors
given instead of computed: CPU µs an event, medians of rounds in which the sizes take turns. Recall is the share of the ten items that
the same ranker puts first when it scores the whole catalogue.
"""

from __future__ import annotations

import stream  # noqa: F401 (before numpy: it sets the number of BLAS threads)

# isort: split
import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
from bench_pipeline import STEPS, timed
from side_by_side import GROWTH, parser, report

from stream.decode import Event, decode_click, decode_search
from stream.encoder import Encoder
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.events import Item, RecommendedItem
from stream.pipeline import Pipeline, Turn, occasion
from stream.recommend import features
from stream.recommend.catalogue import Catalogue
from stream.recommend.features import Occasion
from stream.recommend.memory import Memory
from stream.recommend.recommender import Recommender
from stream.replay.variant import MemoryStates
from stream.settings import Settings

DIMENSION = 384
OF_A_KIND = 100  # items
CHUNK = 10_000
USERS = 2_000
BATCH = 1024
START = 1_756_684_800_000
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]


class Shop:
    """An invented shop of so many items, the same each time."""

    def __init__(self, size: int) -> None:
        self.size = size
        random = np.random.default_rng(size)
        kinds = max(10, size // OF_A_KIND)
        departments = directions(random, max(5, kinds // 50))
        self.department = random.integers(0, len(departments), kinds)
        common = directions(random, 1)
        self.kinds = unit(0.5 * common + departments[self.department] + directions(random, kinds)).astype(np.float32)
        self.kind = random.integers(0, kinds, size)
        letters = Random(size)
        self.words = [[word(letters) for _ in range(3)] for _ in range(kinds)]
        self.brands = [word(letters) for _ in range(50 + kinds // 5)]
        self.titles = [self._title(letters, kind) for kind in self.kind.tolist()]

    def _title(self, random: Random, kind: int) -> str:
        words = self.words[kind]
        brand = self.brands[int(len(self.brands) * random.random() ** 2)]
        return f"{brand} {words[0]} {random.choice(words[1:])} {word(random)} {random.randrange(1, 1000)}"

    def vectors(self, first: int) -> np.ndarray:
        """Those of the items from `first` on, `CHUNK` of them."""
        random = np.random.default_rng([self.size, first])
        kinds = self.kind[first : first + CHUNK]
        return unit(self.kinds[kinds] + 0.7 * directions(random, len(kinds))).astype(np.float32)

    def catalogue(self, exact_items: int | None) -> Catalogue:
        catalogue = Catalogue(DIMENSION, exact_items)
        for first in range(0, self.size, CHUNK):
            for number, vector in enumerate(self.vectors(first), start=first):
                catalogue.put(Item(item_id=f"i{number}", title=self.titles[number]), vector)
        return catalogue

    def behaviour(self, count: int, catalogue: Catalogue) -> tuple[list[Event], dict[str, np.ndarray]]:
        """Events, and the vectors of what is searched for."""
        random = np.random.default_rng([self.size, 1])
        sought = random.permutation(self.size)[: max(1000, self.size // 10)]
        of_kind: dict[int, list[int]] = {}
        for number in sought.tolist():
            of_kind.setdefault(int(self.kind[number]), []).append(number)
        events: list[Event] = []
        queries: dict[str, np.ndarray] = {}
        while len(events) < count:
            item = int(sought[int(len(sought) * random.random() ** 3)])
            user, now = f"u{random.integers(0, USERS)}", START + 20_000 * len(events)
            words = self.titles[item].split()
            query = " ".join([word for word in words if random.random() < 0.6] or words[:2])
            if random.random() < 0.2 and len(query) > 4:
                at = int(random.integers(1, len(query) - 1))
                query = query[:at] + query[at + 1 :]
            if query not in queries:
                vector = catalogue.vector(f"i{item}")
                assert vector is not None
                queries[query] = unit(vector + 0.8 * directions(random, 1)[0]).astype(np.float32)
            events.append(event("searches", len(events), user, now, {"query": query}))
            if random.random() < 0.7:
                alike = of_kind[int(self.kind[item])]
                clicked = item if random.random() < 0.7 else alike[int(random.integers(0, len(alike)))]
                events.append(event("clicks", len(events), user, now + 5_000, {"item_id": f"i{clicked}"}))
        return events[:count], queries


def event(topic: str, number: int, user: str, time_ms: int, what: dict[str, str]) -> Event:
    body = {"event_id": f"e{number}", "user_id": user, "timestamp": time_ms, **what}
    decode = decode_search if topic == "searches" else decode_click
    found = decode(KafkaRecord(topic, 0, number, time_ms, user.encode(), msgspec.json.encode(body)))
    assert isinstance(found, Event), found
    return found


class Given:
    """In the place of the encoder: vectors that are known beforehand."""

    version, dimension, manifest = "given", DIMENSION, SimpleNamespace(drift=None)

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts]) if texts else np.zeros((0, DIMENSION), np.float32)


class Trial:
    """A shop of one size, its pipeline and its events."""

    def __init__(self, size: int, options: argparse.Namespace) -> None:
        self.settings = Settings()
        self.shop = Shop(size)
        before, began = resident(), time.process_time()
        self.catalogue = self.shop.catalogue(self.settings.recommend.exact_items)
        self.catalogue.nearest(self.shop.vectors(0)[0], 1)  # the index is filled by the first who searches
        self.load_seconds, self.megabytes = time.process_time() - began, resident() - before
        events, queries = self.shop.behaviour(options.warm + options.rounds * options.events, self.catalogue)
        self.recommend = self.settings.recommend
        self.memory = Memory(self.recommend)
        self.pipeline = Pipeline(
            self.settings, cast(Encoder, Given(queries)), Recommender(self.catalogue, self.memory, self.recommend)
        )
        self.states = MemoryStates()
        self.spent: dict[str, float] = defaultdict(float)
        self.turns: list[Turn] = []
        self.run(events[: options.warm])
        self.events = events[options.warm :]
        for step in STEPS:
            timed(self.pipeline, step, self.spent)
        self.costs: list[dict[str, float]] = []
        self.known: dict[bytes, bytes | None] = {}

    def run(self, events: Sequence[Event]) -> None:
        for at in range(0, len(events), BATCH):
            self.pipeline.process(Batch(list(events[at : at + BATCH])), self.states)

    def round(self, number: int, count: int) -> None:
        """Answer the next events and note what that cost."""
        self.spent.clear()
        began = time.process_time()
        self.run(self.events[number * count : (number + 1) * count])
        self.spent["all"] = time.process_time() - began
        self.costs.append({step: seconds / count * 1e6 for step, seconds in self.spent.items()})

    def cost(self, step: str) -> list[float]:
        """CPU us an event, round by round."""
        return [round_[step] for round_ in self.costs]

    def result(self, probes: int) -> dict[str, Any]:
        return {
            "items": len(self.catalogue),
            "indexed": self.catalogue.large is not None,
            "cpu_us_per_event": {step: round(statistics.median(self.cost(step)), 1) for step in ("all", *STEPS)},
            "spread": [round(min(self.cost("all")), 1), round(max(self.cost("all")), 1)],
            "recall_at_10": round(self.recall(probes), 4),
            "load_cpu_seconds": round(self.load_seconds, 1),
            "resident_mb": round(self.megabytes),
        }

    def recall(self, probes: int) -> float:
        """Compare the answers to the last events, all with what is known in the end, to those of the whole catalogue scored."""
        if self.catalogue.large is None:
            return 1.0
        occasions = self.probed(probes)
        features.LEAST_KEPT = 1  # else the exact recommender keeps a thousand rows of the catalogue's length
        exact = Recommender(self.shop.catalogue(None), self.copied(), self.recommend)
        ours = Recommender(self.catalogue, self.copied(), self.recommend).process(occasions)
        theirs = [exact.process([occasion])[0] for occasion in occasions]
        shares = [
            len({item.item_id for item in found or []} & {item.item_id for item in best or []}) / len(best or [])
            for found, best in zip(ours, theirs, strict=True)
        ]
        return statistics.mean(shares)

    def probed(self, count: int) -> list[Occasion]:
        """What the last events ask for."""
        found: list[Occasion] = []
        pipeline, given = self.pipeline, self.pipeline.recommend

        def watch(turns: Sequence[Turn]) -> list[list[RecommendedItem] | None]:
            found.extend(occasion(turn)._replace(learn=False) for turn in turns)
            return given(turns)

        pipeline.recommend = watch  # type: ignore[method-assign]
        self.run(self.events[-count:])
        return found

    def copied(self) -> Memory:
        """The memory as it is now, for another recommender."""
        self.known = self.known or self.memory.export_changes()
        memory = Memory(self.recommend)
        memory.load((key, value) for key, value in self.known.items() if value is not None)
        return memory


def resident() -> float:
    """Megabytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def directions(random: np.random.Generator, count: int) -> np.ndarray:
    return unit(random.standard_normal((count, DIMENSION), np.float32))


def unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


def word(random: Random) -> str:
    return "".join(random.choices(SYLLABLES, k=random.choice((2, 3))))


def main() -> None:
    wanted = parser(__doc__)
    wanted.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    wanted.add_argument("--events", type=int, default=4_000, help="in a round")
    wanted.add_argument("--warm", type=int, default=8_000, help="events before the first round")
    wanted.add_argument("--probes", type=int, default=200, help="events whose answers are compared with exact ones")
    options = wanted.parse_args()
    trials = [Trial(size, options) for size in options.items]
    gc.freeze()
    for number in range(options.rounds):
        for trial in trials:
            trial.round(number, options.events)
    few, *more = trials
    print(json.dumps(few.result(options.probes)), file=sys.stderr, flush=True)
    for many in more:
        result = many.result(options.probes)
        print(json.dumps(result), file=sys.stderr, flush=True)
        report(
            f"cost of an event with {many.shop.size:,} items, against {few.shop.size:,} items",
            many.cost("all"),
            few.cost("all"),
            "CPU us/event",
            GROWTH,
            more_is_better=False,
            **{name: result[name] for name in ("recall_at_10", "load_cpu_seconds", "resident_mb")},
        )


if __name__ == "__main__":
    main()
