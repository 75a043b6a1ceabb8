import json
from contextlib import closing
from pathlib import Path

import pytest

from model_export.data import DataError, Source, Span
from stream.engine.embedded_broker import EmbeddedBroker
from stream.feed import Feeder
from stream.lines import behaviour_line, item_line, read_lines

DAY = 86_400_000
NOON = 1_700_000_000_000


def search(user: str, event: str, query: str, time: int | str) -> dict[str, object]:
    return {"event_id": event, "user_id": user, "query": query, "timestamp": time}


def click(user: str, event: str, item: str, time: int | str) -> dict[str, object]:
    return {"event_id": event, "user_id": user, "item_id": item, "timestamp": time}


def write(folder: Path, **files: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


ITEMS: list[dict[str, object]] = [{"item_id": "hose", "title": "Garden hose"}, {"item_id": "shoe", "title": "Red shoe"}]


class TestALog:
    def test_is_in_event_time_with_a_search_before_a_click_of_the_same_instant(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path,
            items=ITEMS,
            clicks=[click("a", "c2", "hose", NOON + 5), click("a", "c1", "shoe", NOON)],
            searches=[search("a", "s1", "hose", NOON + 5)],
        )
        events = Source(folder).read().events
        assert [event.behaviour.event_id for event in events] == ["c1", "s1", "c2"]

    def test_has_each_event_once_and_none_that_the_worker_would_refuse(self, tmp_path: Path) -> None:
        twice = click("a", "c1", "hose", NOON)
        clicks = [twice, twice, click("b", "c1", "hose", NOON), click("a", "c2", "hose", 17), click("a", "c3", "", NOON)]
        log = Source(write(tmp_path, items=[*ITEMS, {"item_id": "untitled"}], clicks=clicks)).read()
        assert [(e.behaviour.user_id, e.behaviour.event_id) for e in log.events] == [("a", "c1"), ("b", "c1")]
        assert log.refused == 3
        assert set(log.items) == {"hose", "shoe"}

    def test_holds_the_events_from_since_on_and_before_until_in_utc(self, tmp_path: Path) -> None:
        times = ["2011-09-19T23:59:59.999Z", "2011-09-20T00:00:00Z", "2011-09-20T23:59:59Z", "2011-09-21T00:00:00+00:00"]
        clicks = [click("a", f"c{n}", "hose", time) for n, time in enumerate(times)]
        folder = write(tmp_path, items=ITEMS, clicks=clicks)
        log = Source(folder, Span.parse("2011-09-20", "2011-09-21")).read()
        assert [event.behaviour.event_id for event in log.events] == ["c1", "c2"]
        assert Span.parse("1316476800000", None).since == Span.parse("2011-09-20", None).since == 1316476800000

    def test_splits_into_past_and_future_without_overlap_or_gap(self, tmp_path: Path) -> None:
        clicks = [click("a", f"c{n}", "hose", NOON + n // 3 * DAY) for n in range(20)]
        log = Source(write(tmp_path, items=ITEMS, clicks=clicks)).read()
        moment = log.time_at(0.8)
        past, future = log.before(moment), log.since(moment)
        assert past.events + future.events == log.events
        assert past.events[-1].time < moment == future.events[0].time


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [("yesterday", None, "is no time"), ("2011-09-20", "2011-09-20", "nothing is from"), (None, "20110230", "is no time")],
)
def test_a_span_that_is_none_is_refused(since: str | None, until: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Span.parse(since, until)


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks clicks\.jsonl"):
        Source(write(tmp_path, items=ITEMS)).read()


def test_a_log_without_events_cannot_be_split(tmp_path: Path) -> None:
    folder = write(tmp_path, items=ITEMS, clicks=[click("a", "c1", "hose", NOON)])
    with pytest.raises(DataError, match="no usable searches or clicks"):
        Source(folder, Span.parse(None, "2011-01-01")).read().time_at(0.8)


def test_the_topics_give_the_log_that_the_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = [click(f"u{n}", f"c{n}", "hose", NOON + n) for n in range(20)]
    searches = [search(f"u{n}", f"s{n}", "garden", NOON + n) for n in range(20)]
    folder = write(tmp_path, items=ITEMS, clicks=[*clicks, {"event_id": "broken"}], searches=searches)
    span = Span(NOON + 3, NOON + 15)
    with EmbeddedBroker({"searches": 4, "clicks": 4, "items": 1}) as broker:
        monkeypatch.setenv("DRIFTSTREAM_BROKER__SERVERS", broker.address)
        with closing(Feeder({"bootstrap.servers": broker.address})) as feeder:
            for topic, as_line in (("items", item_line), ("searches", behaviour_line), ("clicks", behaviour_line)):
                feeder.send([as_line(topic, line) for line in read_lines(folder / f"{topic}.jsonl")])
        read = Source(None, span).read()
    expected = Source(folder, span).read()
    # Events of one instant come in the order of their partitions.
    assert {event.behaviour for event in read.events} == {event.behaviour for event in expected.events}
    assert [event.time for event in read.events] == [event.time for event in expected.events]
    assert (read.items, read.refused) == (expected.items, expected.refused) == (expected.items, 1)


def test_a_topic_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedBroker({"searches": 1, "clicks": 1}) as broker, pytest.raises(DataError, match="topic nothing\\.items"):
        monkeypatch.setenv("DRIFTSTREAM_BROKER__SERVERS", broker.address)
        monkeypatch.setenv("DRIFTSTREAM_TOPICS__PREFIX", "nothing.")
        Source(None).read()
