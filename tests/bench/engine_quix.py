"""Quix Streams with the tally job; runs in the peers' environment.

    python tests/bench/engine_quix.py BROKER GROUP EVENTS_TOPIC OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE COUNT

Exactly-once, changelog topics on (the default), the default checkpoint every 5 s, which is the fast end of the trade that its
documentation describes (docs/advanced/checkpointing.md); states as bytes (docs/advanced/stateful-processing.md, "Serialization").
It ends, and commits, after COUNT events: it need not wait for its last checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tally
from quixstreams import Application, State

broker, group, events_topic, output_topic, partitions, folder, start_file, count = sys.argv[1:9]
began = tally.Start(Path(start_file))

app = Application(
    broker,
    consumer_group=group,
    processing_guarantee="exactly-once",
    auto_offset_reset="earliest",
    state_dir=folder,
    loglevel="WARNING",
)
events = app.topic(events_topic, key_deserializer="str", value_deserializer="json")
answers = app.topic(output_topic, key_serializer="str", value_serializer="bytes")


def tallied(event: dict[str, str], state: State) -> bytes:
    began()
    user, event_id = event["user_id"], event["event_id"]
    new = tally.advance(state.get_bytes("state"), user, event_id)
    state.set_bytes("state", new)
    return tally.answer(user, event_id, new)


app.dataframe(events).apply(tallied, stateful=True).to_topic(answers)

if __name__ == "__main__":
    app.run(count=int(count), collect=False)
