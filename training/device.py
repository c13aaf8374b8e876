"""The device a run computes on, and what torch must be told about it.

Checked by tests/training/test_device.py.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from training.data import Source
from training.errors import DeviceUnavailable
from training.recipes import Recipe


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises DeviceUnavailable."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("--device cuda, but torch sees no CUDA device here; use --device auto or cpu.")
    return torch.device(wanted)


def prepare(recipe: Recipe, device: torch.device) -> None:
    """Torch's global switches."""
    torch.use_deterministic_algorithms(recipe.deterministic)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without
    torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic


def mixed_precision(
    recipe: Recipe, source: Source, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[object]], bool]:
    """The context a forward pass runs in, and whether its gradients need scaling.

    auto is bfloat16 where the device multiplies it: faster than float32 there, and slower than it elsewhere; a number
    to predict needs more digits than it has. Raises DeviceUnavailable for fp16 on a CPU.
    """
    kind = recipe.precision
    if kind == "auto":
        if device.type == "cuda":
            multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            multiplies = torch.cpu._is_avx512_bf16_supported()
        kind = "bf16" if multiplies and source.labels else "fp32"
    if kind == "fp32":
        return nullcontext, False
    if kind == "fp16" and device.type == "cpu":
        raise DeviceUnavailable("--precision fp16 needs a CUDA device; use bf16 or fp32 on a CPU.")
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype), kind == "fp16"
