"""Texts to unit vectors: the model folder that `model-export` made, in ONNX Runtime."""

from __future__ import annotations

import logging
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stream.encoder.batching import GPU_MULTIPLE, GPU_TOKEN_BUDGET, TOKEN_BUDGET, micro_batches
from stream.encoder.bound import BoundRuns, Inputs
from stream.encoder.cache import EmbeddingCache
from stream.encoder.manifest import TOKENIZER, Manifest, ModelFolderError, ModelTask, Variant, check_files, read_manifest
from stream.encoder.session import CPU, CUDA, Device, DeviceError, choose_device, open_session

__all__ = ["DeviceError", "Encoder", "Manifest", "ModelFolderError", "read_manifest"]

log = logging.getLogger(__name__)

# What runs fastest where, at an accuracy that the manifest states.
BEST_VARIANT: dict[str, Variant] = {"cpu": "int8", "cuda": "fp16"}
TOKEN_BYTES = 4


class Encoder:
    """A sentence encoder.

        encoder = Encoder(Path("models/default"))
        encoder.encode(["garden hose", "hose reel"])  # float32, shape (2, encoder.dimension), rows of length 1

    On a CPU a text's vector is the same, bit for bit, whatever else is encoded with it, on any number of threads, and
    whether or not it comes from the cache. On a GPU it is the same to fp16's accuracy.

    `variant="auto"` is int8 on a CPU and fp16 on CUDA. `threads` is the number of micro-batches computed at once on
    a CPU, 0 being one for each core. `cache_size` is a number of texts. Raises `ModelFolderError` if the folder is not a whole model
    folder of the `task` (hashes are checked), `DeviceError` if `device="cuda"` cannot run. With `task="classification"` the
    rows of `encode` are a classifier's logits, one for each of `manifest.labels`.
    """

    version: str
    """Names the vectors: those of two versions must not be compared. The model's version and the variant."""
    dimension: int
    provider: str
    """ONNX Runtime's name of what computes: `CPUExecutionProvider` or `CUDAExecutionProvider`."""

    def __init__(
        self,
        folder: Path,
        *,
        device: Device = "auto",
        variant: Literal["auto", "fp32", "int8", "fp16"] = "auto",
        threads: int = 0,
        cache_size: int = 100_000,
        task: ModelTask = "sentence-embedding",
    ) -> None:
        self.folder = folder
        self.manifest = manifest = read_manifest(folder)
        if manifest.task != task:
            raise ModelFolderError(f"the model in {folder} is for {manifest.task}, not for {task}: name another folder")
        where = choose_device(device)
        try:
            self._load(folder, where, variant)
        except DeviceError as error:
            if device != "auto":
                raise
            log.warning("there is a GPU, but the model runs on the CPU: %s", error)
            self._load(folder, "cpu", variant)
        self.dimension = manifest.dimension
        self._output = manifest.outputs[0].name
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest.max_length)
        if len(self._tokenizer.encode("").ids) < 2:
            # A product with a single row takes another path through the matrix library and ends in other last bits.
            raise ModelFolderError(f"the tokenizer in {folder} frames a text with fewer than two tokens: not supported")
        count = threads or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(count, "encoder") if count > 1 and self.provider == CPU else None
        self._bound: BoundRuns | None = None
        self._token_budget, self._multiple = TOKEN_BUDGET, 1
        if self.provider == CUDA:
            self._token_budget, self._multiple = GPU_TOKEN_BUDGET, GPU_MULTIPLE
            self._bound = BoundRuns(self._session, self._output, manifest.dimension)
        self._cache = EmbeddingCache(cache_size, manifest.dimension)
        self._looking, self._computing = threading.Lock(), threading.Lock()  # what is in the cache waits for no computation
        log.info("encoder %s on %s, %d dimensions", self.version, self.provider, self.dimension)

    def _load(self, folder: Path, device: Literal["cpu", "cuda"], variant: str) -> None:
        chosen: Variant = BEST_VARIANT[device] if variant == "auto" else variant  # type: ignore[assignment]
        if chosen not in self.manifest.variants:
            raise ModelFolderError(
                f"the model in {folder} has no {chosen} variant, only {', '.join(sorted(self.manifest.variants))}"
            )
        file = self.manifest.variants[chosen]
        check_files(folder, self.manifest, [file, TOKENIZER])
        self._session = open_session(folder / file, device=device)
        self.provider = self._session.get_providers()[0]
        self.version = f"{self.manifest.version}-{chosen}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of `texts`, shape (len(texts), dimension). An empty text has a vector too."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        with self._looking:
            unknown = self._cache.get(texts, vectors)
        if not unknown:
            return vectors
        if len(unknown) == len(texts):
            return self._compute(texts)
        vectors[unknown] = self._compute([texts[position] for position in unknown])
        return vectors

    def _compute(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode what was not in the cache a moment ago. One thread at a time: another may be at the same texts just now."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        tokens = self._tokenize(texts)
        with self._computing:
            with self._looking:
                self._cache.spell(dict(zip(texts, tokens, strict=True)))
                unknown = self._cache.find(tokens, vectors)
            if unknown:
                new = {sequence: row for row, sequence in enumerate(dict.fromkeys(tokens[position] for position in unknown))}
                fresh = self._run(list(new))
                with self._looking:
                    self._cache.put(list(new), fresh)
                if len(new) == len(texts):
                    return fresh
                vectors[unknown] = fresh[[new[tokens[position]] for position in unknown]]
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> list[bytes]:
        """Return each text's token ids, int32, as bytes: short, and a key."""
        return [array("i", encoding.ids).tobytes() for encoding in self._tokenizer.encode_batch_fast(texts)]

    def __contains__(self, text: str) -> bool:
        """Return whether a text's vector is in the cache; any thread may ask."""
        return text in self._cache

    def warm_up(self) -> None:
        """Run the model once on a short and a long text: the first event shall not wait for what loads lazily."""
        self._run(self._tokenize(["", "warm " * self.manifest.max_length]))

    def _run(self, sequences: Sequence[bytes]) -> NDArray[np.float32]:
        lengths = [self._padded(len(tokens) // TOKEN_BYTES) for tokens in sequences]
        batches = list(micro_batches(lengths, self._token_budget))
        batches.reverse()  # the longest first: what comes last is done at about the same time
        inputs = [_stacked([sequences[position] for position in batch], lengths[batch[0]]) for batch in batches]
        if self._bound is not None:
            parts: Iterable[NDArray[np.float32]] = self._bound(inputs)
        else:
            at_once = map if self._threads is None or len(batches) == 1 else self._threads.map
            parts = at_once(self._plain, inputs)
        vectors = np.empty((len(sequences), self.dimension), np.float32)
        for batch, found in zip(batches, parts, strict=True):
            vectors[batch] = found
        return vectors

    def _padded(self, length: int) -> int:
        return min(-(-length // self._multiple) * self._multiple, self.manifest.max_length)

    def _plain(self, inputs: Inputs) -> NDArray[np.float32]:
        ids, mask = inputs
        found: NDArray[np.float32] = self._session.run([self._output], {"input_ids": ids, "attention_mask": mask})[0]
        return found


def _stacked(sequences: Sequence[bytes], length: int) -> Inputs:
    """Return token sequences as rows, padded to `length`, and their mask."""
    lengths = np.array([len(tokens) // TOKEN_BYTES for tokens in sequences])
    mask = np.arange(length) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.frombuffer(b"".join(sequences), np.int32)
    return ids, mask.astype(np.int64)
