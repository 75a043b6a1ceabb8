"""A broker inside this process, for the demo and for quick tests: librdkafka's mock cluster.

It speaks the real protocol on a real loopback socket, so that Faust, aiokafka, confluent-kafka and kcat connect to it
as to any Kafka. It is **not** a Kafka to rely on. Its limits, as observed with librdkafka 2.16:

- A partition keeps 5 MiB (`PARTITION_BYTES`). Beyond that its oldest batches vanish *silently*, and a consumer that has
  not read them skips on: whoever produces has to stay within that distance of the slowest reader (`stream.feed` can).
- A fetch that finds nothing is answered only after the consumer's whole maximal wait (500 ms by default), though
  records may have come meanwhile: `fetch_max_wait_ms=10` (librdkafka: `fetch.wait.max.ms`) makes it quick.
- Everything is in memory and gone with the process.
- There is no CreateTopics: topics are made here, before use. One that is merely used gets 4 partitions.
- Transactions are accepted without meaning: `read_committed` shows aborted records, and offsets sent to a transaction
  are not stored.
- There is no lookup of offsets by time.

What promises durability or exactly-once is tested on a real Kafka (`tests/kafka/broker.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from confluent_kafka import cimpl

PARTITION_BYTES = 5 * 1024 * 1024
"""What a partition holds, in bytes as sent by the producer, before its oldest records vanish."""

_RD_KAFKA_PRODUCER = 0
_RD_KAFKA_RESP_ERR_NO_ERROR = 0

# name: (restype, argtypes); without them ctypes would cut 64-bit pointers to C ints.
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_conf_set": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_conf_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_err2str": (ctypes.c_char_p, [ctypes.c_int]),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_topic_create": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [ctypes.c_void_p, ctypes.c_int32]),
}


class EmbeddedBrokerError(Exception):
    """The mock cluster cannot be reached in this installation, or refused what was asked of it."""


class EmbeddedBroker:
    """A one-node cluster on a free loopback port, for as long as the `with` block lasts.

        with EmbeddedBroker({"searches": 4, "clicks": 4}) as broker:
            Producer({"bootstrap.servers": broker.address})

    Args:
        topics: partitions of each topic to begin with.
        rebalance_delay_ms: how long the first join of a group waits for more members.

    Raises:
        EmbeddedBrokerError: on entering, where librdkafka comes without the mock cluster, or a topic is refused.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, rebalance_delay_ms: int = 100) -> None:
        self._topics = dict(topics or {})
        self._rebalance_delay_ms = rebalance_delay_ms
        self._client: int | None = None
        self._cluster: int | None = None
        self.address = ""

    def __enter__(self) -> Self:
        self._library = _load()
        # The mock cluster hangs on a client's handle: its thread and its log. The client itself does nothing.
        reason = ctypes.create_string_buffer(512)
        conf = self._library.rd_kafka_conf_new()
        # Errors only: it would warn at every start that it has no servers to connect to.
        self._library.rd_kafka_conf_set(conf, b"log_level", b"3", reason, len(reason))
        self._client = self._library.rd_kafka_new(_RD_KAFKA_PRODUCER, conf, reason, len(reason))
        if not self._client:
            self._library.rd_kafka_conf_destroy(conf)  # rd_kafka_new owns it only where it succeeds
            raise EmbeddedBrokerError(f"librdkafka made no client: {reason.value.decode()}")
        try:
            self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
            if not self._cluster:
                raise EmbeddedBrokerError("librdkafka made no mock cluster; is there a free loopback port?")
            self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, self._rebalance_delay_ms)
            self.address = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
            for name, partitions in self._topics.items():
                self.create_topic(name, partitions)
        except BaseException:
            self._close()
            raise
        return self

    def create_topic(self, name: str, partitions: int) -> None:
        """Make a topic while the broker runs.

        Raises:
            EmbeddedBrokerError: the topic exists, name or count is not allowed, or the broker is not running.
        """
        if self._cluster is None:
            raise EmbeddedBrokerError("the embedded broker is not running")
        if not name or partitions < 1:
            raise EmbeddedBrokerError(f"a topic needs a name and at least one partition, not {name!r} and {partitions}")
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if code != _RD_KAFKA_RESP_ERR_NO_ERROR:
            reason = self._library.rd_kafka_err2str(code).decode()
            raise EmbeddedBrokerError(f"the embedded broker refused topic {name!r}: {reason}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        # The cluster first: it runs on the client's handle.
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._cluster = None
        if self._client:
            self._library.rd_kafka_destroy(self._client)
            self._client = None
        self.address = ""


def _load() -> ctypes.CDLL:
    """Open the librdkafka that confluent-kafka itself runs on, and declare the functions used here.

    Opening the extension module rather than the library makes the loader find it: symbols are looked up in a module's
    dependencies too, wherever a Linux or macOS wheel, or a build from source, has put them.
    """
    library = ctypes.CDLL(cimpl.__file__)
    for name, (restype, argtypes) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise EmbeddedBrokerError(
                f"the librdkafka behind {cimpl.__file__} does not export {name}, so there is no embedded broker here; "
                "install confluent-kafka's wheel for Linux or macOS, or use a Kafka broker"
            ) from error
        function.restype, function.argtypes = restype, argtypes
    return library
