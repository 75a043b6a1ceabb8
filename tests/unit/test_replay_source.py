"""Recorded events come in the order in which they happened, and every run of them gives the same answers."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.decode import Entry, Erasure, Event, Reject
from stream.encoder import Encoder
from stream.engine.checkpoint import Output
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.lines import LinesError
from stream.recommend.recommender import Recommender
from stream.replay.one_pass import replay
from stream.replay.source import in_event_time, read_folder
from stream.replay.variant import Variant
from stream.settings import Engine, Settings, Topics

T0 = 1_700_000_000_000


def search(number: int, user: str, query: str, time: int) -> dict[str, Any]:
    return {"event_id": f"s{number}", "user_id": user, "query": query, "timestamp": T0 + time}


def click(number: int, user: str, item: str, time: int) -> dict[str, Any]:
    return {"event_id": f"c{number}", "user_id": user, "item_id": item, "timestamp": T0 + time}


def record(topic: str, partition: int, offset: int, event: dict[str, Any]) -> KafkaRecord:
    return KafkaRecord(topic, partition, offset, 0, event["user_id"].encode(), json.dumps(event).encode())


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["garden hose", "red shoes", "blue shoe", "space game", "coffee grinder", "war game"]
    write(tmp_path / "items.jsonl", [{"item_id": f"i{n}", "title": word} for n, word in enumerate(words)])
    users = ["ada", "bob", "cleo"]
    write(tmp_path / "searches.jsonl.gz", [search(n, users[n % 3], words[n % 5], 60_000 * n) for n in range(40)])
    write(tmp_path / "clicks.jsonl", [click(n, users[n % 3], f"i{n % 6}", 60_000 * n + 5) for n in range(40)])
    return tmp_path


def test_equal_times_are_ordered_by_topic_then_partition_then_offset() -> None:
    clicks = [record("clicks", p, o, click(10 * p + o, "ada", "i", 5)) for p in (1, 0) for o in (0, 1)]
    searches = [record("searches", p, 0, search(p, "ada", "q", 5)) for p in (1, 0)]
    entries, late = in_event_time({"clicks": clicks, "searches": searches})
    places = [(e.record.topic, e.record.partition, e.record.offset) for e in entries]
    assert places == [("searches", 0, 0), ("searches", 1, 0), *(("clicks", p, o) for p in (0, 1) for o in (0, 1))]
    assert late == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=30))
def test_events_out_of_order_in_their_partition_are_moved_to_their_place_and_counted(events: list[tuple[int, int]]) -> None:
    records, newest, late = [], {0: -1, 1: -1, 2: -1}, 0
    for offset, (partition, time) in enumerate(events):
        records.append(record("clicks", partition, offset, click(offset, "ada", "i", time)))
        late += time < newest[partition]
        newest[partition] = max(newest[partition], time)
    entries, counted = in_event_time({"clicks": records})
    times = [entry.time for entry in entries if isinstance(entry, Event)]
    assert times == sorted(T0 + time for _, time in events)
    assert counted == late


def test_a_line_that_is_no_event_stays_behind_the_one_before_it() -> None:
    broken = KafkaRecord("clicks", 0, 1, 0, b"ada", b"{")
    clicks = [record("clicks", 0, 0, click(0, "ada", "i", 5)), broken, record("clicks", 0, 2, click(1, "ada", "i", 9))]
    entries, _ = in_event_time({"clicks": clicks, "searches": [record("searches", 0, 0, search(0, "bob", "q", 7))]})
    assert [isinstance(entry, Reject) for entry in entries] == [False, True, False, False]


def test_a_folder_is_read_whole_and_the_limit_cuts_in_event_time(folder: Path) -> None:
    recording = read_folder(folder, Topics(prefix="shop."))
    assert len(recording.items) == 6
    assert [entry.record.topic for entry in recording.entries[:3]] == ["shop.searches", "shop.clicks", "shop.searches"]
    assert len(recording.events) == 80
    assert read_folder(folder, Topics(), limit=7).entries == read_folder(folder, Topics()).entries[:7]


def test_an_erasure_has_its_place_among_the_users_events(folder: Path) -> None:
    asked = [{"user_id": "ada", "timestamp": T0 + 60_000 * 20 + 5}, {"user_id": "bob"}, {"user_id": "cleo", "timestamp": T0}]
    write(folder / "erasures.jsonl", asked)
    entries = read_folder(folder, Topics(prefix="shop.")).entries
    places = {entry.user_id: place for place, entry in enumerate(entries) if isinstance(entry, Erasure)}
    assert entries[places["ada"] - 1].record.value == json.dumps(click(20, "cleo", "i2", 60_000 * 20 + 5)).encode()
    assert places["cleo"] == 1, "behind the search of the same millisecond"
    assert entries[places["ada"]].record.topic == "shop.erasures"
    [reject] = [entry for entry in entries if isinstance(entry, Reject)]
    assert reject.record.key == b"bob"
    later = read_folder(folder, Topics(), begin=T0 + 1).entries
    assert [entry.user_id for entry in later if isinstance(entry, Erasure)] == ["ada"]


def test_erasures_are_carried_out_as_by_a_worker_that_reads_at_once_what_it_has_published(folder: Path, tiny_model: Path) -> None:
    """And so the bytes are the same however the replay is cut into batches."""
    untouched = answers(folder, tiny_model, 1024)
    write(folder / "erasures.jsonl", [{"user_id": user, "timestamp": T0 + 60_000 * n} for user, n in (("ada", 12), ("bob", 25))])
    recording = read_folder(folder, Topics())
    variant = Variant(Settings(), Encoder(tiny_model), recording.items)
    memory, expected = variant.knowledge.memory, []
    for entry in recording.entries:
        expected += variant.pipeline.process(Batch([entry]), variant.states).outputs
        if (unlearned := memory.take_unlearned()) is not None:
            memory.merge(unlearned)
    assert [output.key for output in expected if output.value is None] == [b"ada", b"ada", b"bob", b"bob"]
    assert [output for output in expected if output.value is not None] != untouched
    for size in (1, 7, 1024):
        assert answers(folder, tiny_model, size) == expected


def test_a_stale_profile_goes_with_the_user(folder: Path, tiny_model: Path) -> None:
    write(folder / "erasures.jsonl", [{"user_id": "ada", "timestamp": T0 + 60_000 * 20}])
    recording = read_folder(folder, Topics())
    place = next(place for place, entry in enumerate(recording.entries) if isinstance(entry, Erasure)) + 1
    variant = Variant(Settings(), Encoder(tiny_model), recording.items, 600_000)
    for part, remains in ((recording.entries[:place], False), (recording.entries[place:], True)):
        events = [entry for entry in part if isinstance(entry, Event)]
        room = variant.room(len(events))
        occasions = variant.follow(part, room)[1].whole(room)
        profiles = [o.profile for event, o in zip(events, occasions, strict=True) if event.behaviour.user_id == "ada"]
        assert any(profile is not None for profile in profiles)
        if remains:
            assert profiles[0] is None


def test_a_folder_without_clicks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinesError, match=r"clicks\.jsonl"):
        read_folder(tmp_path, Topics())


def answers(folder: Path, model: Path, size: int) -> list[Output]:
    recording = read_folder(folder, Topics())
    variant = Variant(Settings(engine=Engine(batch_size=size)), Encoder(model), recording.items)
    return answered(variant, recording.entries)


def answered(variant: Variant, entries: list[Entry]) -> list[Output]:
    return [output for _, (batch,) in replay([variant], entries) for output in batch.outputs]


def test_a_replay_gives_the_same_bytes_however_it_is_cut_into_batches(folder: Path, tiny_model: Path) -> None:
    outputs = [answers(folder, tiny_model, size) for size in (1, 7, 1024)]
    assert sum(output.topic == "recommendations" for output in outputs[0]) == 80
    assert outputs[0] == outputs[1] == outputs[2]


def test_what_goes_wrong_in_the_second_process_is_raised_in_the_first(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of the second process")

    monkeypatch.setattr(Recommender, "choose", fail)
    with pytest.raises(RuntimeError, match="of the second process"):
        answers(folder, tiny_model, 7)


def test_an_answer_does_not_depend_on_what_comes_later(folder: Path, tiny_model: Path) -> None:
    recording = read_folder(folder, Topics())
    encoder = Encoder(tiny_model)
    whole, part = (
        answered(Variant(Settings(), encoder, recording.items), entries)
        for entries in (recording.entries, recording.entries[:31])
    )
    assert part == whole[: len(part)]
