"""How a model is trained, checked before anything is loaded. What is None is the task's own default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stream.settings import Group

Task = Literal["retrieve", "classify", "rank", "drift"]
Method = Literal["full", "lora", "adalora"]
Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]


class TrainingError(Exception):
    """The model could not be trained, or is not good enough to be published; the message says by how much."""


class Options(Group):
    """Everything that decides what comes out of a training, but for the data.

    Rates and shares are fractions; lengths of time are epochs or optimiser steps, never seconds.
    """

    base: str | None = None  # the encoder to start from: None is the packaged one
    method: Method = "full"
    rank: Annotated[int, Field(ge=1)] = 16  # of LoRA's matrices; AdaLoRA starts at one and a half of it
    epochs: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None  # texts that go through the model together
    accumulate: Annotated[int, Field(ge=1)] = 1  # batches to an optimiser step
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # highest
    schedule: Schedule = "linear"
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the steps in which the rate rises
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    typing_noise: Annotated[float, Field(ge=0, le=1)] | None = None  # share of the queries that are misspelt anew each epoch
    adversarial: Annotated[float, Field(ge=0)] = 0.0  # FGM: length of the step in the word embeddings; 0 is off
    patience: Annotated[int, Field(ge=1)] = 3  # epochs without a better validation after which training stops
    layers: Annotated[int, Field(ge=1)] | None = None  # keep that many and distil the whole model into them
    precision: Precision = "auto"
    seed: int = 0
    tracker: Tracker = "tensorboard"
    progress: bool = True  # whether to show bars
    runs: Path  # checkpoints and logs
    resume: bool = False  # go on from the last checkpoint in `runs`

    def with_defaults(self, task: Mapping[str, Any]) -> Options:
        """Return the options with a task's defaults where nothing was said."""
        return self.model_copy(update={name: value for name, value in task.items() if getattr(self, name) is None})

    def told(self) -> dict[str, Any]:
        """Return what a model card and a manifest tell of them: all that decides what the weights become."""
        return self.model_dump(mode="json", exclude={"runs", "resume", "tracker", "progress"}, exclude_none=True)
