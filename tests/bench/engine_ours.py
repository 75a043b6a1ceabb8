"""Our engine with the tally job: the worker's own app, intake, store, checkpoint and recovery; only the pipeline is the peers' job.

python tests/bench/engine_ours.py BROKER GROUP EVENTS_TOPIC OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import tally

from stream import topics
from stream.app import App
from stream.decode import Entry, Event, decode_click, decode_erasure, decode_search
from stream.engine.checkpoint import Output, Work
from stream.engine.folder import StateFolder
from stream.engine.intake import Batch
from stream.engine.store import StateStore
from stream.settings import Settings


class TallyPipeline:
    """What `App` wants of a pipeline."""

    decode_search, decode_click, decode_erasure = (
        staticmethod(decode_search),
        staticmethod(decode_click),
        staticmethod(decode_erasure),
    )
    decode_state = staticmethod(bytes)
    model = "tally"
    encoder = SimpleNamespace(provider="none")

    def __init__(self, output: str, start: tally.Start) -> None:
        self._output = output
        self._start = start

    @staticmethod
    def texts(entries: Sequence[Entry]) -> list[str]:
        return []

    def process(self, batch: Batch, states: StateStore[bytes]) -> Work:
        self._start()
        outputs = []
        changed: dict[int, dict[str, bytes]] = {}
        for entry in batch.entries:
            assert isinstance(entry, Event)
            partition, user, event_id = entry.record.partition, entry.behaviour.user_id, entry.behaviour.event_id
            users = changed.setdefault(partition, {})
            state = tally.advance(users.get(user) or states.get(partition, user), user, event_id)
            users[user] = state
            outputs.append(Output(self._output, entry.record.key, tally.answer(user, event_id, state)))
        for partition, users in changed.items():
            states.keep(partition, users)
        encoded: dict[int, dict[bytes, bytes | None]] = {
            partition: {user.encode(): state for user, state in users.items()} for partition, users in changed.items()
        }
        return Work(batch.offsets, outputs, encoded)


class NothingLearned:
    """What `App` wants to know across users: nothing, here."""

    catalogue: tuple[()] = ()
    recommender = None

    def refresh(self) -> None: ...
    def save(self) -> None: ...
    def published(self) -> None: ...
    def reload(self) -> None: ...

    def overdue(self) -> bool:
        return False

    def outputs(self) -> list[Output]:
        return []


def settings(broker: str, group: str, events: str, output: str, partitions: int, folder: Path, **engine: Any) -> Settings:
    names = {topic: f"{group}-{topic}" for topic in ("searches", "items", "erasures", "drift", "dead_letters", "memory")}
    given: dict[str, Any] = {
        "broker": {"servers": broker, "group": group},
        "topics": {"clicks": events, "recommendations": output, "partitions": partitions, **names},
        "engine": {"state_folder": folder, **engine},
        "web": {"enabled": False},
    }
    return Settings(**given)


def main() -> None:
    broker, group, events, output, partitions, folder, start = sys.argv[1:8]
    logging.basicConfig(level=logging.WARNING)
    chosen = settings(broker, group, events, output, int(partitions), Path(folder))
    cluster, _ = topics.ensure(chosen)
    label = StateFolder(chosen.engine.state_folder, cluster=cluster, group=group, partitions=int(partitions))
    app = App(chosen, TallyPipeline(output, tally.Start(Path(start))), NothingLearned(), label.worker_id)  # type: ignore[arg-type]
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False, override_logging=False).execute_from_commandline()


if __name__ == "__main__":
    main()
