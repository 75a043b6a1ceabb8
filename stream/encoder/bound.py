"""Micro-batches on a GPU with I/O binding: one copy up and one down a call, and no waiting in between.

`InferenceSession.run` copies each input up, waits for the device and copies each output down, for every micro-batch. Here the
token ids of all micro-batches go up together, each run reads and writes its part of memory that this call owns, and the
vectors come down together.
"""

from __future__ import annotations

import threading
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

    `device="cpu"` makes the same calls on a CPU session. `most_tokens` bounds texts × length of a micro-batch. Any thread may
    call; one call at a time is on the device.

    What makes it safe not to wait for a run before the next one is launched ("disable_synchronize_execution_providers"):

    - ONNX Runtime keeps a session's CUDA stream for its next run, so that runs of which none overlaps another in the host
      are on one stream, and memory of the session's that one of them gave back is written by the next only afterwards.
    - Inputs and outputs are not of the session's memory: the session neither takes them back nor gives them away.
    - They live until the device is done, which the last run waits for. It also frees what the others left in pinned memory.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        output: str,
        width: int,
        most_tokens: int,
        device: Literal["cpu", "cuda"] = "cuda",
    ) -> None:
        self._session, self._output, self._width, self._device = session, output, width, device
        # Nothing is padded, so that each attention mask is the beginning of these ones, which stay on the device.
        self._ones = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones(most_tokens, np.int64), device, DEVICE)
        self._no_wait = onnxruntime.RunOptions()
        self._no_wait.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._alone = threading.Lock()

    def __call__(self, batches: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the rows of all texts of one or more `batches`, in their order, shape (texts, width)."""
        id_starts = _starts([batch.size for batch in batches])
        row_starts = _starts([len(batch) * self._width for batch in batches])
        packed = np.zeros(id_starts[-1], np.int64)
        for batch, start in zip(batches, id_starts, strict=False):
            packed[start : start + batch.size] = batch.ravel()
        with self._alone:
            ids = onnxruntime.OrtValue.ortvalue_from_numpy(packed, self._device, DEVICE)
            rows = onnxruntime.OrtValue.ortvalue_from_shape_and_type([row_starts[-1]], np.float32, self._device, DEVICE)
            binding = self._session.io_binding()
            try:
                for number, batch in enumerate(batches):
                    id_at = ids.data_ptr() + id_starts[number] * packed.itemsize
                    row_at = rows.data_ptr() + row_starts[number] * np.dtype(np.float32).itemsize
                    mask_at, shape = self._ones.data_ptr(), batch.shape
                    binding.bind_input("input_ids", self._device, DEVICE, np.int64, shape, id_at)
                    binding.bind_input("attention_mask", self._device, DEVICE, np.int64, shape, mask_at)
                    binding.bind_output(self._output, self._device, DEVICE, np.float32, (len(batch), self._width), row_at)
                    last = number == len(batches) - 1
                    self._session.run_with_iobinding(binding, None if last else self._no_wait)
            finally:  # also where a run failed: those before it still write
                binding.synchronize_outputs()
            found = rows.numpy()
        parts = zip(batches, row_starts, strict=False)
        return np.concatenate([found[at : at + len(batch) * self._width].reshape(-1, self._width) for batch, at in parts])


def _starts(sizes: Sequence[int]) -> list[int]:
    """Return where each part begins in memory that holds all of them, in elements, and then where the last one ends."""
    return list(accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))
