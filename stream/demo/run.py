"""The parts of the demo, started in order and stopped in reverse: broker, worker, reader, feeder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stream import sample
from stream.decode import UNREADABLE
from stream.demo.reader import Reader
from stream.demo.screen import Screen, print_summary
from stream.engine.embedded_broker import EmbeddedBroker
from stream.events import Item
from stream.feed import Ahead, Feeder, FeedError
from stream.lines import Line, LinesError, read_folder
from stream.settings import Settings
from stream.topics import plan
from stream.web import free_port

AHEAD_BYTES = 384 * 1024  # per partition; answers are ten times as large, and the broker keeps 5 MiB of them
START_SECONDS = 120  # for the worker to load its model and read the catalogue


class DemoError(Exception):
    """The demo could not run to its end; the message says why and what to do."""


def run_demo(
    settings: Settings, *, data: Path | None, model: Path | None, output: Path | None, limit: int | None, as_json: bool
) -> None:
    """Feed the data through a real worker on an embedded broker, show what happens, and end with a summary.

    Raises:
        DemoError: something is missing, or a part of it failed.
    """
    folder = (model or settings.model.folder).resolve()
    if not (folder / "manifest.json").is_file():
        raise DemoError(f"no model in {folder}; make one with `model-export export --output {folder}`")
    try:
        with tempfile.TemporaryDirectory(prefix="driftstream-demo-") as scratch:
            _run(settings, Path(scratch), data, folder, output, limit, as_json)
    except (FeedError, LinesError) as error:
        raise DemoError(str(error)) from error


def _run(
    settings: Settings,
    scratch: Path,
    data: Path | None,
    model: Path,
    output: Path | None,
    limit: int | None,
    as_json: bool,
) -> None:
    truth: dict[str, sample.Shift] = {}
    if data is None:
        data = scratch / "data"
        truth = sample.write(data).truth
    topics = settings.topics
    items, events = read_folder(data, topics)
    events = events[:limit]
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker({topic.name: topic.partitions for topic in plan(settings)}))
        client = {"bootstrap.servers": broker.address, "log.connection.close": False}
        catalogue = Feeder(client)
        stack.callback(catalogue.close)
        catalogue.send(items)
        worker = stack.enter_context(_worker(settings, scratch, broker.address, model))
        file = stack.enter_context(output.open("wb")) if output else None
        reader = Reader(client, topics, file)
        reader.start()
        stack.callback(reader.stop)
        feeder = Feeder(client, ahead=Ahead(reader.answered_up_to, AHEAD_BYTES))
        stack.callback(feeder.close)
        screen = Screen(_titles(items), total=len(events), quiet=as_json)
        begun = time.monotonic()
        _feed_and_watch(feeder, events, reader, worker, screen)
        seconds = time.monotonic() - begun
        status = worker.stop()
    result = {
        "events": len(events),
        "recommendations": reader.recommendations,
        "drift_events": len(reader.changes),
        "dead_letters": reader.dead_letters,
        "seconds": round(seconds, 2),
        "events_per_second": round(len(events) / seconds, 1),
        "model": status["model"],
        "provider": status["provider"],
    }
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        print_summary(result, reader, events, truth)


class _Worker:
    """The worker's process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self._process = process
        self._log = log
        self._url = url
        self._status: dict[str, Any] = {}

    def check(self) -> None:
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise DemoError(f"the worker ended by itself with exit status {self._process.returncode}; its last words:\n{tail}")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            try:
                with urllib.request.urlopen(f"{self._url}/readyz", timeout=5) as response:
                    self._status = json.load(response)
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise DemoError(f"the worker was not ready within {START_SECONDS} s; its log is\n{self._log.read_text()}")

    def stop(self) -> dict[str, Any]:
        """End the worker as an operator would, and return what it said of itself."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60) != 0:
            self.check()
        return self._status

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def _worker(settings: Settings, scratch: Path, address: str, model: Path) -> Iterator[_Worker]:
    port = free_port()
    environment = {
        **os.environ,
        "DRIFTSTREAM_BROKER__SERVERS": address,
        "DRIFTSTREAM_BROKER__SECURITY_PROTOCOL": "PLAINTEXT",  # whatever the settings say of a real one
        "DRIFTSTREAM_MODEL__FOLDER": str(model),
        "DRIFTSTREAM_ENGINE__GUARANTEE": "at_least_once",  # the embedded broker has no transactions
        "DRIFTSTREAM_ENGINE__STATE_FOLDER": str(scratch / "state"),
        # The feeder is always well ahead: waiting for it keeps the order exact and costs nothing.
        "DRIFTSTREAM_ENGINE__ORDER_WAIT_MS": "1000",
        "DRIFTSTREAM_WEB__ENABLED": "true",
        "DRIFTSTREAM_WEB__HOST": "127.0.0.1",
        "DRIFTSTREAM_WEB__PORT": str(port),
    }
    log = scratch / "worker.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream", "worker"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    worker = _Worker(process, log, f"http://127.0.0.1:{port}")
    try:
        worker.wait_until_ready()
        yield worker
    finally:
        worker.kill()


def _feed_and_watch(feeder: Feeder, events: list[Line], reader: Reader, worker: _Worker, screen: Screen) -> None:
    failures: list[Exception] = []

    def feed() -> None:
        try:
            feeder.send(events)
            feeder.drain()
        except Exception as error:  # raised again below, in the main thread
            failures.append(error)

    thread = threading.Thread(target=feed, name="feeder", daemon=True)
    thread.start()
    with screen:
        while thread.is_alive():
            thread.join(0.1)
            worker.check()
            if reader.failure is not None:
                raise reader.failure
            screen.update(feeder, reader)
    if failures:
        raise failures[0]


def _titles(items: list[Line]) -> dict[str, str]:
    titles = {}
    for line in items:
        try:
            item = msgspec.json.decode(line.value, type=Item)
        except UNREADABLE:
            continue
        titles[item.item_id] = item.title or item.category or item.item_id
    return titles
