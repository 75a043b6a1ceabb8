"""What an export promises, in one place."""

from __future__ import annotations

from stream.encoder.manifest import Variant

OPSET = 18  # 23 and 24 have operators that ONNX Runtime's fusions and quantisers do not know yet

# Of a unit vector's components, ONNX Runtime against PyTorch. Both compute in float32; 2e-7 is what was seen.
PARITY_TOLERANCE = 1e-5

# The least mean cosine similarity to the fp32 vectors at which a variant may be written, and verified.
ACCURACY_FLOOR: dict[Variant, float] = {"fp32": 0.999999, "int8": 0.99, "fp16": 0.999}

# SmoothQuant's migration strength (Xiao et al. 2023, arXiv:2211.10438): how much of an activation's spread over its
# channels goes into the weights. Of 0.5 to 1, it is where all-MiniLM-L6-v2 loses least.
SMOOTHING = 0.75

# The least share of the fp32 file's metric on held-out data that a trained model's variant must keep to be published.
GATES: dict[Variant, float] = {"fp16": 0.999, "int8": 0.995}

# Likewise of the whole model's metric, for one with fewer layers.
PRUNED_GATE = 0.97
