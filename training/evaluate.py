"""What the trained model scores on the test set, in torch and float32: the reference the exported file is held to.

Checked by tests/training/test_evaluate.py.
"""

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from training import metrics
from training.architectures import Served
from training.data import Array, DataSet, Source, on_device

ITEMS_AT_ONCE = 500

FloatArray = npt.NDArray[np.float32]


class Score(Struct, frozen=True):
    """metrics by name; answers float32, by output name, one row per test item in order."""

    metrics: dict[str, float]
    answers: dict[str, FloatArray]


def evaluate(model: Served, data: DataSet) -> Score:
    """On the device the model is on, which must be in evaluation mode."""
    answers = torch_answers(model, data.test_x)
    return Score(metrics_of(answers, data.source, data.test_y), answers)


def torch_answers(model: Served, items: Array) -> dict[str, FloatArray]:
    """Raw items, as the data set holds them → float32 [n, numbers] by output name."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [
            [output.cpu().numpy() for output in model(on_device(items[start : start + ITEMS_AT_ONCE], device))]
            for start in range(0, len(items), ITEMS_AT_ONCE)
        ]
    return {name: np.concatenate(column) for name, column in zip(model.outputs, zip(*parts, strict=True), strict=True)}


def metrics_of(answers: dict[str, FloatArray], source: Source, targets: Array) -> dict[str, float]:
    if source.labels:
        return metrics.classification(answers["logits"], answers["probabilities"], targets)
    return metrics.regression(answers["prediction"], targets)


def predicted(answers: dict[str, FloatArray], source: Source) -> npt.NDArray[np.generic]:
    """The label of each item as int64 [n], or the number as float32 [n]."""
    if source.labels:
        chosen: npt.NDArray[np.generic] = answers["logits"].argmax(axis=1)
        return chosen
    numbers: npt.NDArray[np.generic] = answers["prediction"][:, 0]
    return numbers
