"""The network of the learned drift detector, and the module that trains it together with the vectors that it reads."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from model_export.settings import OPSET
from model_export.splices import AGES, LENGTH
from stream.learned_drift import BLOCK

HALF_LIVES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 60.0)  # in behaviours
SIZE = 32  # of the detector's own vectors
HIDDEN = 64
WARM_UP = 15  # behaviours before anything is judged
JUDGED = 32  # places of an example that are learned from in one step
RIDGE = 3.0  # of the regression of co-behaviour on text that training starts from


class Network(nn.Module):
    """Faded sums (n, K, m) and counts (n,) to logits (n, classes): how long ago the interest changed, never being the last class.

    It sees no direction, only how the sums lie to each other, so that it means the same for items that it never met:
    the cosine of each sum to what lies before it, those between the bands (what one sum has and the next shorter one
    has not), the lengths of the means, and how much is known.
    """

    fades: Tensor
    pairs: Tensor

    def __init__(self, dropout: float) -> None:
        super().__init__()
        scales = len(HALF_LIVES)
        features = scales - 1 + scales * (scales - 1) // 2 + scales + 1
        self.register_buffer("fades", torch.tensor([2.0 ** (-1.0 / half_life) for half_life in HALF_LIVES]), persistent=False)
        upper = torch.triu_indices(scales, scales, 1)
        self.register_buffer("pairs", upper[0] * scales + upper[1], persistent=False)
        self.scale = nn.BatchNorm1d(features, affine=False, momentum=0.05)
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, len(AGES) + 1),
        )

    def forward(self, sums: Tensor, count: Tensor) -> Tensor:
        """Return the logits."""
        weights = (1.0 - self.fades ** count[:, None]) / (1.0 - self.fades)  # Σ 2^(−age/h) over `count` behaviours
        earlier = sums[:, -1:] - sums[:, :-1]
        bands = _unit(torch.cat([sums[:, :1], sums[:, 1:] - sums[:, :-1]], 1))
        departures = (_unit(sums[:, :-1]) * _unit(earlier)).sum(-1)
        between = torch.matmul(bands, bands.transpose(1, 2)).flatten(1)[:, self.pairs]
        lengths = 0.5 * torch.log((sums / weights[:, :, None]).square().sum(-1) + 1e-3)
        features = torch.cat([departures, between, lengths, torch.log(weights[:, -1:])], 1)
        logits: Tensor = self.layers(self.scale(features))
        return logits


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-4)


class Detector(nn.Module):
    """Vectors and network, trained as one.

    Args:
        texts: centred embeddings of the vocabulary (rows, d).
        vectors: co-behaviour (rows, m) to start from; zero where it is not known.
        dropout: in the network.
        strangers: share of the examples whose items are taken for unknown: they are judged by their texts alone.
    """

    texts: Tensor
    known: Tensor
    fading: Tensor

    def __init__(self, texts: NDArray[np.float32], vectors: NDArray[np.float32], *, dropout: float, strangers: float) -> None:
        super().__init__()
        x, known = texts.astype(np.float64), np.abs(vectors).sum(axis=1) > 0
        gram = x[known].T @ x[known] + RIDGE * np.eye(x.shape[1])
        projection = np.linalg.solve(gram, x[known].T @ vectors[known]).astype(np.float32)
        self.register_buffer("texts", torch.from_numpy(texts), persistent=False)
        self.register_buffer("known", torch.from_numpy(known[:, None].astype(np.float32)), persistent=False)
        self.projection = nn.Parameter(torch.from_numpy(projection))
        self.own = nn.Embedding(len(vectors), vectors.shape[1], _weight=torch.from_numpy(vectors - texts @ projection))
        self.network = Network(dropout)
        self.strangers = strangers
        age = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
        fades = 2.0 ** (-np.maximum(age, 0)[None] / np.array(HALF_LIVES)[:, None, None])
        self.register_buffer("fading", torch.tensor(np.where(age >= 0, fades, 0.0), dtype=torch.float32), persistent=False)

    def forward(self, rows: Tensor, ages: Tensor, places: Tensor, strangers: Tensor) -> ModelOutput:
        """Return the loss, and the logits (n, places, classes).

        Args:
            rows: (n, LENGTH) of the vocabulary.
            ages: (n, LENGTH), true classes; −1 counts for nothing.
            places: (n, p) of the examples that are judged; the same in each row.
            strangers: (n,) in [0, 1): below the share of strangers, items count as unknown.
        """
        own = self.own(rows) * self.known[rows]
        own = own * (strangers >= self.strangers)[:, None, None]
        met, place = torch.unique(rows, return_inverse=True)  # each text once: the product is the most expensive step
        vectors = (self.texts[met] @ self.projection)[place] + own
        chosen = places[0]
        sums = torch.einsum("kps,nsm->npkm", self.fading[:, chosen], vectors)
        count = (chosen + 1.0).repeat(len(rows))
        logits = self.network(sums.flatten(0, 1), count).unflatten(0, (len(rows), len(chosen)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ages[:, chosen].flatten(), ignore_index=-1)
        return ModelOutput(loss=loss, logits=logits)

    def vectors(self) -> NDArray[np.float32]:
        """Return the vectors of the vocabulary (rows, m)."""
        with torch.inference_mode():
            table: NDArray[np.float32] = (self.texts @ self.projection + self.own.weight * self.known).numpy()
        return table


class _Served(nn.Module):
    """What is exported: sums and counts to the probability of a change within the ages."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, sums: Tensor, count: Tensor) -> Tensor:
        # Not the sum of the other classes: ONNX Runtime adds up the first row of a block in another order than the rest.
        return 1.0 - torch.softmax(self.network(sums, count), 1)[:, -1]


def write_network(network: Network, path: Path) -> None:
    """Write the network as ONNX, for blocks of `BLOCK` users."""
    example = torch.ones(BLOCK, len(HALF_LIVES), SIZE), torch.ones(BLOCK)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's exporter
        program = torch.onnx.export(
            _Served(network).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["sums", "count"],
            output_names=["probability"],
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = onnx_ir.to_proto(program.model)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # traces of the Python that made it: equal weights shall make equal files
    onnx.save(model, path)
