"""How much faster is an encoder with fewer layers? `python tests/bench/bench_layers.py [LAYERS]`

The default base, whole and pruned, both exported here and not trained: speed does not depend on the weights. int8 on the CPU,
texts of the length of queries, the two taking turns. Prints one JSON line.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from model_export.contrast import prune
from model_export.export import Servable, export_fp32, load_base
from model_export.folder import FILES
from model_export.quantize import write_int8
from model_export.sentences import CALIBRATION, HELD_OUT
from model_export.settings import SMOOTHING
from stream.encoder.batching import micro_batches
from stream.encoder.session import open_session

ROUNDS = 15
TEXTS = [f"{text} {number}" for number in range(12) for text in (*HELD_OUT, *CALIBRATION) if len(text) < 40]


def main(layers: int) -> None:
    """Measure and print."""
    base = load_base(None)
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in (base, prune(base, layers)):
            count = int(model.encoder.config.num_hidden_layers)
            source = Path(folder) / f"{count}.onnx"
            export_fp32(Servable.encoder(model), source)
            target = Path(folder) / f"{count}.{FILES['int8']}"
            write_int8(source, target, base.tokenizer, CALIBRATION, SMOOTHING)
            sessions[count] = open_session(target, device="cpu")
    tokens = [encoding.ids for encoding in base.tokenizer.encode_batch_fast(TEXTS)]
    batches = [np.array([tokens[place] for place in batch]) for batch in micro_batches([len(ids) for ids in tokens])]
    seconds: dict[int, list[float]] = {count: [] for count in sessions}
    for _ in range(ROUNDS):
        for count, session in sessions.items():
            begun = time.process_time()
            for ids in batches:
                session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            seconds[count].append(time.process_time() - begun)
    rates = {count: len(TEXTS) / statistics.median(spent) for count, spent in seconds.items()}
    whole, fewer = max(rates), min(rates)
    found = {f"{count} layers, texts per CPU second": round(rate) for count, rate in rates.items()}
    print(json.dumps({"bench": "layers", "ratio": round(rates[fewer] / rates[whole], 2), **found}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
