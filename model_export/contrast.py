"""The encoder as it learns: contrastive cross-entropy over the items of a batch, and distillation from a teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.utils import ModelOutput

from model_export.export import Base, SentenceEncoder
from model_export.pairs import pad

SCALE = 20.0  # of the cosines before the softmax; sentence-transformers' default for this loss
DISTILLATION = 10.0  # weight of 1 - cosine to the teacher: 0.1 away weighs as much as a loss of 1


@dataclass
class Loss(ModelOutput):
    """What a batch comes to."""

    loss: Tensor | None = None


class Contrast(nn.Module):
    """Learns to put an anchor next to its item.

    The loss is the cross-entropy of the own item among all items of the batch (van den Oord et al. 2018,
    arXiv:1807.03748), those left out that belong to the anchor as well. With a teacher, each vector is also drawn to the
    teacher's of the same text.
    """

    def __init__(self, base: Base, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = SentenceEncoder(base.encoder, base.pooling)
        self._teacher = (teacher,)  # in a tuple it is no part of this module: it is neither trained nor saved

    def forward(
        self, anchor_ids: Tensor, anchor_mask: Tensor, item_ids: Tensor, item_mask: Tensor, target: Tensor, allowed: Tensor
    ) -> Loss:
        """Return the loss of a batch as `Pairs.collate` makes it."""
        anchors = self.encoder(anchor_ids, anchor_mask).float()
        items = self.encoder(item_ids, item_mask).float()
        logits = (SCALE * anchors @ items.T).masked_fill(~allowed, -torch.inf)
        loss = nn.functional.cross_entropy(logits, target)
        (teacher,) = self._teacher
        if teacher is not None:
            teacher.to(anchor_ids.device)
            with torch.no_grad():
                goals = teacher(anchor_ids, anchor_mask), teacher(item_ids, item_mask)
            for vectors, goal in zip((anchors, items), goals, strict=True):
                loss = loss + DISTILLATION * (1 - (vectors * goal.float()).sum(dim=1)).mean()
        return Loss(loss=loss)


def vectors(base: Base, texts: Sequence[str], batch: int = 128) -> NDArray[np.float32]:
    """Return PyTorch's unit vectors of `texts`, (texts, d), in batches of about one length, where the encoder lies."""
    module = SentenceEncoder(base.encoder, base.pooling).eval()
    device = next(module.parameters()).device
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    result = np.empty((len(texts), int(base.encoder.config.hidden_size)), np.float32)
    with torch.inference_mode():
        for first in range(0, len(order), batch):
            places = order[first : first + batch]
            ids, mask = pad(base.tokenizer, [texts[place] for place in places])
            result[places] = module(ids.to(device), mask.to(device)).float().cpu().numpy()
    return result


def prune(base: Base, layers: int) -> Base:
    """Return a copy of the encoder with `layers` of its layers, evenly spread, the last among them.

    Raises `ValueError` if it has not more than that.
    """
    whole = int(base.encoder.config.num_hidden_layers)
    if layers >= whole:
        raise ValueError(f"the encoder has {whole} layers: --layers must be less")
    kept = [round((number + 1) * whole / layers) - 1 for number in range(layers)]
    encoder = copy.deepcopy(base.encoder)
    encoder.encoder.layer = nn.ModuleList(encoder.encoder.layer[number] for number in kept)
    encoder.config.num_hidden_layers = layers
    return Base(base.name, encoder, base.tokenizer, base.pooling, base.max_length)


def blend(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights on the straight line between two models (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""
    return {name: torch.lerp(start[name], end[name], share) if end[name].is_floating_point() else end[name] for name in end}
