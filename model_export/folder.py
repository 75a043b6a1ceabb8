"""`model-export export`: the whole way from a base model to a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from model_export.export import PACKAGED_NAME, export_fp32, load_base, torch_vectors
from model_export.manifest import hash_files, library_versions, replacing, version_of, write_manifest
from model_export.quantize import write_fp16, write_int8
from model_export.sentences import CALIBRATION, HELD_OUT
from model_export.settings import OPSET, PARITY_TOLERANCE, SMOOTHING
from model_export.verify import check_computation, measure_accuracy
from stream.encoder.manifest import TOKENIZER, Manifest, Parity, Tensor, Variant

PARITY_TEXTS = HELD_OUT[:8]
FILES: dict[Variant, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}

CARD = """\
# {name}

A sentence encoder in ONNX, made by `model-export` from {base}: text to a unit vector of {dimension} numbers.
Its licence is that of the base model.

| variant | file | mean cosine to fp32 | least |
|---|---|---|---|
{rows}

Measured on {sentences} sentences on a CPU. The fp32 file agrees with PyTorch to {tolerance:.0g} in every component.

- Tokens: `{tokenizer}`, at most {max_length}; longer texts are cut.
- Inputs: `input_ids`, `attention_mask`, int64 (batch, length). Output: `sentence_embedding`, float32
  (batch, {dimension}); {pooling} pooling and normalisation are inside.
- int8 is static (SmoothQuant, one scale for each activation) and was calibrated on {calibration} general sentences.
- Without padding, a text's vector does not depend on the others in its batch.
- `manifest.json` has hashes, library versions and parity vectors; `model-export verify` checks them.
"""


def export(base: str | None, output: Path, *, progress: Callable[[str], None] = lambda step: None) -> Manifest:
    """Write the model folder `output` and return its manifest; nothing is written unless every check of `verify` holds.

    Raises `ExportError`, `OutputError` or `VerificationError`.
    """
    with replacing(output) as folder:
        progress("loading the base model")
        model = load_base(base)
        progress("exporting to ONNX")
        source = folder / FILES["fp32"]
        fused = {FILES["fp32"]: export_fp32(model, source)}
        progress("quantising")
        fused[FILES["int8"]] = write_int8(source, folder / FILES["int8"], model.tokenizer, CALIBRATION, SMOOTHING)
        fused[FILES["fp16"]] = write_fp16(source, folder / FILES["fp16"])
        model.tokenizer.save(str(folder / TOKENIZER))
        config = json.dumps(model.encoder.config.to_dict(), indent=1, sort_keys=True)
        (folder / "config.json").write_text(config + "\n")
        progress("comparing with PyTorch")
        vectors = torch_vectors(model, PARITY_TEXTS)
        dimension = vectors.shape[1]
        files = hash_files(folder)
        tokens: list[str | int] = ["batch", "length"]
        manifest = Manifest(
            format=1,
            version=version_of(model.name, files),
            base=base or PACKAGED_NAME,
            task="sentence-embedding",
            inputs=[Tensor(name=name, dtype="int64", shape=tokens) for name in ("input_ids", "attention_mask")],
            outputs=[Tensor(name="sentence_embedding", dtype="float32", shape=["batch", dimension])],
            dimension=dimension,
            pooling=model.pooling,
            max_length=model.max_length,
            opset=OPSET,
            libraries=library_versions(),
            variants=FILES,
            files=files,
            fused_operators=fused,
            accuracy={},
            parity=[Parity(text=t, vector=v.tolist()) for t, v in zip(PARITY_TEXTS, vectors, strict=True)],
        )
        write_manifest(folder, manifest)
        progress("measuring each variant")
        manifest = msgspec.structs.replace(manifest, accuracy=measure_accuracy(folder, tuple(FILES)))
        (folder / "README.md").write_text(_card(model.name, manifest))
        manifest = msgspec.structs.replace(manifest, files=hash_files(folder))
        write_manifest(folder, manifest)
        check_computation(folder, manifest, manifest.accuracy)
    return manifest


def _card(name: str, manifest: Manifest) -> str:
    rows = []
    for variant, file in manifest.variants.items():
        accuracy = manifest.accuracy[variant]
        rows.append(f"| {variant} | `{file}` | {accuracy.cosine_mean:.5f} | {accuracy.cosine_min:.5f} |")
    return CARD.format(
        name=name,
        base=manifest.base,
        dimension=manifest.dimension,
        rows="\n".join(rows),
        sentences=len(HELD_OUT),
        tolerance=PARITY_TOLERANCE,
        tokenizer=TOKENIZER,
        max_length=manifest.max_length,
        pooling=manifest.pooling,
        calibration=len(CALIBRATION),
    )
