"""The worker's pipeline called from stock Faust, event by event; runs in the peers' environment. Settings as in engine_faust.py.

    python tests/bench/job_faust.py BROKER GROUP EVENTS_PREFIX OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE

Stock Faust does not merge topics by event time: it takes searches and clicks as they come.
"""

from __future__ import annotations

import sys
from pathlib import Path

import faust
import mode.loop
import tally
from job_settings import pipeline, settings

from stream import topics
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.state import UserState, decode

broker, group, events, output, partitions, folder, start = sys.argv[1:8]
began = tally.Start(Path(start))
chosen = settings(broker, group, events, output, int(partitions), Path(folder) / "ours")
topics.ensure(chosen)
core, knowledge = pipeline(chosen)
decoders = {chosen.topics.name("searches"): core.decode_search, chosen.topics.name("clicks"): core.decode_click}

mode.loop.use("uvloop")
app = faust.App(
    group,
    broker=f"kafka://{broker}",
    store="rocksdb://",
    datadir=folder,
    key_serializer="raw",
    value_serializer="raw",
    cython_optimizations=True,
    topic_partitions=int(partitions),
    topic_disable_leader=True,
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
)
behaviours = app.topic(*decoders, key_type=bytes, value_type=bytes)
answers = app.topic(output, key_type=bytes, value_type=bytes)
users = app.Table("states", partitions=int(partitions), key_type=bytes, value_type=bytes, options={"driver": "rocksdict"})


class TableStates:
    """The pipeline's view of Faust's table."""

    def get(self, partition: int, user_id: str) -> UserState | None:
        stored = users.get(user_id.encode())
        return None if stored is None else decode(stored)

    def keep(self, partition: int, states: dict[str, UserState | None]) -> None: ...  # written below, encoded


@app.agent(behaviours)
async def recommend(stream: faust.Stream[bytes]) -> None:
    async for event in stream.events():
        began()
        sent = event.message
        record = KafkaRecord(sent.topic, sent.partition, sent.offset, round(sent.timestamp * 1000), sent.key, sent.value)
        work = core.process(Batch([decoders[record.topic](record)]), TableStates())
        for states in work.states.values():
            for key, state in states.items():
                users[key] = state
        for out in work.outputs:
            await answers.send(key=out.key, value=out.value)


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
