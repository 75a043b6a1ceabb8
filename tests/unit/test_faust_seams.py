"""What we rely on inside Faust and aiokafka. A new version that changes any of it fails here, and not in production."""

import asyncio
import inspect

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher as AIOKafkaFetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from confluent_kafka import Consumer
from faust import App as FaustApp
from faust.stores.rocksdb import Store
from faust.streams import Stream
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.consumer import Fetcher
from faust.transport.drivers import aiokafka as driver

from stream.engine.checkpoint import group_metadata


def source(thing: object) -> str:
    return inspect.getsource(getattr(thing, "fun", thing))  # type: ignore[arg-type]  # fun: within a ServiceTask


def test_the_fetcher_calls_drain_messages() -> None:
    assert "await consumer._drain_messages(self)" in source(Fetcher._fetcher)


@pytest.mark.parametrize(
    "name",
    [
        "_drain_messages",
        "on_stop",
        "seek_to_committed",
        "commit",
        "wait_empty",
    ],
)
def test_the_consumer_has_what_we_call_or_override(name: str) -> None:
    assert callable(getattr(driver.Consumer, name))


def test_faust_drains_the_consumer_before_partitions_go_and_before_it_stops() -> None:
    assert "await consumer.wait_empty()" in source(FaustApp._consumer_wait_empty)
    assert "_consumer_wait_empty" in source(FaustApp._on_partitions_revoked)
    assert "_consumer_wait_empty" in source(FaustApp._stop_consumer)


def test_faust_seeks_to_our_offsets_after_recovery_before_it_lets_the_fetcher_go_on() -> None:
    for text in (source(Recovery._resume_streams), source(Recovery.on_recovery_completed)):
        assert text.index("perform_seek()") < text.index("fetcher.maybe_start()")
    assert "self.seek_to_committed()" in source(FaustConsumer.perform_seek)


def test_recovery_builds_highwaters_first_and_reads_nothing_when_they_are_reached() -> None:
    text = source(Recovery._restart_recovery)
    assert text.index("_build_highwaters") < text.index("_build_offsets") < text.index("need_recovery()")
    assert "highwater - offsets[tp]" in source(Recovery.active_remaining)
    assert list(inspect.signature(Recovery._build_highwaters).parameters) == [
        "self",
        "consumer",
        "tps",
        "destination",
        "title",
    ]
    assert isinstance(TableManager.recovery, property)
    assert "Recovery(" in source(TableManager.recovery.fget)


def test_a_stream_awaits_its_channel_one_item_at_a_time() -> None:
    assert "chan_slow_get = channel.__anext__" in source(Stream._py_aiter)


def test_the_store_keeps_one_database_per_partition_and_its_offset_as_decimal_text() -> None:
    assert "str(offset).encode()" in source(Store.set_persisted_offset)
    assert Store.offset_key == b"__faust\0offset__"
    assert list(inspect.signature(Store._db_for_partition).parameters) == ["self", "partition"]


def test_the_consumer_thread_has_started_its_consumer_and_with_it_the_fetcher_that_we_close() -> None:
    assert "await self._consumer.start()" in source(driver.AIOKafkaConsumerThread.on_start)
    assert "self._fetcher = Fetcher(" in source(AIOKafkaConsumer.start)
    assert "self._fetch_task.cancel()" in source(AIOKafkaFetcher.close)


def test_who_reads_nothing_leaves_the_group_only_when_its_poll_interval_is_over() -> None:
    assert "if idle_time < self._max_poll_interval:" in source(GroupCoordinator._heartbeat_routine)
    assert "max_poll_interval" not in source(CoordinatorGroupRebalance)  # no broker is told of it


def test_aiokafka_tells_generation_and_member() -> None:
    assert "self.generation = " in source(GroupCoordinator.__init__)
    assert "self.member_id = " in source(GroupCoordinator.__init__)


def test_aiokafka_names_generation_and_member_of_an_offset_commit_before_it_awaits_anything() -> None:
    text = source(GroupCoordinator._do_commit_offsets)
    assert "self.generation" in text
    assert "self.member_id" in text
    assert max(text.index("self.generation"), text.index("self.member_id")) < text.index("await ")
    assert list(inspect.signature(GroupCoordinator._do_commit_offsets).parameters) == ["self", "assignment", "offsets"]
    assert text.count("assignment") == 1  # in the signature only: we have none to give
    assert asyncio.iscoroutinefunction(GroupCoordinator.ensure_coordinator_known)


def test_faust_marks_the_generation_when_partitions_are_given_and_its_recovery_goes_by_that_mark() -> None:
    assert "app.consumer_generation_id = " in source(driver.ConsumerRebalanceListener.on_partitions_assigned)
    assert "self.app.consumer_generation_id != generation_id" in source(Recovery._resume_streams)


def test_group_metadata_is_laid_out_as_librdkafka_lays_it_out() -> None:
    consumer = Consumer({"group.id": "some-group", "log_level": 0})
    try:
        assert consumer.consumer_group_metadata() == group_metadata("some-group", -1, "")
    finally:
        consumer.close()
