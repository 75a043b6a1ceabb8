"""Stopping and starting again, repeating a run, and splitting it over partitions: none of them changes what is learned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import msgspec
import pytest
import rocksdict
from faust.stores.rocksdb import Store
from worker_process import Sent, Worker, places, read, recommendations, running_broker, running_worker, send

from stream import sample
from stream.events import Click, Search

EVENTS = 600

_made = sample.make()
CATALOGUE = [Sent("items", item.item_id.encode(), msgspec.json.encode(item)) for item in _made.items]
_events: list[Search | Click] = sorted([*_made.searches, *_made.clicks], key=lambda event: event.timestamp)[:EVENTS]
STREAM = [
    Sent("searches" if isinstance(event, Search) else "clicks", event.user_id.encode(), msgspec.json.encode(event))
    for event in _events
]
LAST_SEEN = {event.user_id: event.timestamp for event in _events}


@dataclass
class Result:
    """What a run has left: users' states as they lie on disk, profiles as the worker shows them, and what was published."""

    states: dict[bytes, bytes]
    profiles: dict[str, Any]
    published: list[tuple[int, bytes | None, bytes | None]]


def _profiles(worker: Worker) -> dict[str, Any]:
    """Ask for every user. A state is written just after the recommendation is out: wait for each user's last event."""
    deadline = time.monotonic() + 10
    profiles: dict[str, Any] = {}
    for user, last in LAST_SEEN.items():
        while True:
            try:
                profiles[user] = worker.get(f"/profiles/{quote(user)}")
                if profiles[user]["evidence"][0]["timestamp"] == last:
                    break
            except HTTPError as error:
                error.close()
                if error.code != 404:
                    raise
            assert time.monotonic() < deadline, f"{user}: the last event did not arrive: {profiles.get(user)}"
            time.sleep(0.02)
    return profiles


def _states(folder: Path) -> dict[bytes, bytes]:
    databases = [path.parent for path in (folder / "state").rglob("CURRENT") if path.parent.name != "knowledge"]
    states: dict[bytes, bytes] = {}
    for database in databases:
        disk = rocksdict.Rdict(str(database), rocksdict.Options(raw_mode=True), access_type=rocksdict.AccessType.read_only())
        for key, value in disk.items():
            if key != Store.offset_key:
                assert key not in states, f"{key!r} is in two partitions"
                states[key] = value
        disk.close()
    return states


@contextmanager
def _worker(broker: str, model: Path, folder: Path, partitions: int, **engine: int) -> Iterator[Worker]:
    with running_worker(broker, model, folder, partitions, **engine) as worker:
        yield worker
        assert worker.stop() == 0


def _result(broker: str, folder: Path, profiles: dict[str, Any]) -> Result:
    published = [(m.partition(), m.key(), m.value()) for m in read(broker, "recommendations")]
    return Result(_states(folder), profiles, published)


def _run_through(model: Path, folder: Path, partitions: int) -> Result:
    with running_broker(partitions) as broker:
        send(broker, [*CATALOGUE, *STREAM])
        with _worker(broker, model, folder, partitions) as worker:
            recommendations(broker, at_least=EVENTS)
            profiles = _profiles(worker)
        return _result(broker, folder, profiles)


def _run_interrupted(model: Path, folder: Path, partitions: int, between: Callable[[], None] = lambda: None) -> Result:
    """Stop the worker while it works through the first half, then go on with the rest of it and the second half."""
    with running_broker(partitions) as broker:
        send(broker, [*CATALOGUE, *STREAM[: EVENTS // 2]])
        with _worker(broker, model, folder, partitions, batch_size=16):
            recommendations(broker, at_least=EVENTS // 6)
        answered = places(recommendations(broker))
        assert len(answered) <= EVENTS // 2
        between()
        send(broker, STREAM[EVENTS // 2 :])
        with _worker(broker, model, folder, partitions) as worker:
            recommendations(broker, at_least=EVENTS)
            profiles = _profiles(worker)
        return _result(broker, folder, profiles)


@pytest.fixture(scope="module")
def in_one_partition(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return _run_through(model_folder, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def in_four_partitions(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return _run_through(model_folder, tmp_path_factory.mktemp("four"), 4)


def _assert_same_people(one: Result, other: Result) -> None:
    assert set(one.states) == {user.encode() for user in LAST_SEEN}
    assert one.states == other.states
    assert one.profiles == other.profiles


def test_every_event_is_answered_once(in_one_partition: Result, in_four_partitions: Result) -> None:
    for result in (in_one_partition, in_four_partitions):
        answered = [json.loads(value or b"")["trigger"]["event_id"] for _, _, value in result.published]
        assert sorted(answered) == sorted(event.event_id for event in _events)


def test_two_runs_with_one_partition_publish_the_same_bytes(in_one_partition: Result, model_folder: Path, tmp_path: Path) -> None:
    again = _run_through(model_folder, tmp_path, 1)
    assert again.published == in_one_partition.published
    _assert_same_people(again, in_one_partition)


def test_four_partitions_lead_to_the_same_profiles_and_drift_states_as_one(
    in_one_partition: Result, in_four_partitions: Result
) -> None:
    _assert_same_people(in_four_partitions, in_one_partition)
    drift = {user: profile["drift"] for user, profile in in_four_partitions.profiles.items()}
    assert drift == {user: profile["drift"] for user, profile in in_one_partition.profiles.items()}


def test_a_worker_stopped_in_the_middle_and_started_again_ends_with_the_same_profiles(
    in_four_partitions: Result, model_folder: Path, tmp_path: Path
) -> None:
    interrupted = _run_interrupted(model_folder, tmp_path, 4)
    _assert_same_people(interrupted, in_four_partitions)
    # A stop that was asked for leaves nothing half done: no event is answered twice.
    assert len(interrupted.published) == EVENTS


def test_a_worker_that_lost_its_disk_ends_with_the_same_profiles(
    in_four_partitions: Result, model_folder: Path, tmp_path: Path
) -> None:
    def lose_the_disk() -> None:
        (tmp_path / "state").rename(tmp_path / "lost")

    interrupted = _run_interrupted(model_folder, tmp_path, 4, lose_the_disk)
    _assert_same_people(interrupted, in_four_partitions)
