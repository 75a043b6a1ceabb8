"""Micro-batches on a GPU with I/O binding: one copy up and one down a call.

`InferenceSession.run` copies the inputs of each micro-batch up and its outputs down. Here the inputs of all micro-batches go up
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


Inputs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""A micro-batch: token ids and attention mask, each of shape (texts, length)."""


class BoundRuns:
    """Runs of one session from micro-batches to rows of `width` float32, on the session's device.

    `device="cpu"` makes the same calls on a CPU session. Any thread may call.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        output: str,
        width: int,
        device: Literal["cpu", "cuda"] = "cuda",
    ) -> None:
        self._session, self._output, self._width, self._device = session, output, width, device

    def __call__(self, batches: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        """Return the rows of each of one or more `batches`, shape (texts, width)."""
        arrays = [array for batch in batches for array in batch]
        starts = _starts([array.size for array in arrays])
        row_starts = _starts([len(ids) * self._width for ids, _ in batches])
        packed = np.zeros(starts[-1], np.int64)
        for array, start in zip(arrays, starts, strict=False):
            packed[start : start + array.size] = array.ravel()
        inputs = onnxruntime.OrtValue.ortvalue_from_numpy(packed, self._device, DEVICE)
        rows = onnxruntime.OrtValue.ortvalue_from_shape_and_type([row_starts[-1]], np.float32, self._device, DEVICE)
        places = [inputs.data_ptr() + start * packed.itemsize for start in starts]
        binding = self._session.io_binding()
        for (ids, mask), ids_at, mask_at, start in zip(batches, places[::2], places[1::2], row_starts, strict=False):
            row_at = rows.data_ptr() + start * np.dtype(np.float32).itemsize
            binding.bind_input("input_ids", self._device, DEVICE, np.int64, ids.shape, ids_at)
            binding.bind_input("attention_mask", self._device, DEVICE, np.int64, mask.shape, mask_at)
            binding.bind_output(self._output, self._device, DEVICE, np.float32, (len(ids), self._width), row_at)
            self._session.run_with_iobinding(binding)
        found = rows.numpy()
        parts = zip(batches, row_starts, strict=False)
        return [found[at : at + len(ids) * self._width].reshape(-1, self._width) for (ids, _), at in parts]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins in memory that holds all of them, in elements, and then where the last one ends."""
    return list(accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))
