"""What the trained model scores on the test set, in torch and float32: the reference the exported file is held to."""

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from training.architectures import Classifier
from training.data import DataSet, on_device

ITEMS_AT_ONCE = 500


class Score(Struct, frozen=True):
    """metrics by name; predictions int64 [n], the likeliest label of each test item, in order."""

    metrics: dict[str, float]
    predictions: npt.NDArray[np.int64]


def evaluate(model: Classifier, data: DataSet) -> Score:
    """On the device the model is on."""
    logits = torch_logits(model, data.test_x)
    return Score(metrics=metrics_of(logits, data.test_y), predictions=logits.argmax(axis=1))


def torch_logits(model: Classifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """uint8 [n, h, w, c] → float32 [n, labels]."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        parts = [
            model(on_device(images[start : start + ITEMS_AT_ONCE], device))[0].cpu().numpy()
            for start in range(0, len(images), ITEMS_AT_ONCE)
        ]
    logits: npt.NDArray[np.float32] = np.concatenate(parts)
    return logits


def metrics_of(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """accuracy, the fraction whose likeliest label is right; cross_entropy, in nats per item."""
    wide = logits.astype(np.float64)
    log_sum = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    right = wide[np.arange(len(labels)), labels]
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "cross_entropy": float((log_sum - right).mean()),
    }
