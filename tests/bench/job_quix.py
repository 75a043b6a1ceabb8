"""The worker's pipeline inside Quix Streams; runs in the peers' environment. Settings as in engine_quix.py.

    python tests/bench/job_quix.py BROKER GROUP EVENTS_PREFIX OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE COUNT

Searches and clicks are put together by `concat`, which aligns them by time within a partition number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tally
from job_settings import pipeline, settings
from quixstreams import Application, State, message_context

from stream import topics
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.state import UserState, decode

broker, group, events, output, partitions, folder, start, count = sys.argv[1:9]
began = tally.Start(Path(start))
chosen = settings(broker, group, events, output, int(partitions), Path(folder) / "ours")
topics.ensure(chosen)
core, knowledge = pipeline(chosen)
decoders = {chosen.topics.name("searches"): core.decode_search, chosen.topics.name("clicks"): core.decode_click}

app = Application(
    broker,
    consumer_group=group,
    processing_guarantee="exactly-once",
    auto_offset_reset="earliest",
    state_dir=Path(folder) / "quix",
    loglevel="WARNING",
)
inputs = [app.topic(name, key_deserializer="bytes", value_deserializer="bytes") for name in decoders]
answers = app.topic(output, key_serializer="bytes", value_serializer="bytes")


class KeyState:
    """The pipeline's view of Quix Streams' state of one key."""

    def __init__(self, state: State) -> None:
        self._state = state

    def get(self, partition: int, user_id: str) -> UserState | None:
        stored = self._state.get_bytes("state")
        return None if stored is None else decode(stored)

    def keep(self, partition: int, states: dict[str, UserState | None]) -> None: ...  # written below, encoded


def recommend(value: bytes, key: bytes, timestamp: int, _headers: Any, state: State) -> list[bytes | None]:
    began()
    place = message_context()
    record = KafkaRecord(place.topic, place.partition, place.offset, timestamp, key, value)
    work = core.process(Batch([decoders[place.topic](record)]), KeyState(state))
    for states in work.states.values():
        for encoded in states.values():
            state.set_bytes("state", encoded)
    return [out.value for out in work.outputs]


searches, clicks = (app.dataframe(topic) for topic in inputs)
searches.concat(clicks).apply(recommend, stateful=True, metadata=True, expand=True).to_topic(answers)

if __name__ == "__main__":
    app.run(count=int(count), collect=False)
