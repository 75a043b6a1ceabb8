"""A worker on a real Kafka when something goes wrong: what it says, and that nothing is lost."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos import lag
from confluent_kafka.admin import AdminClient
from scenario import events, items
from verify import verify
from worker_process import Sent, command, environment, running_worker, send

from stream import topics
from stream.connection import Broker
from stream.settings import Settings, Topics

SABOTAGE = Path(__file__).parents[1] / "integration" / "sabotage.py"
EVENTS = 3_000


@dataclass
class Cluster:
    """A group with topics of its own on the broker that the tests share."""

    settings: Settings
    model: Path

    @property
    def address(self) -> str:
        return self.settings.broker.servers

    def environment(self, folder: Path, **more: object) -> dict[str, object]:
        """What a worker needs to know, by the names of the environment."""
        return {
            "BROKER__SERVERS": self.address,
            "BROKER__GROUP": self.settings.broker.group,
            "TOPICS__PREFIX": self.settings.topics.prefix,
            "MODEL__FOLDER": self.model,
            "ENGINE__GUARANTEE": "exactly_once",
            "ENGINE__STATE_FOLDER": folder,
            **more,
        }

    def feed(self, records: list[Sent]) -> None:
        prefix = self.settings.topics.prefix
        send(self.address, [record._replace(topic=prefix + record.topic) for record in records])

    def check(self) -> dict[str, int]:
        return verify(self.address, self.model, self.settings)

    def wait_until_consumed(self) -> None:
        deadline = time.monotonic() + 90
        while (left := lag(self.settings)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == 0


@pytest.fixture
def cluster(kafka: str, tiny_model: Path) -> Iterator[Cluster]:
    name = f"t{uuid.uuid4().hex[:8]}"
    settings = Settings(broker=Broker(servers=kafka, group=name), topics=Topics(prefix=f"{name}-"))
    topics.ensure(settings)
    made = Cluster(settings, tiny_model)
    made.feed([Sent(*record) for record in items(50)])
    yield made
    AdminClient({"bootstrap.servers": kafka}).delete_topics([topic.name for topic in topics.plan(settings)])


def records(count: int = EVENTS) -> list[Sent]:
    return [Sent(*record) for record in events(count, seed=5, users=60, catalogue=50)]


ALL_IS_WELL = {
    "inputs": EVENTS,
    "lost": 0,
    "duplicated": 0,
    "other_id": 0,
    "strangers": 0,
    "state_mismatches": 0,
    "popularity_mismatches": 0,
}


def test_a_worker_that_was_paused_past_its_session_commits_nothing_when_it_wakes_up(cluster: Cluster, tmp_path: Path) -> None:
    paused_folder, other_folder = tmp_path / "paused", tmp_path / "other"
    paused_folder.mkdir()
    other_folder.mkdir()
    more = cluster.environment(paused_folder / "state")
    more |= {"ENGINE__BATCH_SIZE": 64, "TOPICS__PARTITIONS": 4}
    with running_worker(cluster.address, cluster.model, paused_folder, 4, more) as paused:
        cluster.feed(records())
        deadline = time.monotonic() + 60
        while "driftstream_events_total 0.0" in metrics(paused.url) and time.monotonic() < deadline:
            time.sleep(0.01)
        paused.process.send_signal(signal.SIGSTOP)  # in the middle of the backlog
        try:
            more["ENGINE__STATE_FOLDER"] = other_folder / "state"
            with running_worker(cluster.address, cluster.model, other_folder, 4, more) as other:
                cluster.wait_until_consumed()
                paused.process.send_signal(signal.SIGCONT)
                deadline = time.monotonic() + 60
                while "moved on without this worker" not in paused.log.read_text() and time.monotonic() < deadline:
                    time.sleep(0.1)
                paused.wait_until_ready()
                assert other.stop() == 0
            cluster.wait_until_consumed()
            assert paused.stop() == 0
        finally:
            paused.process.send_signal(signal.SIGCONT)
    assert "moved on without this worker" in paused.log.read_text()
    assert cluster.check() == ALL_IS_WELL


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
        return str(response.read().decode())


def test_a_worker_that_is_stopped_while_it_joins_does_not_wait_for_a_dead_member(cluster: Cluster, tmp_path: Path) -> None:
    patient = cluster.environment(tmp_path / "dead") | {"BROKER__SESSION_TIMEOUT_MS": 60_000}
    with running_worker(cluster.address, cluster.model, tmp_path, 4, patient) as dead:
        dead.process.kill()
    log = tmp_path / "joining.log"
    settings = environment({**patient, "ENGINE__STATE_FOLDER": tmp_path / "joining", "WEB__ENABLED": False})
    with log.open("wb") as file:
        joining = subprocess.Popen(
            [sys.executable, "-m", "stream", "worker"], env=settings, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 60
        while "(Re-)joining group" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        joining.send_signal(signal.SIGTERM)
        assert joining.wait(30) == 0
    finally:
        joining.kill()
    assert "Joined group" not in log.read_text()


def test_a_state_folder_of_something_else_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    label = {"cluster": "another", "group": cluster.settings.broker.group, "partitions": 4, "worker_id": "w"}
    (tmp_path / "driftstream.json").write_text(json.dumps(label))
    done = command(cluster.environment(tmp_path), "worker")
    assert done.returncode == 1
    assert f"{tmp_path} is the state of cluster another, not of cluster" in " ".join(done.stderr.split())


def test_two_workers_do_not_share_a_state_folder(cluster: Cluster, tmp_path: Path) -> None:
    more = cluster.environment(tmp_path / "state")
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more):
        done = command(cluster.environment(tmp_path / "state"), "worker")
    assert done.returncode == 1
    assert "another worker uses" in done.stderr


def test_a_damaged_state_folder_stops_the_worker_and_moving_it_away_restores_everything(cluster: Cluster, tmp_path: Path) -> None:
    more = cluster.environment(tmp_path / "state")
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        cluster.feed(records())
        cluster.wait_until_consumed()
        assert worker.stop() == 0
    damaged = next((tmp_path / "state").rglob("users-0.db")) / "CURRENT"
    damaged.write_bytes(b"rubbish")
    done = command(cluster.environment(tmp_path / "state", WEB__ENABLED=False), "worker")
    assert done.returncode == 1
    assert "users-0.db is damaged" in done.stderr
    assert "Move it away: it is restored from the changelog" in done.stderr
    (tmp_path / "state").rename(tmp_path / "damaged")
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        assert worker.get("/profiles/user-1")["evidence"]
        assert worker.stop() == 0
    assert cluster.check() == ALL_IS_WELL


def test_an_emptied_changelog_stops_the_worker_with_a_way_out(cluster: Cluster, tmp_path: Path) -> None:
    more = cluster.environment(tmp_path / "state")
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        cluster.feed(records(300))
        cluster.wait_until_consumed()
        assert worker.stop() == 0
    name = f"{cluster.settings.broker.group}-users-changelog"
    admin = AdminClient({"bootstrap.servers": cluster.address})
    admin.delete_topics([name])[name].result(30)
    deadline = time.monotonic() + 30
    while name in admin.list_topics(timeout=10).topics and time.monotonic() < deadline:
        time.sleep(0.1)
    done = command(cluster.environment(tmp_path / "state", WEB__ENABLED=False), "worker")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "the changelog was emptied or made anew" in said
    assert "move that folder away" in said


def test_a_full_disk_stops_the_worker_and_nothing_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    # Each batch writes the states that it has changed, until RocksDB has too many of them in memory and wants them in files.
    more = cluster.environment(tmp_path / "state", ENGINE__BATCH_SIZE=8, ENGINE__ROCKSDB_MB=8)
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        # No file may grow beyond this, less than the states make: to RocksDB that is a disk with no room left.
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (16_384, 16_384))
        cluster.feed(records())
        assert worker.process.wait(90) != 0
    said = worker.log.read_text()
    assert "cannot be written" in said
    assert "Make room on the disk" in said
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        cluster.wait_until_consumed()
        logs = list((tmp_path / "state").rglob("users-*.db/*.log"))
        assert logs
        assert not any(log.stat().st_size for log in logs)  # neither we nor Faust write anything to RocksDB's own
        assert worker.stop() == 0
    assert cluster.check() == ALL_IS_WELL


def test_a_member_that_does_not_read_the_states_gets_no_events(cluster: Cluster, tmp_path: Path) -> None:
    lame = environment(cluster.environment(tmp_path / "lame", WEB__ENABLED=False))
    log = tmp_path / "lame.log"
    with running_worker(cluster.address, cluster.model, tmp_path, 4, cluster.environment(tmp_path / "state")) as worker:
        cluster.feed(records()[: EVENTS // 2])
        cluster.wait_until_consumed()
        program = [sys.executable, SABOTAGE, "the_changelog_is_not_read", "worker"]
        with log.open("w") as said, subprocess.Popen(program, env=lame, stdout=said, stderr=said) as process:
            try:
                deadline = time.monotonic() + 60
                while "newly assigned partitions" not in log.read_text() and time.monotonic() < deadline:
                    time.sleep(0.1)
                cluster.feed(records()[EVENTS // 2 :])
                cluster.wait_until_consumed()
            finally:
                process.kill()
        assert worker.stop() == 0
    assert "newly assigned partitions set()" in log.read_text()
    assert cluster.check() == ALL_IS_WELL


def test_the_verifier_finds_the_losses_of_a_checkpoint_in_the_wrong_order(cluster: Cluster, tmp_path: Path) -> None:
    more = cluster.environment(tmp_path / "state") | {"ENGINE__GUARANTEE": "at_least_once", "ENGINE__BATCH_SIZE": 64}
    wrong_order = (SABOTAGE, "offsets_before_results")
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more, program=wrong_order) as worker:
        cluster.feed(records(600))
        assert worker.process.wait(60) == -signal.SIGKILL
    with running_worker(cluster.address, cluster.model, tmp_path, 4, more) as worker:
        cluster.wait_until_consumed()
        assert worker.stop() == 0
    found = cluster.check()
    assert found["lost"] > 0
    assert found["state_mismatches"] > 0
