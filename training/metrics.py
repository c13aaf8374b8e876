"""What answers are worth: the numbers of the manifest and the tables of the report, from arrays alone.

Everything here reads answers somebody else computed, so a graph run by onnxruntime and a network run by torch are
scored by the same lines. float64 inside, whatever comes in: a mean of 10,000 float32 losses loses its fourth digit
otherwise. Every number is finite, because JSON has no word for the others; only the empty bins of a `Calibration`,
which are drawn and never written, hold nan.
Checked by tests/training/test_metrics.py.
"""

from math import sqrt

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Wide = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

CALIBRATION_BINS = 15  # arXiv 1706.04599, section 5
TOP = 5


class ClassScore(Struct, frozen=True):
    """Of one label. `items` is how many carry it; with none, recall and f1 are 0 and say nothing."""

    precision: float
    recall: float
    f1: float
    items: int


class Calibration(Struct, frozen=True):
    """How sure the answers were, against how often they were right.

    confidence, accuracy   float64 [bins], means over the bin's items; nan where there are none
    items                  int64 [bins]
    error                  expected calibration error: |accuracy - confidence|, weighted by items
    """

    confidence: Wide
    accuracy: Wide
    items: Counts
    error: float


def classification(logits: Floats, probabilities: Floats, labels: Integers) -> dict[str, float]:
    """Scores by name, fractions of 1; cross_entropy is in nats per item.

    logits, probabilities   float32 [n, k], n at least 1; the largest logit is the answer, the first of equal ones
    labels                  integers [n], 0 to k - 1

    top5_accuracy is there for more than five labels. The macro_ means are over the labels that some item carries: a
    label without items has no recall to count.
    """
    n, k = logits.shape
    assert n > 0, "bug: no items to score"
    predictions = logits.argmax(axis=1)
    scores = [score for score in per_class(confusion(predictions, labels, k)) if score.items]
    top5 = {"top5_accuracy": float((ranks(logits, labels) < TOP).mean())} if k > TOP else {}
    return {
        "accuracy": float((predictions == labels).mean()),
        **top5,
        "cross_entropy": cross_entropy(logits, labels),
        "macro_precision": float(np.mean([score.precision for score in scores])),
        "macro_recall": float(np.mean([score.recall for score in scores])),
        "macro_f1": float(np.mean([score.f1 for score in scores])),
        "calibration_error": calibration(probabilities, labels).error,
    }


def ranks(logits: Floats, labels: Integers) -> Counts:
    """int64 [n]: how many labels come before the true one; of equal logits the first comes first, as in argmax."""
    true = labels.astype(np.int64)[:, None]
    own = np.take_along_axis(logits, true, axis=1)
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < true))
    counted: Counts = before.sum(axis=1, dtype=np.int64)
    return counted


def cross_entropy(logits: Floats, labels: Integers) -> float:
    """Nats per item. Shifted by each row's largest logit, so that none overflows."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def confusion(predictions: Integers, labels: Integers, k: int) -> Counts:
    """int64 [k, k]: row the true label, column the predicted one. Raises IndexError for a label of k or more."""
    counts = np.zeros((k, k), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def per_class(confusion: Counts) -> tuple[ClassScore, ...]:
    """In the order of the labels. A fraction of nothing is 0: the precision of a label never predicted, for one."""
    return tuple(
        ClassScore(
            precision=ratio(right, predicted),
            recall=ratio(right, items),
            f1=ratio(2 * right, predicted + items),
            items=int(items),
        )
        for right, predicted, items in zip(
            confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1), strict=True
        )
    )


def ratio(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0


def calibration(probabilities: Floats, labels: Integers, bins: int = CALIBRATION_BINS) -> Calibration:
    """Items binned by the probability of their answer, in `bins` bins of equal width over 0 to 1.

    probabilities   float32 [n, k], rows that sum to 1
    Source          arXiv 1706.04599, equations 2, 3 and 5: a bin excludes its lower edge and holds its upper one
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # Clipped: a softmax in float32 can end a rounding above 1.
    bin_of = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence) - 1, 0, bins - 1)
    items = np.bincount(bin_of, minlength=bins)
    sure, hit = (np.bincount(bin_of, weights, minlength=bins) for weights in (confidence, right))
    nothing = np.full(bins, np.nan)
    return Calibration(
        confidence=np.divide(sure, items, out=nothing.copy(), where=items > 0),
        accuracy=np.divide(hit, items, out=nothing.copy(), where=items > 0),
        items=items.astype(np.int64),
        error=float(np.abs(hit - sure).sum() / len(labels)),
    )


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """mse, mae and r2, the share of the targets' variance that is explained.

    predictions, targets   float32 [n] or [n, 1], equally many and at least one

    Targets that are all the same have no variance to explain: r2 is then 1 for predictions without any error and 0
    for others, as in scikit-learn, where the formula would give nan or minus infinity.
    """
    found, wanted = (array.astype(np.float64).ravel() for array in (predictions, targets))
    assert found.shape == wanted.shape, f"bug: {len(found)} predictions for {len(wanted)} targets"
    assert len(wanted) > 0, "bug: no items to score"
    residuals = wanted - found
    unexplained = float((residuals**2).sum())
    variance = float(((wanted - wanted.mean()) ** 2).sum())
    # Asked of the targets, not of `variance`: the rounded mean of equal numbers need not be that number.
    constant = wanted.min() == wanted.max()
    return {
        "mse": float((residuals**2).mean()),
        "mae": float(np.abs(residuals).mean()),
        "r2": float(unexplained == 0) if constant else 1 - unexplained / variance,
    }


def accuracy_interval(accuracy: float, items: int) -> tuple[float, float]:
    """Where the accuracy on all items of this kind lies, 95 times of 100, from that on `items` of them.

    Source   the score interval of Wilson, JASA 22 (1927) 209: unlike the usual one, it holds close to 1
    """
    z = 1.959964
    shrink = 1 + z * z / items
    centre = (accuracy + z * z / (2 * items)) / shrink
    half = z * sqrt(accuracy * (1 - accuracy) / items + z * z / (4 * items * items)) / shrink
    return max(centre - half, 0.0), min(centre + half, 1.0)
