"""Starting a worker: check what it needs, load what it serves with, then hand over to Faust."""

from __future__ import annotations

import ctypes
import logging
import sys

import faust
from confluent_kafka import KafkaException

from stream import topics
from stream.app import App
from stream.connection import BrokerError
from stream.encoder import DeviceError, Encoder, ModelFolderError
from stream.engine.checkpoint import LostError
from stream.engine.folder import FolderError, StateFolder
from stream.engine.store import StoreError
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings, effective

log = logging.getLogger("driftstream")


# What can keep a worker from starting, each with a message that says what to do.
STARTING = (
    BrokerError,
    topics.TopicError,
    FolderError,
    StoreError,
    DeviceError,
    ModelFolderError,
    LostError,
    KafkaException,
    TimeoutError,
    ValueError,
)


M_ARENA_MAX = -8  # of glibc's mallopt


class WorkerError(Exception):
    """The worker cannot start; the message says why and what to do."""


def run(settings: Settings, log_level: str) -> None:
    """Run a worker until SIGTERM or SIGINT; both finish the batch in flight and exit with 0.

    Raises:
        WorkerError: before anything was consumed.
    """
    share_heaps()
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("aiokafka.conn").setLevel(logging.INFO)  # at debug it prints requests, and a login is one of them
    for group, values in effective(settings).items():
        log.info("settings.%s: %s", group, values)
    try:
        cluster, created = topics.ensure(settings)
        for topic in created:
            log.info("created topic %s", topic)
        folder = StateFolder(
            settings.engine.state_folder, cluster=cluster, group=settings.broker.group, partitions=settings.topics.partitions
        )
        encoder = Encoder(
            settings.model.folder,
            device=settings.model.device,
            variant=settings.model.variant,
            threads=settings.model.threads,
            cache_size=settings.model.cache_size,
        )
        log.info("model %s on %s", encoder.version, encoder.provider)
        knowledge = Knowledge(settings, encoder)
        knowledge.load()
        encoder.warm_up()
        worker_id = settings.engine.worker_id or folder.worker_id
        app = App(settings, Pipeline(settings, encoder, knowledge.recommender), knowledge, worker_id)
    except STARTING as error:
        raise WorkerError(str(error)) from error
    worker = faust.Worker(app, loglevel=log_level.upper(), redirect_stdouts=False, override_logging=False)
    worker.execute_from_commandline()


def share_heaps() -> None:
    """Let all threads take memory from two heaps. glibc gives them up to eight a core, and what one has freed no other can use."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_ARENA_MAX, 2)
