"""The `driftstream` command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from stream.settings import Settings, SettingsError, read_settings

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
err = Console(stderr=True, highlight=False)


def settings_or_exit() -> Settings:
    """Read the settings; on a mistake in them say which one and exit with 2."""
    try:
        return read_settings()
    except SettingsError as error:
        fail(str(error), code=2)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print what went wrong and what to do about it, and exit."""
    err.print(f"[bold red]error:[/] {message}", soft_wrap=True)
    raise typer.Exit(code)


@app.command()
def worker(log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info") -> None:
    """Run a worker against a Kafka cluster: settings come from DRIFTSTREAM_… variables and driftstream.toml."""
    from stream.worker import WorkerError, run

    try:
        run(settings_or_exit(), log_level)
    except WorkerError as error:
        fail(str(error))


@app.command()
def produce(
    file: Annotated[Path, typer.Argument(help="JSON lines, .gz or not")],
    topic: Annotated[str, typer.Option("--topic", "-t", help="searches, clicks or items, or any topic keyed by user_id")],
    speed: Annotated[float | None, typer.Option(help="N times event time; as fast as possible if not given")] = None,
) -> None:
    """Send a file of events or items to a topic, each record keyed as the worker expects."""
    from stream.produce import ProduceError, produce_file

    try:
        produce_file(settings_or_exit(), file, topic, speed)
    except ProduceError as error:
        fail(str(error))


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="folder with items, searches and clicks as JSON lines")] = None,
    model: Annotated[Path | None, typer.Option(help="model folder made by `model-export`")] = None,
    output: Annotated[Path | None, typer.Option(help="file that receives every recommendation")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="feed only the first N events")] = None,
    json: Annotated[bool, typer.Option("--json", help="end with one line of JSON")] = False,
) -> None:
    """Watch events become interest profiles and recommendations: broker, worker and feeder on this machine."""
    from stream.demo import DemoError, run_demo

    try:
        run_demo(settings_or_exit(), data=data, model=model, output=output, limit=limit, as_json=json)
    except DemoError as error:
        fail(str(error))


@app.command()
def replay(
    data: Annotated[
        Path | None, typer.Option(help="folder with items, searches, clicks; without it, the cluster's topics")
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", help="leave out what was before: epoch ms, or RFC 3339")] = None,
    end: Annotated[str | None, typer.Option("--to", help="leave out what was at this time or later")] = None,
    offsets: Annotated[list[str] | None, typer.Option(help="of topics: clicks/PARTITION=BEGIN:END; may be repeated")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N events")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="NAME=settings.toml; repeat it to compare with the first")] = None,
    output: Annotated[Path | None, typer.Option(help="file that receives every recommendation")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML file to write: one file, no network needed")] = None,
    json: Annotated[bool, typer.Option("--json", help="end with one line of JSON")] = False,
    speed: Annotated[float | None, typer.Option(help="N times event time; as fast as possible if not given")] = None,
    skip: Annotated[int, typer.Option(min=0, help="leave the first N clicks out of the measures (warm-up)")] = 2000,
    judge_from: Annotated[int, typer.Option(help="leave clicks before this event time out of the measures, ms")] = 0,
    truth: Annotated[Path | None, typer.Option(help="known shifts: JSON lines of user_id and shift_event_id")] = None,
    ablate: Annotated[bool, typer.Option(help="replay also with stale profiles, and with single time scales")] = False,
    agreement: Annotated[bool, typer.Option(help="of topics: compare with what a worker has published")] = False,
    seed: Annotated[int, typer.Option(help="of the bootstrap and the A/B split")] = 0,
) -> None:
    """Replay recorded events through the worker's core: what would a change have done, for whom, and is it real?"""
    try:
        from stream.replay.command import ReplayError, Request, read_span, run_replay
        from stream.replay.run import Options
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing; install driftstream[replay]")
    try:
        request = Request(
            data=data,
            span=read_span(begin, end, offsets or []),
            limit=limit,
            variants=variant or [],
            truth=truth,
            agreement=agreement,
            report=report,
            as_json=json,
            options=Options(output=output, speed=speed, skip=skip, start=judge_from, ablate=ablate, seed=seed),
        )
        run_replay(settings_or_exit(), request)
    except ReplayError as error:
        fail(str(error))


@app.command()
def profile(
    user: Annotated[str, typer.Argument(help="a user_id")],
    url: Annotated[str | None, typer.Option(help="the worker's address; from the settings if not given")] = None,
) -> None:
    """Ask a running worker for a user's interests, their evidence, and the drift state."""
    from stream.ask import AskError, show_profile

    try:
        show_profile(settings_or_exit(), user, url)
    except AskError as error:
        fail(str(error))


@app.command()
def feed(
    data: Annotated[Path | None, typer.Option(help="folder with items, searches and clicks as JSON lines")] = None,
    speed: Annotated[float | None, typer.Option(help="N times event time; as fast as possible if not given")] = None,
) -> None:
    """Send a catalogue, and events in the order in which they happened: a folder's, or the bundled sample."""
    from stream import produce

    try:
        produce.feed(settings_or_exit(), data, speed)
    except produce.ProduceError as error:
        fail(str(error))


@app.command()
def erase(users: Annotated[list[str], typer.Argument(help="user_ids")]) -> None:
    """Ask for the erasure of all that is kept of users: a worker does it in its order among the users' events."""
    from stream.produce import ProduceError, erase_users

    try:
        erase_users(settings_or_exit(), users)
    except ProduceError as error:
        fail(str(error))


@app.command()
def topics() -> None:
    """Make the topics that are missing, as a worker would: for an administrator, where workers may not."""
    from stream.connection import BrokerError
    from stream.topics import TopicError, ensure

    try:
        _, made = ensure(settings_or_exit())
    except (BrokerError, TopicError) as error:
        fail(str(error))
    err.print(f"made {', '.join(made)}" if made else "all topics are there")


@app.command()
def doctor() -> None:
    """Check broker, topics, model, provider and state folder, and say what to do about each failure."""
    from stream.doctor import examine

    if not examine(settings_or_exit()):
        raise typer.Exit(1)


@app.callback()
def main() -> None:
    """Driftstream: live recommendations from Kafka events."""
    logging.captureWarnings(True)
