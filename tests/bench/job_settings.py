"""The whole job, as every engine is told to do it: the same settings, the same model, the same catalogue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stream.encoder import Encoder
from stream.knowledge import Knowledge
from stream.pipeline import Pipeline
from stream.settings import Settings

MODEL = Path(os.environ.get("BENCH_MODEL", Path(__file__).resolve().parents[2] / "models/default"))


def settings(broker: str, group: str, events: str, output: str, partitions: int, folder: Path) -> Settings:
    """What a worker is set to; everything else is as by default."""
    inputs = {topic: f"{events}-{topic}" for topic in ("searches", "clicks", "items")}
    others = {topic: f"{group}-{topic}" for topic in ("erasures", "drift", "dead_letters", "memory")}
    port = os.environ.get("BENCH_WEB_PORT")
    given: dict[str, Any] = {
        "broker": {"servers": broker, "group": group},
        "topics": {**inputs, **others, "recommendations": output, "partitions": partitions},
        "engine": {"state_folder": folder},
        "model": {"folder": MODEL},
        "web": {"enabled": port is not None, "port": port or 0},
    }
    return Settings(**given)


def pipeline(chosen: Settings) -> tuple[Pipeline, Knowledge]:
    """The worker's own core, loaded and warmed up, for an engine that is not ours."""
    model = chosen.model
    encoder = Encoder(
        model.folder, device=model.device, variant=model.variant, threads=model.threads, cache_size=model.cache_size
    )
    knowledge = Knowledge(chosen, encoder)
    knowledge.load()
    encoder.warm_up()
    return Pipeline(chosen, encoder, knowledge.recommender), knowledge
