"""Starting a worker: check what it needs, load what it serves with, then hand over to Faust."""

from __future__ import annotations

import logging

import faust
from confluent_kafka import KafkaException

from stream import topics
from stream.app import App
from stream.connection import BrokerError
from stream.encoder import DeviceError, Encoder, ModelFolderError
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings, effective

log = logging.getLogger("driftstream")


class WorkerError(Exception):
    """The worker cannot start; the message says why and what to do."""


def run(settings: Settings, log_level: str) -> None:
    """Run a worker until SIGTERM or SIGINT; both finish the batch in flight and exit with 0.

    Raises:
        WorkerError: before anything was consumed.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("aiokafka.conn").setLevel(logging.INFO)  # at debug it prints requests, and a login is one of them
    for group, values in effective(settings).items():
        log.info("settings.%s: %s", group, values)
    try:
        for topic in topics.ensure(settings):
            log.info("created topic %s", topic)
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
        app = App(settings, Pipeline(settings, encoder, knowledge.recommender), knowledge)
    except (BrokerError, topics.TopicError, DeviceError, ModelFolderError, KafkaException, TimeoutError, ValueError) as error:
        raise WorkerError(str(error)) from error
    worker = faust.Worker(app, loglevel=log_level.upper(), redirect_stdouts=False, override_logging=False)
    worker.execute_from_commandline()
