"""`driftstream replay`, from its options to what it prints and writes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from stream.encoder import DeviceError, ModelFolderError
from stream.lines import LinesError
from stream.replay.agreement import Agreement
from stream.replay.clicks import NothingToJudgeError
from stream.replay.journeys import journeys, shelves
from stream.replay.report import Library, render
from stream.replay.run import Encoders, Options, Replayed, run
from stream.replay.shifts import Truth, examine, read_truth, stories
from stream.replay.source import Recording, read_folder
from stream.replay.topics import Span, TopicsError, parse_offsets, read_published, read_topics
from stream.replay.variant import read_variant
from stream.settings import Settings, SettingsError

SHOWN = ("map@5", "hr@10", "ndcg@10", "mrr")
SHOWN_EXPOSURE = ("coverage", "diversity", "novelty", "popular_lift")


class ReplayError(Exception):
    """The replay could not run to its end; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What to replay, and what to make of it.

    Attributes:
        data: folder of the recording; the topics of the cluster in the settings if None.
        span: which part of it. For files times are event times, for topics those of the records.
        limit: only the first so many events.
        variants: `name=file.toml` each; the first is the base that the others are compared with. The settings alone if empty.
        truth: file of known shifts of interest.
        agreement: compare with what a worker has published.
        report: HTML file to write.
        as_json: end with one line of JSON instead of tables.
        options: how to replay and judge.
    """

    data: Path | None = None
    span: Span = field(default_factory=Span)
    limit: int | None = None
    variants: list[str] = field(default_factory=list)
    truth: Path | None = None
    agreement: bool = False
    report: Path | None = None
    as_json: bool = False
    options: Options = field(default_factory=Options)


def run_replay(settings: Settings, request: Request) -> None:
    """Replay, print the findings, and write what was asked for.

    Raises:
        ReplayError: something is missing or wrong.
    """
    try:
        findings, pace = _replay(settings, request)
    except (LinesError, TopicsError, SettingsError, NothingToJudgeError, ModelFolderError, DeviceError, OSError) as error:
        raise ReplayError(str(error)) from error
    if request.as_json:
        sys.stdout.buffer.write(msgspec.json.encode(rounded(pace | findings)) + b"\n")
    else:
        _print(findings, pace)


def _replay(settings: Settings, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the findings, and how fast they came: from the first byte read to the last comparison, the report left out."""
    named = _named(settings, request.variants)
    base = next(iter(named))
    known = read_truth(request.truth) if request.truth else []
    with ExitStack() as stack:
        begun = time.monotonic()
        gc.disable()  # recording and states stay to the end: the collector would look through them again and again
        stack.callback(gc.enable)
        encoders = Encoders(named.values())
        recording = _read(named[base], request)
        agreement = _agreement(named[base], request)
        replayed = run(recording, named, encoders, request.options, agreement, quiet=request.as_json)
        seconds = time.monotonic() - begun
        library = Library() if request.report else None
        if known:
            replayed.findings["drift"] = _examine(replayed, list(named), known)
        if request.report and library:
            shifts = {line.user_id: line.shift_event_id for line in known if line.shift_event_id}
            told = journeys(recording.entries, replayed.ledgers[base], shelves(recording.items), shifts)
            page = render(rounded(replayed.findings | {"journeys": told}), library.script())
            request.report.write_text(page, encoding="utf-8")
    return replayed.findings, {"seconds": seconds, "events_per_second": len(recording.entries) / seconds}


def _named(settings: Settings, variants: list[str]) -> dict[str, Settings]:
    if not variants:
        return {"settings": settings}
    named: dict[str, Settings] = {}
    for variant in variants:
        name, equals, file = variant.partition("=")
        if not name or not equals or not name.replace("-", "").replace("_", "").isalnum():
            raise ReplayError(f"--variant {variant}: write it as name=settings.toml, the name in letters, digits, - and _")
        if name in named:
            raise ReplayError(f"--variant {name} is given twice")
        named[name] = read_variant(Path(file))
    return named


def _read(settings: Settings, request: Request) -> Recording:
    if request.data is None:
        return read_topics(settings, request.span, request.limit)
    if request.span.offsets or request.agreement:
        raise ReplayError("offsets, and agreement with a worker, are for topics: leave out --data")
    return read_folder(request.data, settings.topics, request.limit, begin=request.span.begin, end=request.span.end)


def _agreement(settings: Settings, request: Request) -> Agreement | None:
    if not request.agreement:
        return None
    if settings.recommend.emit != "every-event":
        raise ReplayError("agreement needs recommend.emit = every-event: otherwise answers depend on the worker's batches")
    return Agreement(read_published(settings), settings.topics.name("recommendations"))


def _examine(replayed: Replayed, names: list[str], known: list[Truth]) -> dict[str, Any]:
    from stream.replay.rivals import rivals  # river takes a second to import, and most replays know no truth

    told = stories(replayed.clicks, known)
    others = rivals(replayed.clicks, told, replayed.variants[names[0]].knowledge.catalogue)
    return examine(replayed.clicks, {name: replayed.ledgers[name] for name in names}, told, others)


def read_span(begin: str | None, end: str | None, offsets: list[str]) -> Span:
    """Read the options that say which part to replay: times in epoch milliseconds or RFC 3339 with a zone.

    Raises:
        ReplayError: one is not of its form.
    """
    try:
        return Span(_time(begin), _time(end), dict(map(parse_offsets, offsets)))
    except ValueError as error:
        raise ReplayError(str(error)) from error


def _time(text: str | None) -> int | None:
    if text is None or text.isdigit():
        return None if text is None else int(text)
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text}: has no zone; append Z or an offset such as +02:00")
    return round(time.timestamp() * 1000)


def rounded(value: Any) -> Any:
    """Return plain values with floats to six places: what follows is noise, and makes files long. NaN and infinities are None."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def _print(findings: Mapping[str, Any], pace: Mapping[str, float]) -> None:
    console = Console(highlight=False)
    console.print(
        f"{findings['recording']['events']:,} events answered by {len(findings['variants'])} variants in {pace['seconds']:.1f} s "
        f"({pace['events_per_second']:,.0f} events/s); {findings['judged']['clicks']:,} clicks judged"
    )
    table = Table("variant", *SHOWN, *SHOWN_EXPOSURE)
    for name, found in findings["variants"].items():
        totals, shown = found["totals"], found["exposure"]
        table.add_row(name, *(f"{totals[m]:.4f}" for m in SHOWN), *(f"{shown[m]:.3f}" for m in SHOWN_EXPOSURE))
    console.print(table)
    for comparison in findings["comparisons"].values():
        console.print(comparison["verdict"])
    if findings["drift"]:
        drift = findings["drift"]
        missing = "not reached" if drift["calm_events"] >= drift["arl0"] else "too few events to tell"
        for name, found in drift["at_arl0"].items():
            text = f"{found['detected']:.3f} detected, delay {found['delay']:.1f}" if found else missing
            console.print(f"shifts at one false alarm per {drift['arl0']:.0f} events, {name}: {text}")
        for name, found in drift["own_states"].items():
            false = f"{found['false_alarms']} false alarms in {drift['calm_events']:,} events"
            console.print(f"{name}: {found['detected']:.3f} detected, {false}")
    if findings["agreement"]:
        console.print(findings["agreement"]["sentence"])
