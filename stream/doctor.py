"""`driftstream doctor`: look at everything that a worker depends on, and say what to do about what is wrong."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from rich.console import Console

from stream import topics
from stream.connection import BrokerError, connect
from stream.encoder import DeviceError, Encoder, ModelFolderError
from stream.settings import Settings


class AilmentError(Exception):
    """Something is wrong; the message says what to do."""


def examine(settings: Settings) -> bool:
    """Print one line per check; return True where all is well."""
    console = Console(highlight=False)
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("broker", _broker),
        ("topics", _topics),
        ("model and provider", _model),
        ("state folder", _state),
    ]
    well = True
    for name, check in checks:
        try:
            console.print(f"[green]ok  [/] {name}: {check(settings)}", soft_wrap=True)
        except AilmentError as ailment:
            well = False
            console.print(f"[red]FAIL[/] {name}: {ailment}", soft_wrap=True)
    return well


def _broker(settings: Settings) -> str:
    try:
        admin = connect(settings.broker.librdkafka())
    except BrokerError as error:
        raise AilmentError(str(error)) from error
    broker, brokers = settings.broker, admin.list_topics(timeout=10).brokers
    return f"{len(brokers)} at {broker.servers}, by {broker.security_protocol}"


def _topics(settings: Settings) -> str:
    try:
        admin = connect(settings.broker.librdkafka())
    except BrokerError as error:
        raise AilmentError("cannot be listed without a broker") from error
    present = admin.list_topics(timeout=10).topics
    wanted = topics.plan(settings)
    missing = [topic.name for topic in wanted if topic.name not in present]
    if missing:
        raise AilmentError(f"missing: {', '.join(missing)}. `driftstream worker` makes them if the broker allows it")
    for topic in wanted:
        found = len(present[topic.name].partitions)
        if topic.partitions > 1 and found != topic.partitions:
            raise AilmentError(
                f"{topic.name} has {found} partitions, the settings say {topic.partitions}. "
                f"Set DRIFTSTREAM_TOPICS__PARTITIONS={found}"
            )
    return f"all {len(wanted)} there"


def _model(settings: Settings) -> str:
    model = settings.model
    try:
        encoder = Encoder(model.folder, device=model.device, variant=model.variant, threads=model.threads, cache_size=16)
        encoder.encode(["is anybody there?"])
    except (DeviceError, ModelFolderError) as error:
        raise AilmentError(str(error)) from error
    return f"{encoder.version}, {encoder.dimension} dimensions, on {encoder.provider}"


def _state(settings: Settings) -> str:
    folder = settings.engine.state_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        room = os.statvfs(folder)
    except OSError as error:
        raise AilmentError(f"{folder} cannot be written ({error.strerror}). Set DRIFTSTREAM_ENGINE__STATE_FOLDER") from error
    free = room.f_bavail * room.f_frsize / 2**30
    if free < 1:
        raise AilmentError(f"{folder} has {free:.1f} GiB left. Make room, or set DRIFTSTREAM_ENGINE__STATE_FOLDER")
    return f"{folder} is writable, {free:.0f} GiB free"
