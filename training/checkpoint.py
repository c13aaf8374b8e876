"""Checkpoints: everything a run needs to go on as if it had never stopped.

    runs/<recipe>/<started>/checkpoint.pt     written between epochs and when a run is told to stop, by rename
                            events.out...     TensorBoard

The order of items and every random draw are functions of (seed, step), so no generator's state is kept: weights,
optimizer, schedule, averages and the place in the epoch are all. Read with `weights_only`: a checkpoint runs no code.
Checked by tests/training/test_checkpoint.py.
"""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct

from training.errors import CheckpointDamaged, naming
from training.recipes import Recipe

FORMAT = 1
CHECKPOINT_FILE = "checkpoint.pt"


class Checkpoint(Struct, frozen=True):
    """A run after `step` steps of `epoch`, both counted from 0.

    sums      of this epoch so far: loss, right answers, items; float64
    history   one record per finished epoch, as plain values
    parts     state_dicts by what they belong to; `best` likewise, of the epoch that early stopping would keep
    seconds   of training so far; `source` the commits it ran at
    """

    recipe: Recipe
    dataset_sha256: str
    epoch: int
    step: int
    seconds: float
    sums: list[float]
    history: list[dict[str, Any]]  # Any: plain values, converted by whoever wrote them
    parts: dict[str, dict[str, Any]]  # Any: tensors and numbers as torch's state_dicts nest them
    source: list[str]
    processes: int = 1
    best: dict[str, Any] | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Raises OSError where it cannot be written; what was there before is then still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    content = {field: getattr(checkpoint, field) for field in checkpoint.__struct_fields__}
    content |= {"format": FORMAT, "recipe": msgspec.to_builtins(checkpoint.recipe)}
    try:
        with naming(partial), partial.open("wb") as file:
            file.write(serialised(content))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def serialised(content: dict[str, Any]) -> bytes:  # Any: what `torch.load(..., weights_only=True)` reads
    """In memory, because torch hides a full disk behind a RuntimeError where it writes the file itself."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_checkpoint(path: Path) -> Checkpoint:
    """On the CPU. Raises CheckpointDamaged."""
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from error
    try:
        damaged = zipfile.ZipFile(file).testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise CheckpointDamaged(f"{path} is damaged: the checksum of {damaged} inside it differs.")
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise CheckpointDamaged(f"{path} was written by another version of this code; train again.")
        content["recipe"] = msgspec.convert(content["recipe"], Recipe)
        return Checkpoint(**content)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointDamaged(f"{path} is not a checkpoint of a training run, or a damaged one: {reason}") from error
