"""`python -m training rate NAME`: items/s of a published network in torch alone, one JSON line for each batch size.

The network of the version with its weights, eager, float32 without TF32, host to device and back included: what serving
it with onnxruntime is compared with on the same device (loadtests/gpu_bench.py).
"""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch

from models.manifest import read_golden, read_manifest
from training.architectures import Served, build
from training.checkpoint import CHECKPOINT_FILE
from training.data import SOURCES, DataSet
from training.errors import VersionUnknown
from training.recipes import Recipe


class Rate(msgspec.Struct, frozen=True):
    batch: int
    items_per_s: float
    ms: float


def newest_with_weights(repository: Path, name: str) -> Path:
    """Of the model, the highest version that has its checkpoint. Raises VersionUnknown."""
    found = [path.parent for path in (repository / name).glob(f"*/{CHECKPOINT_FILE}")]
    if not found:
        raise VersionUnknown(f"No version of {name} in {repository} has a {CHECKPOINT_FILE}.")
    return max(found, key=lambda folder: int(folder.name))


def rates(folder: Path, device: torch.device, largest: int, seconds: float) -> Iterator[Rate]:
    """Of batches of 1, 2, 4, … up to `largest`, each measured for `seconds`."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = device.type == "cuda"
    (golden,) = read_golden(folder).inputs.values()
    model = published(folder, golden).to(device)
    batch = 1
    while batch <= largest:
        items = np.resize(golden, (batch, *golden.shape[1:]))
        took = _seconds_of_a_run(model, items, device, seconds)
        yield Rate(batch, batch / took, 1e3 * took)
        batch *= 2


def published(folder: Path, items: np.ndarray) -> Served:
    """The version's network, in evaluation mode."""
    manifest = read_manifest(folder)
    assert manifest.provenance is not None, "bug: a checkpoint without its recipe"
    recipe = msgspec.convert(manifest.provenance.recipe, Recipe)
    targets = np.zeros(len(items), np.uint8 if manifest.classification else np.float32)
    model = build(recipe, DataSet(SOURCES[recipe.dataset], items, targets, items, targets))
    model.load_state_dict(torch.load(folder / CHECKPOINT_FILE, weights_only=True))
    return model.eval()


def _seconds_of_a_run(model: Served, items: np.ndarray, device: torch.device, seconds: float) -> float:
    with torch.inference_mode():
        for _ in range(3):  # choose kernels, allocate
            _run(model, items, device)
        runs, begun = 0, time.monotonic()
        while time.monotonic() < begun + seconds:
            _run(model, items, device)
            runs += 1
    return (time.monotonic() - begun) / runs


def _run(model: Served, items: np.ndarray, device: torch.device) -> None:
    for output in model(torch.from_numpy(items).to(device)):
        output.cpu()
