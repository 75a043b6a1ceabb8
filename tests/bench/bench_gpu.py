"""How fast is the encoder on a GPU? Real queries, all different, nothing cached; ours in fp16 beside sentence-transformers in fp16.

    python tests/bench/bench_gpu.py ../shared/data/bestbuy [--texts 3600]

Where there is no GPU it says so and prints no line. Otherwise as tests/bench/bench_encoder.py, and the line also has the rate at which
the card multiplies large matrices, measured in the same run (tests/bench/matrix_rate.py), and the share of it that the texts make:
texts/s times the FLOPs of a text, padding not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench_encoder import encoder_side, queries
from encoder_side import MODEL
from side_by_side import parser, report, take_turns
from stage import HERE, PEERS
from tokenizers import Tokenizer

from stream.encoder import Encoder
from stream.encoder.session import count_gpus

SIDES = ("ours-cuda", "sentence-transformers-cuda")
COMPARED = 1000  # texts whose vectors are compared with fp32's, which a CPU computes


def flops(config: Mapping[str, Any], lengths: Sequence[int]) -> float:
    """FLOPs of one text, on average over texts of these token counts: the products of a BERT, two FLOPs a multiplication.

    A token goes through query, key, value and output (4 h²) and the two layers of the feed-forward net (2 h i); attention is, for
    each pair of tokens, one product of h for the score and one for the sum.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens = np.array(lengths, np.float64)
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    pairs = layers * 2 * hidden
    return float((2 * weights * tokens + 2 * pairs * tokens**2).mean())


def mean_cosine(vectors: np.ndarray, exact: np.ndarray) -> float:
    """Of rows to rows; a row in fp16 is not quite of length 1."""
    wide = vectors.astype(np.float32)
    return float(((wide * exact).sum(1) / np.linalg.norm(wide, axis=1)).mean())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--texts", type=int, default=3600)
    chosen = options.parse_args()
    if count_gpus() == 0:
        print("no GPU here: skipped", file=sys.stderr)
        return
    texts = queries(chosen.data, chosen.texts)
    card = json.loads(subprocess.run([PEERS, HERE / "matrix_rate.py"], check=True, stdout=subprocess.PIPE).stdout)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        sides = {name: stack.enter_context(encoder_side(name, folder, texts)) for name in SIDES}
        ours, theirs = take_turns(chosen.rounds, *sides.values())
        fp32 = Encoder(MODEL, device="cpu", variant="fp32")
        exact = fp32.encode(texts[:COMPARED])
        cosine = {name: round(mean_cosine(side.vectors[:COMPARED], exact), 5) for name, side in sides.items()}
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(fp32.manifest.max_length)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]
    a_text = flops(json.loads((MODEL / "config.json").read_text()), lengths)
    report(
        "encoder on a GPU, fp16, real queries, all different; against sentence-transformers on torch, fp16",
        ours,
        theirs,
        "texts/s",
        1.0,
        texts=len(texts),
        tokens_a_text=round(statistics.mean(lengths), 2),
        cosine_to_fp32=cosine,
        chosen={name: side.choice for name, side in sides.items()},
        **card,
        mflop_a_text=round(a_text / 1e6, 1),
        share_of_matrix_rate=float(f"{statistics.median(ours) * a_text / (card['matrix_tflops'] * 1e12):.3g}"),
    )


if __name__ == "__main__":
    main()
