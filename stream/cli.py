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
