"""`model-export export`: the whole way from a base model to a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from model_export.export import PACKAGED_NAME, Servable, export_fp32, load_base, torch_outputs
from model_export.manifest import CARD as CARD_FILE
from model_export.manifest import hash_files, library_versions, replacing, version_of, write_manifest
from model_export.quantize import write_fp16, write_int8
from model_export.sentences import CALIBRATION, HELD_OUT
from model_export.settings import OPSET, PARITY_TOLERANCE, SMOOTHING
from model_export.verify import check_computation, measure_accuracy
from stream.encoder.manifest import TOKENIZER, Manifest, Parity, Tensor, Training, Variant

PARITY_TEXTS = HELD_OUT[:8]
FILES: dict[Variant, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx", "fp16": "model.fp16.onnx"}

CARD = """\
# {name}

{what}, made by `model-export` from {base}.
Its licence is that of the base model.

| variant | file | mean cosine to fp32 | least |
|---|---|---|---|
{rows}

Measured on {sentences} sentences on a CPU. The fp32 file agrees with PyTorch to {tolerance:.0g} in every component.

- Tokens: `{tokenizer}`, at most {max_length}; longer texts are cut.
- Inputs: `input_ids`, `attention_mask`, int64 (batch, length). Output: `{output}`, float32
  (batch, {dimension}); {pooling} pooling and normalisation are inside.
- int8 is static (SmoothQuant, one scale for each activation) and was calibrated on {calibration} texts.
- Without padding, a text's vector does not depend on the others in its batch.
- `manifest.json` has hashes, library versions and parity vectors; `model-export verify` checks them.
"""


WHAT = {
    "sentence-embedding": "A sentence encoder in ONNX (text to a unit vector of {dimension} numbers)",
    "classification": "A classifier of texts in ONNX (text to the logits of {dimension} classes)",
}


def export(base: str | None, output: Path, *, progress: Callable[[str], None] = lambda step: None) -> Manifest:
    """Write the model folder `output` and return its manifest; nothing is written unless every check of `verify` holds.

    Raises `ExportError`, `OutputError` or `VerificationError`.
    """
    progress("loading the base model")
    return publish(Servable.encoder(load_base(base)), output, base=base or PACKAGED_NAME, progress=progress)


def publish(
    model: Servable,
    output: Path,
    *,
    base: str,
    texts: Sequence[str] = (),
    judge: Callable[[Path, Manifest], tuple[Training, str]] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Write a model as the folder `output`, and return its manifest.

    Args:
        model: what is to be served.
        output: put in place in one piece, once every check has passed.
        base: what the manifest says that it was made from.
        texts: like those that it will meet; int8 is calibrated on them too.
        judge: measures the variants in the finished folder, and returns what the manifest and the card say of the training. What it
            raises closes the gate: nothing is published then.
        progress: is told what is done now.

    Raises:
        ExportError, OutputError, VerificationError: it cannot be exported or written, or computes wrongly.
    """
    with replacing(output) as folder:
        progress("exporting to ONNX")
        source = folder / FILES["fp32"]
        fused = {FILES["fp32"]: export_fp32(model, source)}
        progress("quantising")
        calibration = (*CALIBRATION, *texts)
        tokenizer = model.base.tokenizer
        fused[FILES["int8"]] = write_int8(source, folder / FILES["int8"], tokenizer, calibration, SMOOTHING)
        fused[FILES["fp16"]] = write_fp16(source, folder / FILES["fp16"])
        tokenizer.save(str(folder / TOKENIZER))
        config = json.dumps(model.base.encoder.config.to_dict(), indent=1, sort_keys=True)
        (folder / "config.json").write_text(config + "\n")
        progress("comparing with PyTorch")
        expected = torch_outputs(model, PARITY_TEXTS)
        dimension = expected.shape[1]
        files = hash_files(folder)
        tokens: list[str | int] = ["batch", "length"]
        manifest = Manifest(
            format=1,
            version=version_of(model.base.name, files),
            base=base,
            task=model.task,
            inputs=[Tensor(name=name, dtype="int64", shape=tokens) for name in ("input_ids", "attention_mask")],
            outputs=[Tensor(name=model.output, dtype="float32", shape=["batch", dimension])],
            dimension=dimension,
            pooling=model.base.pooling,
            max_length=model.base.max_length,
            opset=OPSET,
            libraries=library_versions(),
            variants=FILES,
            files=files,
            fused_operators=fused,
            accuracy={},
            parity=[Parity(text=t, vector=v.tolist()) for t, v in zip(PARITY_TEXTS, expected, strict=True)],
            labels=list(model.labels),
        )
        write_manifest(folder, manifest)
        progress("measuring each variant")
        manifest = msgspec.structs.replace(manifest, accuracy=measure_accuracy(folder, manifest))
        card = _card(model.base.name, manifest, len(calibration))
        if judge is not None:
            training, section = judge(folder, manifest)
            manifest = msgspec.structs.replace(manifest, training=training)
            card += "\n" + section
        (folder / CARD_FILE).write_text(card)
        manifest = msgspec.structs.replace(manifest, files=hash_files(folder))
        write_manifest(folder, manifest)
        check_computation(folder, manifest, manifest.accuracy)
    return manifest


def _card(name: str, manifest: Manifest, calibration: int) -> str:
    rows = []
    for variant, file in manifest.variants.items():
        accuracy = manifest.accuracy[variant]
        rows.append(f"| {variant} | `{file}` | {accuracy.cosine_mean:.5f} | {accuracy.cosine_min:.5f} |")
    return CARD.format(
        name=name,
        what=WHAT[manifest.task].format(dimension=manifest.dimension),
        base=manifest.base,
        dimension=manifest.dimension,
        output=manifest.outputs[0].name,
        rows="\n".join(rows),
        sentences=len(HELD_OUT),
        tolerance=PARITY_TOLERANCE,
        tokenizer=TOKENIZER,
        max_length=manifest.max_length,
        pooling=manifest.pooling,
        calibration=calibration,
    )
