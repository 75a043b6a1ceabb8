"""What several folders of tests share. Without Java or Maven the tests on a real Kafka are skipped; in CI that is a failure."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from broker import BrokerUnavailableError, KafkaBroker
from security import Security

from stream.encoder import session

DEFAULT_MODEL = Path(__file__).parents[1] / "models" / "default"

# How fast a machine is at the moment says nothing about the code.
hypothesis.settings.register_profile("any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Hide GPUs, also from processes that tests start: equal bits are the CPU's promise. `test_encoder_gpu.py` brings them back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "count_gpus", lambda: 0)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made by the real exporter from a seeded BERT of two layers; it takes some seconds, once."""
    from tiny_model import write_model  # PyTorch takes seconds to import, and most tests need no model

    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded BERT of two layers, as one would come from the hub."""
    from tiny_model import write_base

    return write_base(tmp_path_factory.mktemp("base") / "tiny-bert")


@pytest.fixture(scope="session")
def new_kafka() -> Callable[..., KafkaBroker]:
    """Makes a real Kafka in a folder, to be started."""

    def make(folder: Path, security: Security | None = None, properties: str = "") -> KafkaBroker:
        try:
            return KafkaBroker(folder, security=security, properties=properties)
        except BrokerUnavailableError as error:
            if os.environ.get("CI"):
                pytest.fail(f"CI must have a real Kafka: {error}")
            pytest.skip(str(error))

    return make


@pytest.fixture(scope="session")
def kafka(new_kafka: Callable[..., KafkaBroker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Kafka, shared by the whole run: DRIFTSTREAM_TEST_BROKER where that is set."""
    given = os.environ.get("DRIFTSTREAM_TEST_BROKER")
    if given:
        yield given
    else:
        with new_kafka(tmp_path_factory.mktemp("kafka")) as broker:
            yield broker.address


@pytest.fixture(scope="module")
def own_kafka(new_kafka: Callable[..., KafkaBroker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A real Kafka that a test may fill, kill, pause and restart."""
    with new_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The exported model that workers serve; `make test` makes it first."""
    assert (DEFAULT_MODEL / "manifest.json").is_file(), f"no model in {DEFAULT_MODEL}; run `make test`, which exports it"
    return DEFAULT_MODEL
