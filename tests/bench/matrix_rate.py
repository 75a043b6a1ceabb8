"""What the GPU is called, and how fast it multiplies; run in the peers' environment.

    python tests/bench/matrix_rate.py

Says in a line of JSON: `gpu`, and `matrix_tflops`, the median of ten products of two square fp16 matrices of 8,192 rows by torch,
after a second of the same, when the clock has settled.
"""

from __future__ import annotations

import json
import statistics
import time

import torch

ROWS = 8192
WARM_UP = 1.0  # seconds
PRODUCTS = 10


def seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """What one product takes, from an idle device to an idle device."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    torch.mm(a, b)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    a, b = (torch.randn(ROWS, ROWS, dtype=torch.float16, device="cuda") for _ in range(2))
    until = time.perf_counter() + WARM_UP
    while time.perf_counter() < until:
        seconds(a, b)
    took = statistics.median(seconds(a, b) for _ in range(PRODUCTS))
    rate = 2 * ROWS**3 / took / 1e12
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "matrix_tflops": float(f"{rate:.4g}")}))


if __name__ == "__main__":
    main()
