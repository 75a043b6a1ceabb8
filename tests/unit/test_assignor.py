"""A partition's events and its users' states go to the same worker, whoever joins and leaves; else the events wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stream.engine.assignor import AssignmentError, Assignor
from stream.engine.recovery import Recovery

INPUTS = {"searches", "clicks", "erasures"}
CHANGELOG = "group-users-changelog"
WORKERS = range(4)


def app(worker: int) -> faust.App:
    made = faust.App("group", store="memory://", web_port=7000 + worker, topic_partitions=8)
    made.Table("users", partitions=8)
    return made


APPS = [app(worker) for worker in WORKERS]
MEMBERSHIPS = st.dictionaries(st.sampled_from(WORKERS), st.booleans(), min_size=1).filter(lambda members: any(members.values()))


def assign(partitions: int, members: dict[int, Assignor], subscriptions: dict[int, set[str]]) -> dict[int, dict[str, list[int]]]:
    """Let the first member give out partitions, and tell each what it got."""
    cluster: Any = SimpleNamespace(partitions_for_topic=lambda topic: set(range(partitions)))
    metadata: Any = {str(worker): member.metadata(subscriptions[worker]) for worker, member in members.items()}
    given_out = next(iter(members.values())).assign(cluster, metadata)
    for worker, member in members.items():
        member.on_assignment(given_out[str(worker)])  # type: ignore[arg-type]
    return {worker: dict(given_out[str(worker)].assignment) for worker in members}


@given(partitions=st.integers(1, 8), rounds=st.lists(MEMBERSHIPS, min_size=1, max_size=6))
def test_events_and_states_of_a_partition_go_to_one_worker(partitions: int, rounds: list[dict[int, bool]]) -> None:
    members: dict[int, Assignor] = {}
    for whole in rounds:  # whether each member reads the changelog too; one that is told to stop while it starts does not
        members = {worker: members.get(worker) or Assignor(APPS[worker]) for worker in whole}
        subscriptions = {worker: INPUTS | {CHANGELOG} if reads_all else INPUTS for worker, reads_all in whole.items()}
        got = assign(partitions, members, subscriptions)
        for worker, topics in got.items():
            assert len({tuple(sorted(topics.get(topic, ()))) for topic in INPUTS | {CHANGELOG}}) == 1
            assert whole[worker] or not any(topics.values())
        assert sorted(p for topics in got.values() for p in topics.get(CHANGELOG, ())) == list(range(partitions))


def test_workers_with_different_topics_in_one_group_are_an_error_that_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    members = {worker: Assignor(APPS[worker]) for worker in (0, 1)}
    with pytest.raises(AssignmentError, match=r"reads all of b-clicks, clicks.*broker\.group"):
        assign(4, members, {0: {"clicks"}, 1: {"b-clicks"}})
    assert "its workers have different topics" in caplog.text


def test_events_whose_states_are_with_another_worker_are_not_read() -> None:
    recovery, changelog = object.__new__(Recovery), TP(CHANGELOG, 1)
    asked: list[set[TP]] = []
    said: list[object] = []

    def restore(stores: object, inputs: set[TP], generation: int) -> tuple[dict[TP, int | None], dict[TP, int]]:
        asked.append(inputs)
        return dict.fromkeys(inputs), {changelog: 7}

    app: Any = SimpleNamespace(intake=SimpleNamespace(topics=INPUTS), recovered=None)
    vars(recovery).update(
        app=app,
        log=SimpleNamespace(warning=lambda *words: said.extend(words)),
        _restore=restore,
        _generation_id=3,
        tp_to_table={changelog: SimpleNamespace(data=None)},
        active_offsets={},
    )
    consumer = SimpleNamespace(
        assignment=lambda: {TP(topic, partition) for topic in INPUTS for partition in (1, 2)} | {changelog}
    )
    asyncio.run(recovery._build_highwaters(consumer, {changelog}, Counter(), "active"))
    assert asked == [{TP(topic, 1) for topic in INPUTS}]
    assert app.recovered.offsets.keys() == asked[0]
    assert "clicks[2], erasures[2], searches[2]" in said
