"""`driftstream replay`, from its options to what it prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from stream.encoder import DeviceError, ModelFolderError
from stream.lines import LinesError
from stream.replay.clicks import NothingToJudgeError
from stream.replay.journeys import journeys, shelves
from stream.replay.report import Library, render
from stream.replay.run import Options, Replayed, run
from stream.replay.source import Recording, read_folder
from stream.replay.variant import read_variant
from stream.settings import Settings, SettingsError

SHOWN = ("map@5", "hr@10", "ndcg@10", "mrr")
SHOWN_EXPOSURE = ("coverage", "diversity", "novelty", "popular_lift")


class ReplayError(Exception):
    """The replay could not run to its end; the message says why and what to do."""


def run_replay(
    settings: Settings,
    *,
    data: Path,
    variants: list[str],
    limit: int | None,
    options: Options,
    report: Path | None,
    as_json: bool,
) -> None:
    """Replay, print the findings, and write what was asked for.

    Args:
        settings: of the base, where no variant is named.
        data: folder of the recording.
        variants: `name=file.toml` each; the first is the base that the others are compared with.
        limit: only the first so many events.
        options: what to do beside answering.
        report: HTML file to write.
        as_json: end with one line of JSON instead of tables.

    Raises:
        ReplayError: something is missing or wrong.
    """
    try:
        named = _named(settings, variants)
        recording = read_folder(data, settings.topics, limit)
        with ExitStack() as stack:
            library = stack.enter_context(closing(Library())) if report else None
            replayed = run(recording, named, options, quiet=as_json)
            if report and library:
                base = next(iter(named))
                told = journeys(recording.events, replayed.ledgers[base], shelves(recording.items), {})
                page = render(rounded(replayed.findings | {"journeys": told}), library.script())
                report.write_text(page, encoding="utf-8")
    except (LinesError, SettingsError, NothingToJudgeError, ModelFolderError, DeviceError, OSError) as error:
        raise ReplayError(str(error)) from error
    if as_json:
        speed = {"seconds": replayed.seconds, "events_per_second": len(recording.entries) / replayed.seconds}
        sys.stdout.buffer.write(msgspec.json.encode(rounded(speed | replayed.findings)) + b"\n")
    else:
        _print(replayed, recording)


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


def rounded(value: Any) -> Any:
    """Return plain values with floats to six places: what follows is noise, and makes files long. NaN and infinities are None."""
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def _print(replayed: Replayed, recording: Recording) -> None:
    console, findings = Console(highlight=False), replayed.findings
    speed = len(recording.entries) / replayed.seconds
    console.print(
        f"{len(recording.entries):,} events answered {len(findings['variants'])} times in {replayed.seconds:.1f} s "
        f"({speed:,.0f} events/s); {findings['judged']['clicks']:,} clicks judged"
    )
    table = Table("variant", *SHOWN, *SHOWN_EXPOSURE)
    for name, found in findings["variants"].items():
        totals, shown = found["totals"], found["exposure"]
        table.add_row(name, *(f"{totals[m]:.4f}" for m in SHOWN), *(f"{shown[m]:.3f}" for m in SHOWN_EXPOSURE))
    console.print(table)
    for comparison in findings["comparisons"].values():
        console.print(comparison["verdict"])
