"""An event at which a step crashes is set aside; all others are answered, and learned exactly once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from worker_process import Sent, command, environment, read, recommendations, running_broker, running_worker, send

from stream.recommend.memory import Memory
from stream.settings import Recommend

SABOTAGE = Path(__file__).with_name("sabotage.py")
BEGIN = 1_767_225_600_000


def item(number: int) -> Sent:
    body = {"item_id": f"i{number}", "title": f"garden hose {number}"}
    return Sent("items", body["item_id"].encode(), json.dumps(body).encode())


def click(number: int, user: str, item_id: str) -> Sent:
    body = {"event_id": f"c{number}", "user_id": user, "item_id": item_id, "timestamp": BEGIN + number * 1000}
    return Sent("clicks", user.encode(), json.dumps(body).encode())


def search(number: int, user: str, query: str) -> Sent:
    body = {"event_id": f"s{number}", "user_id": user, "query": query, "timestamp": BEGIN + number * 1000}
    return Sent("searches", user.encode(), json.dumps(body).encode())


CATALOGUE = [item(number) for number in range(5)]
EVENTS = [click(number, f"user-{number % 7}", f"i{number % 5}") for number in range(60)]


def popularity(broker: str) -> dict[str, float]:
    """Clicks by item, decayed to the end, as the workers of a cluster come to know them."""
    memory = Memory(Recommend())
    for message in read(broker, "memory"):
        memory.merge(message.value())
    return {f"i{number}": round(memory.popularity(f"i{number}", BEGIN + 60_000), 6) for number in range(5)}


def test_an_event_that_crashes_a_step_goes_to_the_dead_letters_and_the_stream_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    poisoned = [*EVENTS[:30], search(30, "victim", "poison"), *EVENTS[30:]]
    outcomes: list[tuple[dict[str, Any], dict[str, float]]] = []
    for name, events in (("without", EVENTS), ("with", poisoned)):
        folder = tmp_path / name
        folder.mkdir()
        with running_broker(1) as broker:
            send(broker, [*CATALOGUE, *events])
            with running_worker(broker, tiny_model, folder, 1, program=(SABOTAGE, "a_query_crashes_a_step")) as worker:
                answers = recommendations(broker, at_least=60)
                dead = read(broker, "dead-letters", at_least=len(events) - 60)
                profiles = {user: worker.get(f"/profiles/{user}") for user in (f"user-{n}" for n in range(7))}
                assert worker.stop() == 0
            assert sorted(answer["trigger"]["event_id"] for answer in answers) == sorted(f"c{n}" for n in range(60))
            outcomes.append((profiles, popularity(broker)))
    assert len(dead) == 1
    headers = {name: value.decode() for name, value in dead[0].headers()}
    assert dead[0].value() == poisoned[30].value
    assert headers["error"] == "pipeline: ZeroDivisionError: poison"
    assert outcomes[0] == outcomes[1], "what was learned from the others is as if the poisonous one had never been"


def test_a_crash_that_passes_costs_no_event(tiny_model: Path, tmp_path: Path) -> None:
    with running_broker(1) as broker:
        send(broker, [*CATALOGUE, *EVENTS[:1]])
        with running_worker(broker, tiny_model, tmp_path, 1, program=(SABOTAGE, "a_step_crashes_once")) as worker:
            assert len(recommendations(broker, at_least=1)) == 1
            assert worker.stop() == 0
        assert read(broker, "dead-letters") == []


def test_a_worker_at_which_every_event_crashes_stops_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    many = [click(number, "user", "i1") for number in range(40)]
    with running_broker(1) as broker:
        send(broker, [*CATALOGUE, *many])
        with running_worker(broker, tiny_model, tmp_path, 1, program=(SABOTAGE, "every_event_crashes")) as worker:
            assert worker.process.wait(120) != 0
        assert re.search(r"The worker stops: PoisonError: 20 events in a row crashed", worker.log.read_text())
        assert len(read(broker, "dead-letters")) == 20, "the rest is left for a worker that works"


def test_a_worker_whose_recovery_hangs_ends_with_a_reason(tiny_model: Path, tmp_path: Path) -> None:
    with running_broker(1) as broker:
        settings = {
            "BROKER__SERVERS": broker,
            "TOPICS__PARTITIONS": 1,
            "MODEL__FOLDER": tiny_model,
            "ENGINE__GUARANTEE": "at_least_once",
            "ENGINE__STATE_FOLDER": tmp_path / "state",
            "ENGINE__STUCK_AFTER_S": 3,
            "WEB__ENABLED": False,
        }
        assert environment(settings)["DRIFTSTREAM_ENGINE__STUCK_AFTER_S"] == "3"
        done = command(settings, "worker", program=(SABOTAGE, "recovery_hangs"))
    assert done.returncode == 70
    assert "The worker stops: joining the group and restoring the state made no progress for 3 s" in done.stderr
