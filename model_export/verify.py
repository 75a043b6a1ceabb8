"""Is this model folder whole, and does it still compute what it promised? Needs ONNX Runtime only, no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.manifest import hash_files, version_of
from model_export.sentences import HELD_OUT
from model_export.settings import ACCURACY_FLOOR, PARITY_TOLERANCE
from stream.encoder import Encoder
from stream.encoder.manifest import Accuracy, Manifest, ModelFolderError, Variant, check_files, read_manifest
from stream.learned_drift import LearnedDetector


class VerificationError(Exception):
    """The model does not do what its manifest says; the message says which promise is broken."""


def verify(folder: Path) -> Manifest:
    """Check hashes, version, parity with PyTorch, each variant's accuracy and independence of the batch, on this CPU.

    Returns the manifest. Raises `ModelFolderError` for a folder that is not whole, `VerificationError` for one that
    computes wrongly.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, list(manifest.files))
    strange = sorted(set(hash_files(folder)) - set(manifest.files))
    if strange:
        raise ModelFolderError(f"{folder} holds what its manifest does not list: {', '.join(strange)}. Remove it")
    name = manifest.version.rpartition("-")[0]
    if manifest.version != version_of(name, manifest.files):
        raise VerificationError(
            f"version {manifest.version} was not made from these files: {version_of(name, manifest.files)} was"
        )
    check_computation(folder, manifest, measure_accuracy(folder, manifest))
    if manifest.drift is not None:
        check_drift(folder, manifest)
    return manifest


def check_computation(folder: Path, manifest: Manifest, accuracy: dict[Variant, Accuracy]) -> None:
    """Raise `VerificationError` unless parity, `accuracy` and the vectors' independence of each other hold."""
    check_parity(folder, manifest)
    for variant in manifest.variants:
        check_accuracy(variant, accuracy[variant])
        check_independence(folder, manifest, variant)


def check_parity(folder: Path, manifest: Manifest) -> None:
    """Raise `VerificationError` unless the fp32 file gives PyTorch's outputs to within `PARITY_TOLERANCE` of the largest, or of 1."""
    parity = manifest.parity
    vectors = _open(folder, manifest, "fp32").encode([example.text for example in parity])
    expected = np.array([example.vector for example in parity], np.float32)
    off = np.abs(vectors - expected).max(axis=1) / max(1.0, float(np.abs(expected).max()))
    if off.max() > PARITY_TOLERANCE:
        worst = parity[int(off.argmax())].text
        raise VerificationError(
            f"parity: for {worst!r} the fp32 vector is {off.max():.2g} away from PyTorch's; {PARITY_TOLERANCE:.0g} is allowed"
        )


def measure_accuracy(folder: Path, manifest: Manifest) -> dict[Variant, Accuracy]:
    """Compare each variant's outputs of the held-out sentences, computed on the CPU, with those of fp32."""
    exact = _outputs(folder, manifest, "fp32")
    measured: dict[Variant, Accuracy] = {}
    for variant in manifest.variants:
        # Lengths are 1 to a float32's precision only; in float64 the cosine of equal vectors is 1 to all digits kept.
        vectors = _outputs(folder, manifest, variant)
        cosine = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
        measured[variant] = Accuracy(
            cosine_mean=round(float(cosine.mean()), 6),
            cosine_min=round(float(cosine.min()), 6),
            sentences=len(HELD_OUT),
        )
    return measured


def _open(folder: Path, manifest: Manifest, variant: Variant) -> Encoder:
    return Encoder(folder, device="cpu", variant=variant, cache_size=0, task=manifest.task)


def _outputs(folder: Path, manifest: Manifest, variant: Variant) -> NDArray[np.float64]:
    return _open(folder, manifest, variant).encode(HELD_OUT).astype(np.float64)


def check_accuracy(variant: Variant, accuracy: Accuracy) -> None:
    """Raise `VerificationError` if a variant's mean cosine to fp32 is below its floor."""
    floor = ACCURACY_FLOOR[variant]
    if not accuracy.cosine_mean >= floor:
        raise VerificationError(
            f"accuracy: the mean cosine of {variant} to fp32 is {accuracy.cosine_mean:.4f} over {accuracy.sentences} "
            f"sentences; {floor} is the floor"
        )


def check_independence(folder: Path, manifest: Manifest, variant: Variant) -> None:
    """Raise `VerificationError` unless a sentence gets the same output, bit for bit, alone and among others."""
    encoder = _open(folder, manifest, variant)
    together = encoder.encode(HELD_OUT)
    for text, vector in zip(HELD_OUT, together, strict=True):
        if not np.array_equal(encoder.encode([text])[0], vector):
            raise VerificationError(f"independence: {variant} gives {text!r} another vector alone than among others")


def check_drift(folder: Path, manifest: Manifest) -> None:
    """Raise `VerificationError` unless the drift detector gives probabilities, the same bit for bit alone and among others."""
    detector = LearnedDetector(folder, manifest, model=1)
    sums, counts = drift_examples(manifest)
    together = detector.probabilities(sums, counts)
    if not (np.isfinite(together).all() and together.min() >= 0.0 and together.max() <= 1.0 + 1e-6):
        raise VerificationError("drift: what the detector computes are no probabilities")
    for row in range(len(sums)):
        if detector.probabilities(sums[row : row + 1], counts[row : row + 1])[0] != together[row]:
            raise VerificationError("independence: the drift detector gives a user another probability alone than among others")


def drift_examples(manifest: Manifest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return seeded sums (n, K, m) and counts (n,) such as a detector meets."""
    assert manifest.drift is not None
    part = manifest.drift
    chance = np.random.default_rng(0)
    counts = chance.integers(part.warm_up, 200, 100).astype(np.float32)
    lengths = np.minimum(counts[:, None], np.array(part.half_lives) / np.log(2))
    sums = chance.normal(scale=0.2, size=(100, len(part.half_lives), part.size)) * lengths[:, :, None]
    return sums.astype(np.float32), counts
