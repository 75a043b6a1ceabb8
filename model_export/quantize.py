"""The int8 and fp16 files.

int8 is static: every activation is rounded with a scale that was fixed when the model was exported. The usual dynamic
quantisation takes the scale from the whole batch, so that a text's vector changes with its neighbours; and it costs a
pass over the activations. Integers add up exactly, in whatever order: the product is the same on any number of threads.

A BERT's activations have a few channels far larger than the rest, which would take most of the 8 bits. SmoothQuant
(Xiao et al. 2023, arXiv:2211.10438) divides each channel by a constant and multiplies the weights' row by it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tokenizers import Tokenizer

from model_export.export import drop_unused, fused_operators
from stream.encoder.session import open_session

MICROSOFT = "com.microsoft"

# AVX2's byte product adds two products in 16 bits and saturates: 2 * 255 * 64 fits, 2 * 255 * 127 does not.
WEIGHT_MAX = 63


@dataclass(frozen=True)
class Range:
    """The lowest and highest value that each channel of an activation had over the calibration texts."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def magnitude(self) -> NDArray[np.float32]:
        """Return the largest magnitude per channel."""
        return np.maximum(-self.low, self.high)


def write_int8(source: Path, target: Path, tokenizer: Tokenizer, texts: tuple[str, ...], smoothing: float) -> dict[str, int]:
    """Write to `target` the fp32 graph `source` with every product by weights in int8; return its fused operators' counts.

    `texts` set the ranges of the activations. `smoothing` is SmoothQuant's migration strength, in [0, 1].
    """
    model = onnx.load(source)
    _split_attention(model)
    _quantise(model, _calibrate(model, target.with_suffix(".calibration"), tokenizer, texts), smoothing)
    _split_normalisation(model)
    onnx.save(model, target)
    return fused_operators(model)


def write_fp16(source: Path, target: Path) -> dict[str, int]:
    """Write to `target` the fp32 graph `source` in float16, inputs and outputs excepted; return its fused operators' counts.

    Pooling and normalisation stay in float32, where sums over a long text and their squares have room. (ONNX Runtime's
    converter would go back to float16 between any two of those operators.)
    """
    model = onnx.load(source)
    graph = model.graph
    floats = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    last = max(index for index, node in enumerate(graph.node) if node.op_type == "SkipLayerNormalization")
    body, pooling = list(graph.node[: last + 1]), list(graph.node[last + 1 :])
    mask = next(node.output[0] for node in body if node.op_type == "Cast")
    limit = np.finfo(np.float16)
    nodes: list[onnx.NodeProto] = []
    halves: set[str] = set()
    for node in body:
        for index, name in enumerate(node.input):
            if name in floats:
                node.input[index] = f"{name}_fp16"
                if name not in halves:
                    halves.add(name)
                    half = np.clip(floats[name], limit.min, limit.max).astype(np.float16)
                    graph.initializer.append(numpy_helper.from_array(half, f"{name}_fp16"))
            elif name == mask:
                node.input[index] = f"{mask}_fp16"
        nodes.append(node)
        if node.output[0] == mask:
            nodes.append(helper.make_node("Cast", [mask], [f"{mask}_fp16"], to=onnx.TensorProto.FLOAT16))
    tokens = body[-1].output[0]
    nodes.append(helper.make_node("Cast", [tokens], [f"{tokens}_fp32"], to=onnx.TensorProto.FLOAT))
    for node in pooling:
        for index, name in enumerate(node.input):
            if name == tokens:
                node.input[index] = f"{tokens}_fp32"
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*nodes, *pooling])
    drop_unused(model)
    onnx.save(model, target)
    return fused_operators(model)


def _split_attention(model: onnx.ModelProto) -> None:
    """Turn each Attention into three products, which can be quantised, and a MultiHeadAttention."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Attention":
            nodes.append(node)
            continue
        hidden, weight, bias, _, _, masked = node.input
        name = node.output[0]
        heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
        parts = np.split(numpy_helper.to_array(constants[weight]), 3, axis=1)
        for part, values in zip(("query", "key", "value"), parts, strict=True):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{name}_{part}_weight"))
            nodes.append(helper.make_node("MatMul", [hidden, f"{name}_{part}_weight"], [f"{name}_{part}"]))
        inputs = [f"{name}_query", f"{name}_key", f"{name}_value", bias, "", masked]
        nodes.append(helper.make_node("MultiHeadAttention", inputs, [name], domain=MICROSOFT, num_heads=heads))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(model)


def _products(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the products with constant weights by the activation that they read."""
    constants = {tensor.name for tensor in model.graph.initializer}
    products = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            products[node.input[0]].append(node)
    return products


def _calibrate(model: onnx.ModelProto, scratch: Path, tokenizer: Tokenizer, texts: tuple[str, ...]) -> dict[str, Range]:
    """Run the texts through the graph and return the range of every activation that a product reads."""
    names = list(_products(model))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(watched, scratch)
    session = open_session(scratch, device="cpu")
    scratch.unlink()
    ranges: dict[str, Range] = {}
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        values = session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        for name, value in zip(names, values, strict=True):
            rows = value.reshape(-1, value.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            if name in ranges:
                low, high = np.minimum(low, ranges[name].low), np.maximum(high, ranges[name].high)
            ranges[name] = Range(low, high)
    return ranges


def _quantise(model: onnx.ModelProto, ranges: dict[str, Range], smoothing: float) -> None:
    """Replace each product by: divide by the channel constants, round to uint8, multiply integers, scale back."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = _products(model)
    replaced = {node.output[0] for nodes in products.values() for node in nodes}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[np.generic] | np.generic) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    rounded: dict[str, list[str]] = {}  # activation -> its quantised form, scale and zero point
    channel: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        if node.output[0] not in replaced:
            nodes.append(node)
            continue
        x, weight = node.input
        if x not in rounded:
            weights = [constants[product.input[1]] for product in products[x]]
            channel[x] = divisor = _smooth(ranges[x], weights, smoothing)
            low = np.minimum((ranges[x].low / divisor).min(), np.float32(0))
            high = np.maximum((ranges[x].high / divisor).max(), np.float32(0))
            scale = np.float32((high - low) / 255)
            zero = np.uint8(np.rint(-low / scale))
            rounded[x] = [f"{x}_uint8", constant(f"{x}_scale", scale), constant(f"{x}_zero", zero)]
            factor = constant(f"{x}_smoothing", np.float32(1) / divisor)
            nodes.append(helper.make_node("Mul", [x, factor], [f"{x}_smooth"]))
            nodes.append(helper.make_node("QuantizeLinear", [f"{x}_smooth", *rounded[x][1:]], [f"{x}_uint8"]))
        scaled = constants[weight] * channel[x][:, None]
        column = (np.abs(scaled).max(axis=0) / WEIGHT_MAX).astype(np.float32)
        integers = np.rint(scaled / column).astype(np.int8)
        quantised, scale_name, zero_name = rounded[x]
        inputs = [
            quantised,
            constant(f"{node.output[0]}_int8", integers),
            scale_name,
            constant(f"{node.output[0]}_int8_scale", column),
            zero_name,
        ]
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [node.output[0]], domain=MICROSOFT))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(model)


def _split_normalisation(model: onnx.ModelProto) -> None:
    """Turn each SkipLayerNormalization into an addition and a LayerNormalization; its bias goes into the product before.

    ONNX Runtime 1.31 computes the fused operator on a CPU row by row without vector instructions: it took 13 % of the time of
    an int8 run, the two operators take 3 %. (The worker's session does not fuse them again: stream/encoder/session.py.)
    """
    graph = model.graph
    product = {node.output[0]: node for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "SkipLayerNormalization":
            nodes.append(node)
            continue
        x, skip, scale, shift, bias = node.input
        product[x].input.extend(["", bias])
        name = node.output[0]
        epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        nodes.append(helper.make_node("Add", [x, skip], [f"{name}_sum"]))
        inputs = [f"{name}_sum", scale, shift]
        nodes.append(helper.make_node("LayerNormalization", inputs, [name], axis=-1, epsilon=epsilon))
    del graph.node[:]
    graph.node.extend(nodes)


def _smooth(observed: Range, weights: list[NDArray[np.float32]], smoothing: float) -> NDArray[np.float32]:
    """Return what each channel is divided by: max|x|^a / max|w|^(1 - a), SmoothQuant's equation 4, with geometric mean 1."""
    activation = np.maximum(observed.magnitude, 1e-3)
    weight = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), 1e-5)
    divisor = activation**smoothing / weight ** (1 - smoothing)
    scaled: NDArray[np.float32] = (divisor / np.exp(np.log(divisor).mean())).astype(np.float32)
    return scaled
