"""How fast is the encoder on a CPU? Real queries, all different, nothing cached; ours beside what one would use instead.

    python tests/bench/bench_encoder.py ../shared/data/bestbuy [--texts 2000]

Each encoder is a process of its own (tests/bench/encoder_side.py) which first finds its own best batch size; then they take
turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from encoder_side import MODEL
from side_by_side import parser, report, take_turns
from stage import HERE, OURS, PEERS, REPOSITORY
from tokenizers import Tokenizer

from stream.lines import DataFolder, read_lines

PLAIN = ("onnxruntime", "openvino")


def queries(data: Path, count: int) -> list[str]:
    """The first so many different queries of a log."""
    files = DataFolder.find(data)
    lines = read_lines(files.searches or files.clicks)
    return different((json.loads(line).get("query") or "" for line in lines), count)


def different(texts: Iterable[str], count: int) -> list[str]:
    """The first so many texts that differ to the model: others are the same tokens spelled otherwise, and we compute those once."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    found: dict[tuple[int, ...], str] = {}
    for text in dict.fromkeys(texts):
        found.setdefault(tuple(tokenizer.encode(text).ids), text)
        if len(found) == count:
            break
    return list(found.values())


class Side:
    """An encoder's process."""

    def __init__(self, name: str, process: subprocess.Popen[str], texts: int, vectors: Path) -> None:
        self._process, self._texts, self._vectors = process, texts, vectors
        self.name = name
        self.choice: str = json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return line

    def __call__(self) -> float:
        """Encode everything once; texts/s."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._texts / float(self._answer())

    @property
    def vectors(self) -> np.ndarray:
        found: np.ndarray = np.load(self._vectors)
        return found


@contextmanager
def encoder_side(name: str, folder: Path, texts: list[str]) -> Iterator[Side]:
    listed, vectors = folder / "texts.json", folder / f"{name}.npy"
    listed.write_text(json.dumps(texts))
    python = OURS if name.startswith("ours") else PEERS
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / "encoder_side.py"), name, str(listed), str(vectors)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Side(name, process, len(texts), vectors)
        finally:
            process.kill()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--texts", type=int, default=2000)
    chosen = options.parse_args()
    texts = queries(chosen.data, chosen.texts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        names = ("ours", "sentence-transformers", *PLAIN)
        sides = {name: stack.enter_context(encoder_side(name, folder, texts)) for name in names}
        rates = dict(zip(sides, take_turns(chosen.rounds, *sides.values()), strict=True))
        exact = sides["sentence-transformers"].vectors
        cosine = {name: round(float((side.vectors * exact).sum(1).mean()), 5) for name, side in sides.items()}
    choices = {name: side.choice for name, side in sides.items()}
    facts: dict[str, Any] = {"texts": len(texts), "cosine_to_fp32": cosine, "chosen": choices}
    report(
        "encoder on the CPU, real queries, all different; against sentence-transformers on torch, fp32",
        rates["ours"],
        rates["sentence-transformers"],
        "texts/s",
        2.0,
        **facts,
    )
    best = max(PLAIN, key=lambda name: statistics.median(rates[name]))
    report(
        "encoder on the CPU, real queries, all different; against the best of ONNX Runtime int8 and OpenVINO bf16 in a plain loop",
        rates["ours"],
        rates[best],
        "texts/s",
        1.0,
        best=best,
        medians={name: round(statistics.median(rates[name])) for name in PLAIN},
    )


if __name__ == "__main__":
    main()
