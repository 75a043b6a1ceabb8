"""The model folder's manifest: what is in the folder, what it may be used for, and how to tell that it is whole.

`model-export` writes it; the worker reads it and serves nothing whose hash differs from what it says.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"

Variant = Literal["fp32", "int8", "fp16"]
ModelTask = Literal["sentence-embedding", "classification"]


class ModelFolderError(Exception):
    """The model folder is missing, damaged or not of this kind; the message says what to do."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of the graph; a named dimension is free."""

    name: str
    dtype: str
    shape: list[str | int]


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """A text and the unit vector that PyTorch gives for it."""

    text: str
    vector: list[float]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Cosine similarity to the fp32 file's outputs over held-out sentences."""

    cosine_mean: float
    cosine_min: float
    sentences: int


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was trained, and what each variant reached on data that it was not trained on.

    `since` and `until` are the event times, epoch ms, of the first and the last event learned from. `held_out` maps a variant
    to the gate's metric.
    """

    since: int | None
    until: int | None
    metric: str
    held_out: dict[Variant, float]
    options: dict[str, Any]
    metrics: dict[str, float]


class RankWeights(msgspec.Struct, frozen=True, kw_only=True):
    """The ranker's weights as learned: the settings of the same names in `[recommend]`, stream/recommend/ranker.py has the formula."""

    text_weight: float
    coverage_weight: float
    profile_weight: float
    profile_shares: list[float]
    popular_prior: float
    similar_prior: float
    query_prior: float
    followed_prior: float
    repeat: float
    neighbour_sharpness: float


class DriftPart(msgspec.Struct, frozen=True, kw_only=True):
    """The learned drift detector, `drift.onnx` and `drift.npz`: stream/learned_drift.py has the formula.

    `half_lives` and `warm_up` are counted in behaviours; `size` is the dimension of its own vectors. `alarm` is the smoothed
    probability at which an alarm is raised, `shifted` and `calm` are scores. `false_alarm_every` is how many behaviours of users
    not learned from came to one alarm at these thresholds, and `metrics` what else was measured on them.
    """

    half_lives: list[float]
    size: int
    warm_up: int
    smoothing: float
    alarm: float
    shifted: float
    calm: float
    false_alarm_every: float
    metrics: dict[str, float]
    options: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`. `version` is derived from `files`: two folders of one version hold the same bytes.

    `variants` maps a variant to its file, `files` every file but the manifest to its sha256, `fused_operators` a file to
    the number of each fused operator in it. `labels` are a classifier's classes, in the order of its logits. `rank` holds
    the ranker's weights where they were learned with this model.
    """

    format: Literal[1]
    version: str
    base: str
    task: ModelTask
    inputs: list[Tensor]
    outputs: list[Tensor]
    dimension: int
    pooling: Literal["mean", "cls"]
    max_length: int
    opset: int
    libraries: dict[str, str]
    variants: dict[Variant, str]
    files: dict[str, str]
    fused_operators: dict[str, dict[str, int]]
    accuracy: dict[Variant, Accuracy]
    parity: list[Parity]
    labels: list[str] = []
    training: Training | None = None
    rank: RankWeights | None = None
    drift: DriftPart | None = None


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model folder.

    Raises `ModelFolderError` if there is none, or it is not one that this version can read.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ModelFolderError(
            f"no model in {folder}: {MANIFEST} is missing. Make one with: model-export export --output {folder}"
        ) from None
    except msgspec.MsgspecError as error:
        raise ModelFolderError(
            f"{path} cannot be read ({error}). Make the folder again with: model-export export --output {folder}"
        ) from None


def check_files(folder: Path, manifest: Manifest, names: list[str]) -> None:
    """Raise `ModelFolderError` unless each named file is in the folder with the sha256 that the manifest gives."""
    for name in names:
        path = folder / name
        if name not in manifest.files:
            raise ModelFolderError(f"{folder / MANIFEST} lists no {name}: the folder is not a complete model")
        if not path.is_file():
            raise ModelFolderError(f"{path} is missing. Copy the whole model folder, or export it again")
        if sha256(path) != manifest.files[name]:
            raise ModelFolderError(
                f"{path} is not the file that {MANIFEST} describes (its sha256 differs): it was changed, or copied only "
                "in part. Copy the folder again, or export it again"
            )


def sha256(path: Path) -> str:
    """Return the file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
