"""A drift detector for the tiny model: the real network, seeded and not trained, in a copy of the model folder."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import torch

from model_export.drift_network import HALF_LIVES, SIZE, Network, write_network
from model_export.manifest import amend
from stream.encoder.manifest import DriftPart, read_manifest
from stream.learned_drift import DRIFT_FILE, VECTORS_FILE, item_key


def add_detector(model: Path, folder: Path, known: list[tuple[str, str]]) -> Path:
    """A copy of `model` in `folder`, whose detector knows those items by id and title."""
    shutil.copytree(model, folder)
    torch.manual_seed(3)
    network = Network(dropout=0.0)
    with torch.no_grad():
        for layer in network.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight *= 3.0  # probabilities that differ
    chance = np.random.default_rng(3)
    part = DriftPart(
        half_lives=list(HALF_LIVES),
        size=SIZE,
        warm_up=3,
        smoothing=0.3,
        alarm=0.9,
        shifted=0.6,
        calm=0.4,
        false_alarm_every=100.0,
        metrics={},
        options={},
    )

    def add(new: Path) -> None:
        write_network(network, new / DRIFT_FILE)
        np.savez(
            new / VECTORS_FILE,
            keys=np.array([item_key(*item) for item in known], np.int64),
            vectors=chance.normal(size=(len(known), SIZE)).astype(np.float32),
            projection=chance.normal(size=(read_manifest(folder).dimension, SIZE)).astype(np.float32),
        )

    amend(folder, lambda manifest: msgspec.structs.replace(manifest, drift=part), "## Drift\n\nSeeded.", add=add)
    return folder
