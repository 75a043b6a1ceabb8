"""Micro-batches on a GPU with I/O binding: one copy up and one down a call.

`InferenceSession.run` copies the inputs of each micro-batch up and its outputs down. Here the token ids of all micro-batches go up
together, each run reads and writes its part of memory on the device, and the vectors come down together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

DEVICE = 0  # the first that CUDA_VISIBLE_DEVICES leaves; the session has the same default
ALIGNED = 64  # elements: each part begins at a multiple of 256 bytes, as if it had been allocated alone


class BoundRuns:
    """Runs of one session from token ids (texts, length), int64, to rows of `width` float32, on the session's device.

    `device="cpu"` makes the same calls on a CPU session. `most_tokens` bounds texts × length of a micro-batch. Any thread may call.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        output: str,
        width: int,
        most_tokens: int,
        device: Literal["cpu", "cuda"] = "cuda",
    ) -> None:
        self._session, self._output, self._width, self._device, self._most = session, output, width, device, most_tokens
        # Nothing is padded, so that each attention mask is the beginning of these ones, which stay on the device.
        self._ones = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones(most_tokens, np.int64), device, DEVICE)

    def __call__(self, batches: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the rows of each of one or more `batches`, shape (texts, width).

        Raises:
            ValueError: one has more than `most_tokens`. ONNX Runtime would read what lies behind the mask.
        """
        if (largest := max(batch.size for batch in batches)) > self._most:
            raise ValueError(f"a micro-batch of {largest} tokens, not {self._most} at most")
        id_starts = _starts([batch.size for batch in batches])
        row_starts = _starts([len(batch) * self._width for batch in batches])
        packed = np.zeros(id_starts[-1], np.int64)
        for batch, start in zip(batches, id_starts, strict=False):
            packed[start : start + batch.size] = batch.ravel()
        ids = onnxruntime.OrtValue.ortvalue_from_numpy(packed, self._device, DEVICE)
        rows = onnxruntime.OrtValue.ortvalue_from_shape_and_type([row_starts[-1]], np.float32, self._device, DEVICE)
        binding = self._session.io_binding()
        for batch, id_start, row_start in zip(batches, id_starts, row_starts, strict=False):
            id_at = ids.data_ptr() + id_start * packed.itemsize
            row_at = rows.data_ptr() + row_start * np.dtype(np.float32).itemsize
            binding.bind_input("input_ids", self._device, DEVICE, np.int64, batch.shape, id_at)
            binding.bind_input("attention_mask", self._device, DEVICE, np.int64, batch.shape, self._ones.data_ptr())
            binding.bind_output(self._output, self._device, DEVICE, np.float32, (len(batch), self._width), row_at)
            self._session.run_with_iobinding(binding)
        found = rows.numpy()
        parts = zip(batches, row_starts, strict=False)
        return [found[at : at + len(batch) * self._width].reshape(-1, self._width) for batch, at in parts]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins in memory that holds all of them, in elements, and then where the last one ends."""
    return list(accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))
