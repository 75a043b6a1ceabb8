"""Stock Faust with the tally job; runs in the peers' environment.

    python tests/bench/engine_faust.py BROKER GROUP EVENTS_TOPIC OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE

Its own best settings: the compiled paths (`cython_optimizations`, docs/developerguide/cython.rst), uvloop and orjson (README,
"bundles"), rocksdict as the store (README), raw keys and no model classes. At its own guarantee, at_least_once: its exactly_once
leaves outputs that the worker does not consume outside the transaction (issues 177, 323, 517).
"""

from __future__ import annotations

import sys
from pathlib import Path

import faust
import mode.loop
import tally

broker, group, events_topic, output_topic, partitions, folder, start_file = sys.argv[1:8]
began = tally.Start(Path(start_file))

mode.loop.use("uvloop")  # what `faust --loop uvloop` does
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
events = app.topic(events_topic, key_type=str, value_serializer="json")
answers = app.topic(output_topic, key_type=bytes, value_type=bytes)
users = app.Table(
    "users",
    partitions=int(partitions),
    key_type=bytes,
    value_type=bytes,
    options={"driver": "rocksdict"},
)


@app.agent(events)
async def count(stream: faust.Stream[dict[str, str]]) -> None:
    async for event in stream:
        began()
        user, event_id = event["user_id"], event["event_id"]
        key = user.encode()
        state = tally.advance(users.get(key), user, event_id)
        users[key] = state
        await answers.send(key=key, value=tally.answer(user, event_id, state))


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
