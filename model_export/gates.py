"""What a trained model must reach before it is published."""

from __future__ import annotations

from collections.abc import Mapping

from model_export.options import TrainingError
from model_export.settings import GATES
from stream.encoder.manifest import Variant


def check_variants(metric: str, held_out: Mapping[Variant, float]) -> None:
    """Close the gate unless each variant keeps its share of the fp32 file's metric.

    Raises `TrainingError`, saying by how much it falls short.
    """
    for variant, share in GATES.items():
        check(f"{variant} against fp32", metric, held_out[variant], held_out["fp32"], share)


def check(what: str, metric: str, reached: float, reference: float, share: float) -> None:
    """Raise `TrainingError` unless `reached` is at least `share` of `reference`."""
    if not reached >= share * reference:
        raise TrainingError(
            f"gate: {what}: {metric} on held-out data is {reached:.4f}, {reached / reference:.2%} of {reference:.4f}; "
            f"{share:.1%} is asked for, {share * reference - reached:.4f} more. Nothing was published"
        )
