"""Brokers for the tests in this folder. Without Java or Maven they are skipped; in CI that is a failure."""

import os
from collections.abc import Iterator

import pytest
from broker import BrokerUnavailableError, KafkaBroker


def _start(folder: pytest.TempPathFactory) -> KafkaBroker:
    try:
        return KafkaBroker(folder.mktemp("kafka"))
    except BrokerUnavailableError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have a real Kafka: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Kafka, shared by the whole run: DRIFTSTREAM_TEST_BROKER where that is set."""
    given = os.environ.get("DRIFTSTREAM_TEST_BROKER")
    if given:
        yield given
    else:
        with _start(tmp_path_factory) as broker:
            yield broker.address


@pytest.fixture(scope="module")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A real Kafka that a test may kill, pause and restart."""
    with _start(tmp_path_factory) as broker:
        yield broker
