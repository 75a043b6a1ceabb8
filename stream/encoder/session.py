"""One ONNX Runtime session, on the device that was asked for."""

from __future__ import annotations

import ctypes
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import onnxruntime

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

# Bits of ONNX Runtime's attention kernels: memory-efficient (2) and unfused (16). Left to itself it takes cuDNN's on a Hopper GPU or a
# newer one, which is made for long texts: with queries it took two thirds of the GPU's time, 2.1 times as long as these do.
SDPA_KERNELS = "18"

# The GPU build warns about every device file that a CPU machine lacks. What matters is checked below, and raised.
onnxruntime.set_default_logger_severity(3)


class DeviceError(Exception):
    """The device that was asked for cannot run the model; the message says what to do."""


def open_session(path: Path, *, device: Literal["cpu", "cuda"]) -> onnxruntime.InferenceSession:
    """Load the graph at `path` on `device`. On a CPU a call computes in the thread that makes it; several may call at once.

    Raises `DeviceError` if `device` is `cuda` and the session would run anywhere else: ONNX Runtime itself only warns.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two threads within a product of this size gain a quarter and cost half as much again
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if device == "cpu":
        # The files are fused already. The next level would fuse again what model_export.quantize split because it is faster.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return onnxruntime.InferenceSession(path, options, providers=[CPU])
    with redirect_stdout(io.StringIO()) as said:  # it prints what it cannot load
        onnxruntime.preload_dlls()
        # TF32 would round an fp32 file's products to ten bits; the fp16 file's products do not use it.
        provider = (CUDA, {"use_tf32": "0", "sdpa_kernel": SDPA_KERNELS})
        session = onnxruntime.InferenceSession(path, options, providers=[provider, CPU])
    if session.get_providers()[0] != CUDA:
        raise DeviceError(
            "device=cuda, but ONNX Runtime cannot load its CUDA provider. Install the CUDA and cuDNN libraries that "
            f"onnxruntime-gpu {onnxruntime.__version__} was built for, or set device=cpu. {said.getvalue()}".rstrip()
        )
    return session


def choose_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return where to run: `auto` is `cuda` on a machine with a CUDA GPU, else `cpu`.

    Raises `DeviceError` if `cuda` was asked for and the machine has no CUDA GPU.
    """
    if device == "cpu":
        return "cpu"
    gpus = count_gpus()
    if device == "cuda" and gpus == 0:
        raise DeviceError(
            "device=cuda, but the NVIDIA driver reports no GPU here. Check `nvidia-smi` (in a container: --gpus all), "
            "or set device=cpu"
        )
    return "cuda" if gpus else "cpu"


def count_gpus() -> int:
    """Return how many CUDA GPUs the NVIDIA driver offers to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
