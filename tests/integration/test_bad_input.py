"""Bad input is an everyday matter: what cannot be used is set aside with a reason, and everything else is answered.

One worker gets the whole stream: good events, and between them all that a careless producer may send.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Message
from worker_process import Place, Sent, make_topics, places, read, recommendations, running_broker, running_worker, send

START = 1_756_684_800_000  # 2025-09-01T00:00:00Z
DAY = 86_400_000
PARTITIONS = 4
MEGABYTE = 1_000_000


def search(event_id: str, user_id: str, query: Any, timestamp: Any) -> dict[str, Any]:
    return {"event_id": event_id, "user_id": user_id, "query": query, "timestamp": timestamp}


def click(event_id: str, user_id: str, item_id: str, timestamp: Any, **more: Any) -> dict[str, Any]:
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "timestamp": timestamp, **more}


def record(topic: str, event: dict[str, Any]) -> Sent:
    return Sent(topic, event["user_id"].encode(), json.dumps(event).encode())


def without(event: dict[str, Any], name: str) -> bytes:
    return json.dumps({key: value for key, value in event.items() if key != name}).encode()


def item(item_id: str, title: str) -> Sent:
    return Sent("items", item_id.encode(), json.dumps({"item_id": item_id, "title": title}).encode())


TITLES = ["copper kettle", "running shoes", "garden hose", "wireless headphones", "wool blanket", "purple teapot"]
ITEMS = [item(f"i{number}", title) for number, title in enumerate(TITLES)]
REMOVED = "i5"

_SEARCH = search("bad", "anna", "kettle", START)
_CLICK = click("bad", "anna", "i0", START)


def _at(timestamp: Any) -> Sent:
    return Sent("searches", b"anna", json.dumps({**_SEARCH, "timestamp": timestamp}).encode())


def _search(**changed: Any) -> Sent:
    return Sent("searches", b"anna", json.dumps(_SEARCH | changed).encode())


def _click(**changed: Any) -> Sent:
    return Sent("clicks", b"anna", json.dumps(_CLICK | changed).encode())


# What is sent, and the field that the reason has to begin with; "value" where the record as a whole is at fault.
BAD: dict[str, tuple[Sent, str]] = {
    "not JSON": (Sent("searches", b"anna", b"{not json"), "value"),
    "an empty value": (Sent("searches", b"anna", b""), "value"),
    "JSON cut short": (Sent("clicks", b"anna", json.dumps(_CLICK).encode()[:-9]), "value"),
    "JSON and more": (Sent("clicks", b"anna", json.dumps(_CLICK).encode() + b"{}"), "value"),
    "a JSON list": (Sent("searches", b"anna", b"[1, 2]"), "value"),
    "not UTF-8": (Sent("searches", b"anna", json.dumps(_SEARCH).encode().replace(b"kettle", b"kett\xff\xfe")), "value"),
    "JSON nested ten thousand deep": (Sent("searches", b"anna", b'{"page": ' * 10_000 + b"1" + b"}" * 10_000), "value"),
    "an item nested ten thousand deep": (Sent("items", b"i9", b'{"attributes": ' * 10_000 + b"1" + b"}" * 10_000), "value"),
    "a null value": (Sent("searches", b"anna", None), "value"),
    "a null value of a click": (Sent("clicks", b"anna", None), "value"),
    "no event_id": (Sent("searches", b"anna", without(_SEARCH, "event_id")), "event_id"),
    "no user_id": (Sent("searches", b"anna", without(_SEARCH, "user_id")), "user_id"),
    "no query": (Sent("searches", b"anna", without(_SEARCH, "query")), "query"),
    "no timestamp": (Sent("searches", b"anna", without(_SEARCH, "timestamp")), "timestamp"),
    "no item_id": (Sent("clicks", b"anna", without(_CLICK, "item_id")), "item_id"),
    "a number for event_id": (_search(event_id=5), "event_id"),
    "an empty event_id": (_search(event_id=""), "event_id"),
    "an object for user_id": (_search(user_id={"id": "anna"}), "user_id"),
    "a number for query": (_search(query=12), "query"),
    "null for query": (_search(query=None), "query"),
    "a query of 1 MB": (_search(query="q" * MEGABYTE), "query"),
    "a list for item_id": (_click(item_id=["i0"]), "item_id"),
    "a text for position": (_click(position="first"), "position"),
    "a negative position": (_click(position=-1), "position"),
    "another user's key": (Sent("searches", b"bert", json.dumps(_SEARCH).encode()), "key"),
    "a key that is not UTF-8": (Sent("clicks", b"\xff\xfe", json.dumps(_CLICK).encode()), "key"),
    "no key": (Sent("clicks", None, json.dumps(_CLICK).encode()), "key"),
    "a negative timestamp": (_at(-START), "timestamp"),
    "a timestamp in seconds": (_at(START // 1000), "timestamp"),
    "NaN for timestamp": (_at(float("nan")), "value"),  # no JSON: no field can be told
    "the text NaN for timestamp": (_at("NaN"), "timestamp"),
    "a fraction for timestamp": (_at(START + 0.5), "timestamp"),
    "true for timestamp": (_at(True), "timestamp"),
    "null for timestamp": (_at(None), "timestamp"),
    "a timestamp a thousand years ahead": (_at(START + 365_250 * DAY), "timestamp"),
    "a timestamp a thousand years ago": (_at(START - 365_250 * DAY), "timestamp"),
    "a timestamp of a thousand years ago as text": (_at("1025-09-01T00:00:00Z"), "timestamp"),
    "a timestamp beyond 64 bits": (_at(10**30), "timestamp"),
    "a timestamp that is no time": (_at("yesterday"), "timestamp"),
    "a timestamp without a zone": (_at("2025-09-01T10:00:00"), "timestamp"),
    "an item that is not JSON": (Sent("items", b"i9", b"{"), "value"),
    "an item without a title": (Sent("items", b"i9", b'{"item_id": "i9"}'), "title"),
    "an item under another key": (Sent("items", b"i8", b'{"item_id": "i9", "title": "chair"}'), "key"),
    "an item without a key": (Sent("items", None, b'{"item_id": "i9", "title": "chair"}'), "key"),
}

# Unusual, and yet answered.
ODD: dict[str, Sent] = {
    "an empty query": record("searches", search("odd-1", "odd", "", START + 1)),
    "a blank query": record("searches", search("odd-2", "odd", "   ", START + 2)),
    "an unknown item": record("clicks", click("odd-3", "odd", "never-seen", START + 3)),
    "a field that nobody asked for": record("searches", search("odd-4", "odd", "hose", START + 4) | {"page": 2}),
    "RFC 3339 with a zone": record("searches", search("odd-5", "odd", "shoes", "2025-09-01T02:00:00.005+02:00")),
    "a long query in another script": record("searches", search("odd-6", "odd", "чайник 🫖 " * 80, START + 6)),
    "an event": record("searches", search("twice", "odd", "blanket", START + 7)),
    "the same event again": record("searches", search("twice", "odd", "blanket", START + 7)),
    "an event a day late": record("searches", search("late", "odd", "headphones", START - DAY)),
}


@dataclass
class Run:
    """What went in, and what had come out when the worker had stopped."""

    good: list[Place] = field(default_factory=list)
    odd: dict[str, Place] = field(default_factory=dict)
    bad: dict[str, Place] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    answers: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: dict[Place, list[Message]] = field(default_factory=dict)
    status: int = -1
    before_removal: dict[str, Any] = field(default_factory=dict)
    after_removal: dict[str, Any] = field(default_factory=dict)

    def answer(self, place: Place) -> dict[str, Any]:
        [found] = [a for a, p in zip(self.answers, places(self.answers), strict=True) if p == place]
        return found


def _good(number: int) -> Sent:
    user, moment = f"user-{number % 7}", START + 1000 * number
    if number % 3:
        return record("clicks", click(f"good-{number}", user, f"i{number % 5}", moment, query=TITLES[number % 5]))
    return record("searches", search(f"good-{number}", user, TITLES[number % 5], moment))


@contextmanager
def embedded(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    with running_broker(PARTITIONS) as broker:
        yield broker, "at_least_once"


@contextmanager
def kafka(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    broker = request.getfixturevalue("own_kafka").address
    make_topics(broker, PARTITIONS)
    yield broker, "exactly_once"


@pytest.fixture(scope="module", params=[embedded, kafka], ids=["embedded", "kafka-exactly-once"])
def run(request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One worker, and everything sent to it in one stream."""
    run = Run()
    with request.param(request) as (broker, guarantee):
        send(broker, ITEMS)
        folder = tmp_path_factory.mktemp("worker")
        with running_worker(broker, model_folder, folder, PARTITIONS, guarantee=guarantee) as worker:
            probe = record("searches", search("probe", "probe", "purple teapot", START))
            run.good += send(broker, [probe])
            [run.before_removal] = recommendations(broker, at_least=1)
            send(broker, [Sent("items", REMOVED.encode(), None)])
            if guarantee == "exactly_once":
                # A real broker does not let a record without a key into a compacted topic in the first place.
                run.refused = {"an item without a key"}
                with pytest.raises(KafkaException, match="INVALID_RECORD"):
                    send(broker, [BAD[name][0] for name in run.refused])
            unusual = [("bad", name, sent) for name, (sent, _) in BAD.items() if name not in run.refused] + [
                ("odd", name, sent) for name, sent in ODD.items()
            ]
            stream = []
            for number, entry in enumerate(unusual):
                stream += [("good", "", _good(number)), entry]
            for (kind, name, _), place in zip(stream, send(broker, [sent for _, _, sent in stream]), strict=True):
                if kind == "good":
                    run.good.append(place)
                else:
                    getattr(run, kind)[name] = place
            expected = len(run.good) + len(run.odd)
            recommendations(broker, at_least=expected)
            worker.check()
            # The catalogue is read beside the events, so that it is not said which of them sees a change first.
            for number in range(20):
                run.good += send(broker, [record("searches", search(f"probe-{number}", "probe", "purple teapot", START + DAY))])
                expected += 1
                found = recommendations(broker, at_least=expected)
                [run.after_removal] = [a for a, p in zip(found, places(found), strict=True) if p == run.good[-1]]
                if REMOVED not in {i["item_id"] for i in run.after_removal["items"]}:
                    break
                time.sleep(0.2)
            read(broker, "dead-letters", at_least=len(run.bad))
            run.status = worker.stop()
        run.answers = recommendations(broker)
        for message in read(broker, "dead-letters"):
            headers = dict(message.headers())
            place = Place(headers["topic"].decode(), int(headers["partition"]), int(headers["offset"]))
            run.dead_letters.setdefault(place, []).append(message)
        yield run


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_set_aside_as_it_came_with_a_reason_that_names_the_field(run: Run, name: str) -> None:
    sent, at_fault = BAD[name]
    if name in run.refused:
        assert name not in run.bad
        return
    [letter] = run.dead_letters[run.bad[name]]
    # The client has no word for "no bytes": None is a null, b"" is an empty value or key.
    assert letter.value() == sent.value
    assert letter.key() == sent.key
    headers = dict(letter.headers())
    assert set(headers) == {"topic", "partition", "offset", "error"}
    field_name, _, reason = headers["error"].decode().partition(": ")
    assert field_name == at_fault
    assert 3 < len(reason) < 200


def test_nothing_else_is_set_aside(run: Run) -> None:
    assert set(run.dead_letters) == set(run.bad.values())


def test_all_other_events_are_answered_exactly_once(run: Run) -> None:
    answered = Counter(places(run.answers))
    assert answered == Counter([*run.good, *run.odd.values()])


@pytest.mark.parametrize("name", ODD)
def test_what_is_merely_unusual_is_answered(run: Run, name: str) -> None:
    answer = run.answer(run.odd[name])
    event = json.loads(ODD[name].value or b"")
    assert answer["user_id"] == event["user_id"]
    assert answer["trigger"]["event_id"] == event["event_id"]
    suggested = [i["item_id"] for i in answer["items"]]
    assert suggested
    assert len(set(suggested)) == len(suggested)


def test_a_repeated_event_gets_an_answer_that_is_recognisable_as_a_repeat(run: Run) -> None:
    first, again = run.answer(run.odd["an event"]), run.answer(run.odd["the same event again"])
    assert first["trigger"]["offset"] != again["trigger"]["offset"]
    assert first["recommendation_id"] == again["recommendation_id"]


def test_an_item_that_was_removed_is_no_longer_recommended(run: Run) -> None:
    assert run.before_removal["items"][0]["item_id"] == REMOVED
    assert REMOVED not in {i["item_id"] for i in run.after_removal["items"]}


def test_the_worker_ends_as_if_nothing_had_happened(run: Run) -> None:
    assert run.status == 0
