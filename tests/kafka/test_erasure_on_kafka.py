"""Whoever is erased is gone: from the disk, and from our topics once Kafka has compacted them and kept its retention times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import rocksdict
from broker import KafkaBroker
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from worker_process import Sent, Worker, command, make_topics, read, running_worker, send

from stream.engine.store import compact
from stream.state import decode

PARTITIONS = 2
START = 1_756_684_800_000
# Names and queries as they would be in any file or record; the queries are already in the form in which the memory keeps them.
ERASED = [b"anna-7f3a9c", b"annastypedthis4471", b"annasuggestion9182"]
RETURNED_QUERY = b"carlstypedthis5532"
KEPT = [b"bert-2b8d1e", b"bertstypedthis6613"]
COMPACTED = ["driftstream-users-changelog", "recommendations", "drift"]
RETAINED = ["memory", "dead-letters", "erasures"]


@pytest.fixture(scope="module")
def broker(new_kafka: Callable[..., KafkaBroker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka that cleans up all the time."""
    quick = "log.initial.task.delay.ms=200\nlog.cleaner.backoff.ms=200\nlog.retention.check.interval.ms=500\n"
    with new_kafka(tmp_path_factory.mktemp("kafka"), properties=quick) as broker:
        make_topics(broker.address, PARTITIONS)
        yield broker.address


def configure(broker: str, topics: list[str], settings: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()]
    resources = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries) for topic in topics]
    for future in admin.incremental_alter_configs(resources).values():
        future.result(30)


def event(topic: str, user: bytes, number: int, when: int, **what: str) -> Sent:
    body = {"event_id": f"{when}-{number}", "user_id": user.decode(), "timestamp": when, **what}
    return Sent(topic, user, json.dumps(body).encode())


def history(user: bytes, query: bytes, when: int = START) -> list[Sent]:
    """A search and the clicks that follow, one of which says itself what was typed."""
    typed = query.decode()
    return [
        event("searches", user, 0, when, query=typed),
        event("clicks", user, 1, when + 1000, item_id="i1"),
        event("clicks", user, 2, when + 2000, item_id="i2", query=typed),
    ]


def on_disk(folder: Path, needles: list[bytes], but: str = "") -> set[bytes]:
    """Which of these byte strings are in any file below a folder, those called `but`… excepted."""
    found = set()
    for path in folder.rglob("*"):
        if but and path.name.startswith(but):
            continue
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # RocksDB has just removed it
            continue
        found |= {needle for needle in needles if needle in content or needle in path.name.encode()}
    return found


def in_topics(broker: str, topics: list[str], needles: list[bytes]) -> set[bytes]:
    """Which of these byte strings are in any record, of aborted transactions too."""
    found = set()
    for topic in topics:
        for message in read(broker, topic, **{"isolation.level": "read_uncommitted"}):
            content = b"\n".join([message.key() or b"", message.value() or b"", *(value for _, value in message.headers() or [])])
            found |= {needle for needle in needles if needle in content}
    return found


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


class Others:
    """Users of no interest, whose events keep things going: topics get new segments, and the worker writes what it knows."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._count = 0

    def go_on(self) -> None:
        users = [f"other-{self._count}-{n}".encode() for n in range(8)]
        self._count += 1
        now = int(time.time() * 1000)
        send(self._broker, [event("clicks", user, 0, now, item_id="i3") for user in users])
        send(self._broker, [Sent("erasures", user, None) for user in users])  # which the drift topic hears of too
        send(self._broker, [Sent("clicks", users[0], b"not JSON")])  # and the dead letters
        time.sleep(0.3)


def evidence(worker: Worker, user: bytes) -> list[dict[str, Any]] | None:
    try:
        return list(worker.get(f"/profiles/{user.decode()}")["evidence"])
    except HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


@contextmanager
def a_worker(broker: str, model: Path, folder: Path) -> Iterator[Worker]:
    folder.mkdir(exist_ok=True)
    with running_worker(
        broker, model, folder, PARTITIONS, guarantee="exactly_once", order_wait_ms=20, backlog_wait_ms=100
    ) as worker:
        yield worker
        assert worker.stop() == 0


@pytest.mark.timeout(900)  # four workers are started
def test_nothing_of_an_erased_user_is_left_on_disk_or_in_our_topics_after_compaction(
    broker: str, tiny_model: Path, tmp_path: Path
) -> None:
    items = [Sent("items", b"i%d" % n, json.dumps({"item_id": f"i{n}", "title": f"garden hose {n}"}).encode()) for n in range(4)]
    anna, bert, carl = ERASED[0], KEPT[0], b"carl-9d4e2a"
    state, others = tmp_path / "worker" / "state", Others(broker)
    with a_worker(broker, tiny_model, tmp_path / "worker") as worker:
        send(broker, items)
        send(broker, [*history(anna, ERASED[1]), *history(bert, KEPT[1]), *history(carl, RETURNED_QUERY)])
        send(broker, history(anna, ERASED[2], START + 86_400_000))
        send(broker, [Sent("clicks", anna, b"not JSON")])
        wait_for(lambda: [len(evidence(worker, user) or ()) for user in (anna, bert, carl)] == [6, 3, 3], "all are known")
        everything = [*ERASED, *KEPT, RETURNED_QUERY]
        # What is looked for below is there now: on disk, where the memory is written with a later batch, and in every kind of topic.
        wait_for(lambda: others.go_on() or on_disk(state / "knowledge", everything) >= {*ERASED[1:], KEPT[1]}, "it is learned")
        assert on_disk(state, everything) == set(everything)
        assert in_topics(broker, COMPACTED[:1], everything) == set(everything)
        assert anna in in_topics(broker, ["recommendations"], ERASED)
        assert anna in in_topics(broker, ["dead-letters"], ERASED)
        assert in_topics(broker, ["memory"], everything) >= {*ERASED[1:], KEPT[1], RETURNED_QUERY}

        asked = command({"BROKER__SERVERS": broker}, "erase", anna.decode(), carl.decode())
        assert asked.returncode == 0, asked.stderr
        wait_for(lambda: evidence(worker, anna) is None and evidence(worker, carl) is None, "the erasures are carried out")
        send(broker, [event("clicks", carl, 3, int(time.time() * 1000) + 1000, item_id="i3")])
        wait_for(lambda: evidence(worker, carl) is not None, "carl begins anew")
        assert [known["kind"] for known in evidence(worker, carl) or ()] == ["click"]

        gone = [*ERASED, RETURNED_QUERY]
        # RocksDB compacts without being asked. Names may stay until it is opened again, what they typed may not.
        wait_for(lambda: others.go_on() or not on_disk(state, gone, but="MANIFEST") - {anna}, "RocksDB has compacted")

        quick = {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.0"}
        configure(broker, COMPACTED, {**quick, "delete.retention.ms": "0"})
        configure(broker, COMPACTED[1:], {"min.compaction.lag.ms": "0", "max.compaction.lag.ms": "200"})
        configure(broker, RETAINED, {"segment.ms": "200", "retention.ms": "1000"})
        wait_for(lambda: others.go_on() or not in_topics(broker, COMPACTED + RETAINED, gone), "Kafka has cleaned up", 120)
        assert in_topics(broker, COMPACTED[:1], KEPT) == set(KEPT)
        assert bert in in_topics(broker, ["recommendations"], KEPT)

    # Started again, on what is on its disk and on an empty one, which is filled from the changelog: the user does not come back.
    for folder in (tmp_path / "worker", tmp_path / "new"):
        for database in {path.parent for path in folder.rglob("CURRENT")}:
            opened = rocksdict.Rdict(str(database), rocksdict.Options(raw_mode=True))
            compact(opened)
            opened.close()
        with a_worker(broker, tiny_model, folder) as worker:
            assert evidence(worker, anna) is None
            assert len(evidence(worker, bert) or ()) == 3
        assert on_disk(folder / "state", gone) == set()
        assert on_disk(folder / "state", [bert]) == {bert}
    assert on_disk(state, KEPT) == set(KEPT)


@pytest.mark.timeout(900)  # five workers are started
def test_a_worker_that_is_killed_again_and_again_erases_what_came_before_and_keeps_what_came_after(
    own_kafka: KafkaBroker, tiny_model: Path, tmp_path: Path
) -> None:
    address = own_kafka.address
    make_topics(address, PARTITIONS)
    users, per_user = [b"user-%d" % n for n in range(24)], 25
    begun = int(time.time() * 1000) - 3_600_000
    events, erased_at = [], {}
    for number in range(per_user):
        for place, user in enumerate(users):
            topic, what = (("searches", {"query": f"hose {number}"}), ("clicks", {"item_id": f"i{number}"}))[(number + place) % 2]
            events.append(event(topic, user, place, begun + 60_000 * number + place, **what))
    send(address, events)
    producer = Producer({"bootstrap.servers": address, "partitioner": "murmur2_random"})
    for place, user in enumerate(users[::2]):
        erased_at[user] = begun + 60_000 * (5 + place) + 30_000  # in between two of the user's events
        producer.produce("erasures", None, user, timestamp=erased_at[user])
    assert producer.flush(30) == 0

    # Small batches, so that every kill finds some of the erasures behind the worker and others ahead of it.
    options: dict[str, Any] = {"guarantee": "exactly_once", "batch_size": 8}
    for answered in (100, 250, 400):
        with running_worker(address, tiny_model, tmp_path, PARTITIONS, **options):
            assert len(read(address, "recommendations", at_least=answered)) >= answered
    with running_worker(address, tiny_model, tmp_path, PARTITIONS, **options) as worker:
        published = read(address, "recommendations", at_least=len(events) + len(erased_at))
        assert worker.stop() == 0
    triggers = [json.loads(message.value())["trigger"] for message in published if message.value() is not None]
    assert len({(t["topic"], t["partition"], t["offset"]) for t in triggers}) == len(triggers) == len(events)
    tombstones = [message.key() for message in published if message.value() is None]
    assert sorted(tombstones) == sorted(erased_at)
    states: dict[bytes, bytes | None] = {m.key(): m.value() for m in read(address, "driftstream-users-changelog")}
    kept = {user: [b.time for b in decode(state).window.behaviours] for user, state in states.items() if state is not None}
    expected = {}
    for place, user in enumerate(users):
        times = [begun + 60_000 * number + place for number in range(per_user)]
        expected[user] = [moment for moment in times if moment > erased_at.get(user, 0)]
    assert any(0 < len(times) < per_user for times in expected.values())
    assert kept == {user: times for user, times in expected.items() if times}
