"""How much of the encoder's speed is left in a running worker, when every text is new?

    python tests/bench/bench_encoding_worker.py ../shared/data/bestbuy [--texts 3600]

`ours` is the worker answering a backlog of searches no two of which are the same to the model; `theirs` is our encoder alone with the
same texts, in micro-batches of its own choice. Both use all cores; the worker shares them with the broker.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_encoder import different, encoder_side
from bench_job import Side, send
from side_by_side import parser, report, take_turns
from stage import OURS, kafka

from stream.decode import Event
from stream.events import Search
from stream.replay.source import Recording, read_folder
from stream.settings import Topics


def new_texts(recording: Recording, count: int) -> dict[str, Event]:
    """The first searches with a text that none before them had, by text."""
    first: dict[str, Event] = {}
    for event in recording.events:
        if isinstance(event.behaviour, Search) and event.behaviour.query.strip():
            first.setdefault(event.behaviour.query, event)
    return {text: first[text] for text in different(first, count)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--texts", type=int, default=3600)
    options.add_argument("--partitions", type=int, default=4)
    chosen = options.parse_args()
    recording = read_folder(chosen.data, Topics())
    searches = new_texts(recording, chosen.texts)
    events = list(searches.values())
    with ExitStack() as stack:
        broker, folder = stack.enter_context(kafka())
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        alone = stack.enter_context(encoder_side("ours", scratch, list(searches)))
        prefix = send(broker, Recording("", recording.items, list(events), 0), chosen.partitions)
        worker = Side(OURS, "job_ours.py", broker, folder, prefix, events, chosen.partitions)
        mine, other = take_turns(chosen.rounds, worker, alone)
    report(
        "encoder inside the running worker, every text new; against the encoder alone",
        mine,
        other,
        "texts/s",
        0.85,
        texts=len(events),
    )


if __name__ == "__main__":
    main()
