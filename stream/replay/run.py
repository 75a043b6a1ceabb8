"""The replay from end to end: read, answer, judge, compare, write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import Progress

from stream.decode import Entry, Erasure, Reject
from stream.encoder import Encoder
from stream.replay.agreement import Agreement
from stream.replay.analysis import assess, compare, verdict
from stream.replay.clicks import Clicks, read_clicks
from stream.replay.exposure import exposure
from stream.replay.freshness import DAY_MS, HOUR_MS
from stream.replay.ledger import Ledger
from stream.replay.measures import PRIMARY, slices
from stream.replay.one_pass import batch_size, replay
from stream.replay.source import Recording
from stream.replay.variant import Variant
from stream.settings import Profile, Settings, effective

WRITTEN_AT_ONCE = 1 << 20  # bytes: in pieces of 8 KB, writing took twice as long
SLICE_SECONDS = 0.1  # of real time: events of one such slice make a batch when replayed at N times event time
GROUPS = ("window", "profile", "drift", "recommend", "model")  # the settings that answers depend on; a report is passed around
FRESHNESS = {"profile hourly": HOUR_MS, "profile daily": DAY_MS}


@dataclass(frozen=True)
class Options:
    """What to do beside answering.

    Attributes:
        output: file for the recommendations, as the worker would publish them.
        speed: N times event time; as fast as possible if None.
        skip: clicks that are warm-up.
        start: event time, ms, before which clicks are warm-up.
        ablate: also replay with stale profiles, and with the shortest or the longest time scale only.
        seed: of the bootstrap and of the A/B split.
    """

    output: Path | None = None
    speed: float | None = None
    skip: int = 2000
    start: int = 0
    ablate: bool = False
    seed: int = 0


@dataclass
class Replayed:
    """What came of it: `findings` are plain values for JSON and the report, the rest is what they were computed from."""

    findings: dict[str, Any]
    clicks: Clicks
    ledgers: dict[str, Ledger]
    variants: dict[str, Variant]


def run(
    recording: Recording,
    named: Mapping[str, Settings],
    encoders: Encoders,
    options: Options,
    agreement: Agreement | None = None,
    *,
    quiet: bool,
) -> Replayed:
    """Let each of the named settings answer the recording, and compare all with the first.

    Args:
        recording: what happened.
        named: variants; the first is the base.
        encoders: of all of these settings.
        options: how to replay and judge.
        agreement: what a worker published, to be compared with what the base says.
        quiet: show no progress.

    Raises:
        NothingToJudgeError: all clicks are warm-up.
        ModelFolderError, DeviceError: a model cannot be loaded.
        OSError: the output cannot be written.
    """
    with ThreadPoolExecutor(1) as beside:  # meanwhile ONNX Runtime encodes the catalogue
        reading = beside.submit(read_clicks, recording.entries, recording.items, skip=options.skip, start=options.start)
        variants = _variants(recording, named, encoders, options.ablate)
        clicks = reading.result()
    base = next(iter(named))
    ledgers = {name: Ledger(clicks, v.knowledge.catalogue, v.settings.recommend.count) for name, v in variants.items()}
    counts = {name: Counter[str]() for name in variants}
    with ExitStack() as stack:
        files = _open(stack, options.output, list(named))
        progress = stack.enter_context(Progress(disable=quiet, transient=True))
        task = progress.add_task("replay", total=len(recording.entries))
        pace = _batches(recording.entries, variants[base], options.speed)
        for answered, published in replay(list(variants.values()), recording.entries, pace):
            if agreement is not None:
                agreement.take(published[0].outputs)
            for (name, ledger), (outputs, events, levels, chosen) in zip(ledgers.items(), published, strict=True):
                ledger.take(events, levels, chosen)
                counts[name].update(output.topic for output in outputs)
                if name in files:
                    topic = variants[name].settings.topics.name("recommendations")
                    files[name].writelines(output.value + b"\n" for output in outputs if output.topic == topic and output.value)
            progress.update(task, completed=answered)
    for ledger in ledgers.values():
        ledger.close()
    findings = _findings(recording, clicks, variants, ledgers, counts, named, options)
    if agreement is not None:
        findings["agreement"] = agreement.findings()
    return Replayed(findings, clicks, ledgers, variants)


class Encoders:
    """The models of some settings, each loaded once, by a thread: meanwhile the recording can be read."""

    def __init__(self, settings: Iterable[Settings]) -> None:
        self._encoders: dict[str, Future[Encoder]] = {}
        pool = ThreadPoolExecutor(1, "load-model")
        for model in (each.model for each in settings):
            if (identity := model.model_dump_json()) not in self._encoders:
                options = model.model_dump(include={"device", "variant", "threads", "cache_size"})
                self._encoders[identity] = pool.submit(Encoder, model.folder, **options)
        pool.shutdown(wait=False)

    def __getitem__(self, settings: Settings) -> Encoder:
        """Return the one of these settings when it is there."""
        return self._encoders[settings.model.model_dump_json()].result()


def _variants(recording: Recording, named: Mapping[str, Settings], encoders: Encoders, ablate: bool) -> dict[str, Variant]:
    variants = {name: Variant(settings, encoders[settings], recording.items) for name, settings in named.items()}
    if ablate:
        settings = next(iter(named.values()))
        scales = settings.profile.half_lives_days
        only = {"short-term only": scales[:1], "long-term only": scales[-1:]}
        for name, half_lives in only.items():
            # Not model_copy: it would copy half_lives_ms too, where that has been computed already.
            profile = Profile(**settings.profile.model_dump() | {"half_lives_days": half_lives})
            changed = settings.model_copy(update={"profile": profile})
            variants[name] = Variant(changed, encoders[settings], recording.items)
        for name, period in FRESHNESS.items():
            variants[name] = Variant(settings, encoders[settings], recording.items, period)
    return variants


def _open(stack: ExitStack, output: Path | None, names: Sequence[str]) -> dict[str, BinaryIO]:
    """Open the variants' output files: the one that was named, or with several variants one with each name put in."""
    if output is None:
        return {}
    paths = {name: output if len(names) == 1 else output.with_name(f"{output.stem}.{name}{output.suffix}") for name in names}
    return {name: stack.enter_context(path.open("wb", WRITTEN_AT_ONCE)) for name, path in paths.items()}


def _batches(entries: Sequence[Entry], variant: Variant, speed: float | None) -> Iterator[slice] | None:
    """Cut at N times event time: what falls into one slice of real time is a batch, handed out when its last event is due.

    Where the cuts are depends on the events only, so that the outputs are the same in every run.
    """
    if speed is None:
        return None
    return _paced(entries, batch_size(variant), speed)


def _paced(entries: Sequence[Entry], size: int, speed: float) -> Iterator[slice]:
    begun, first = time.monotonic(), next((entry.time for entry in entries if not isinstance(entry, Reject)), 0)
    start, newest = 0, 0.0  # of the batch: its first entry, and when its last event is due

    def wait() -> None:
        time.sleep(max(0.0, begun + newest - time.monotonic()))

    for place, entry in enumerate(entries):
        if isinstance(entry, Reject):
            continue
        due = (entry.time - first) / 1000 / speed
        if place > start and (due // SLICE_SECONDS > newest // SLICE_SECONDS or place - start >= size):
            wait()
            yield slice(start, place)
            start = place
        newest = due
    if start < len(entries):
        wait()
        yield slice(start, len(entries))


def _findings(
    recording: Recording,
    clicks: Clicks,
    variants: Mapping[str, Variant],
    ledgers: Mapping[str, Ledger],
    counts: Mapping[str, Counter[str]],
    named: Mapping[str, Settings],
    options: Options,
) -> dict[str, Any]:
    base = next(iter(named))
    parts = slices(clicks, ledgers[base])
    events = recording.events
    judged = clicks.times[clicks.judged]
    found: dict[str, Any] = {
        "recording": {
            "source": recording.source,
            "events": len(events),
            "searches": len(events) - len(clicks),
            "clicks": len(clicks),
            "erasures": sum(isinstance(entry, Erasure) for entry in recording.entries),
            "rejects": sum(isinstance(entry, Reject) for entry in recording.entries),
            "late": recording.late,
            "users": len({event.behaviour.user_id for event in events}),
            "items": len(variants[base].knowledge.catalogue),
            "from": events[0].time,
            "to": events[-1].time,
        },
        "judged": {"clicks": len(judged), "skip": options.skip, "from": int(judged[0]), "to": int(judged[-1])},
        "primary": PRIMARY,
        "ablations": [name for name in variants if name not in named],
        "seed": options.seed,
        "variants": {},
        "comparisons": {},
        "drift": None,
        "agreement": None,
    }
    beside = ThreadPoolExecutor(1)  # most of both is numpy's work, which two threads can do at once
    shown = {n: beside.submit(exposure, ledger, clicks, variants[base].knowledge.catalogue) for n, ledger in ledgers.items()}
    beside.shutdown(wait=False)
    for name, variant in variants.items():
        topics = variant.settings.topics
        found["variants"][name] = assess(clicks, ledgers[name], parts, options.seed) | {
            "recommendations": counts[name][topics.name("recommendations")],
            "drift_changes": counts[name][topics.name("drift")],
            "dead_letters": counts[name][topics.name("dead_letters")] + len(variant.rejected_items),
            "exposure": shown[name].result(),
            "model": variant.pipeline.model,
            "provider": variant.encoder.provider,
            "settings": {group: values for group, values in effective(variant.settings).items() if group in GROUPS},
        }
        if name != base:
            comparison = compare(clicks, ledgers[base], ledgers[name], parts, len(variants) - 1, options.seed)
            found["comparisons"][name] = comparison | {"verdict": verdict(name, base, comparison)}
    return found
