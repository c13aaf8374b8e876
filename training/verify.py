"""Holds the exported file against the trained model and the test set. Only what passes can be published.

    Exported ──► same numbers as torch at several batch sizes
             ──► scored on the whole test set, by the file itself
             ──► golden rows: its own answers to 16 test images, replayed by the service before it serves
             ──► Verified

`publish` takes a `Verified` and nothing else, and only `verify` makes one: its constructor wants a key that this module
keeps. Checked by tests/training/test_verify.py.
"""

from dataclasses import InitVar, dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from models.manifest import Golden, Verification
from training.architectures import Classifier
from training.data import DataSet
from training.errors import VerificationFailed
from training.evaluate import Score, metrics_of
from training.export import INPUT, LOGITS, PROBABILITIES, Exported
from training.recipes import Recipe

BATCH_SIZES = (1, 2, 7, 64)  # one, the traced size, an odd one, a full one
# Both sides are float32 on the CPU and differ in the order of sums: about 1e-5 on logits of about 10 is seen.
MAX_DIFFERENCE = 1e-4
# A tie that rounding decides is no fault; one test item in a thousand would be.
MAX_DISAGREEING = 0.001
GOLDEN_ROWS = 16
ITEMS_AT_ONCE = 500

FloatArray = npt.NDArray[np.float32]


class _Key:
    """Held by this module alone."""


_KEY = _Key()


@dataclass(frozen=True)
class Verified:
    """A graph that passed, what was seen, and its golden rows. Not a Struct: `replace` on one would need no key."""

    onnx: bytes
    verification: Verification
    golden: Golden
    key: InitVar[_Key]

    def __post_init__(self, key: _Key) -> None:
        if key is not _KEY:
            raise TypeError("Verified is made by training.verify.verify() alone: publish what passed it")


def verify(exported: Exported, model: Classifier, score: Score, data: DataSet, recipe: Recipe) -> Verified:
    """Compare, measure, and keep the golden rows.

    model    on the CPU, in evaluation mode
    Raises   VerificationFailed naming what differs, or the accuracy that is missing
    """
    session = open_session(exported)
    difference = largest_difference(session, model, data.test_x)
    logits, _ = answer(session, data.test_x)
    disagreements = count_disagreements(logits, score)
    metrics = metrics_of(logits, data.test_y)
    check_accuracy(metrics["accuracy"], recipe)
    verification = Verification(
        batch_sizes=BATCH_SIZES,
        max_abs_difference=difference,
        test_items=len(data.test_x),
        disagreements=disagreements,
        metrics=metrics,
    )
    return Verified(exported.onnx, verification, golden_rows(session, data), key=_KEY)


def open_session(exported: Exported) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])


def answer(session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
    """uint8 [n, h, w, c] → logits and probabilities, float32 [n, labels]."""
    parts = [
        session.run([LOGITS, PROBABILITIES], {INPUT: images[start : start + ITEMS_AT_ONCE]})
        for start in range(0, len(images), ITEMS_AT_ONCE)
    ]
    logits, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
    return logits, probabilities


def largest_difference(
    session: onnxruntime.InferenceSession, model: Classifier, images: npt.NDArray[np.uint8]
) -> float:
    """Over logits and probabilities, at every batch size. Raises VerificationFailed beyond MAX_DIFFERENCE."""
    largest = 0.0
    for size in BATCH_SIZES:
        batch = images[np.arange(size) % len(images)]
        with torch.inference_mode():
            expected = [output.numpy() for output in model(torch.from_numpy(batch))]
        found = answer(session, batch)
        for name, theirs, ours in zip((LOGITS, PROBABILITIES), expected, found, strict=True):
            if ours.shape != theirs.shape:
                raise VerificationFailed(f"{name} is {ours.shape} at batch size {size}; torch gives {theirs.shape}.")
            difference = float(np.abs(ours - theirs).max())
            if not difference <= MAX_DIFFERENCE:  # also when it is not a number
                raise VerificationFailed(
                    f"The exported graph is not the trained model: {name} differ by {difference:.3g} at batch size "
                    f"{size}, more than {MAX_DIFFERENCE:g}. Nothing was published."
                )
            largest = max(largest, difference)
    return largest


def count_disagreements(logits: FloatArray, score: Score) -> int:
    disagreements = int((logits.argmax(axis=1) != score.predictions).sum())
    if disagreements > MAX_DISAGREEING * len(logits):
        raise VerificationFailed(
            f"The exported graph and torch disagree on {disagreements} of {len(logits)} test items. "
            "Nothing was published."
        )
    return disagreements


def check_accuracy(accuracy: float, recipe: Recipe) -> None:
    if accuracy < recipe.min_accuracy:
        raise VerificationFailed(
            f"The exported file is right on {accuracy:.2%} of the test set, and the recipe {recipe.name} asks for "
            f"{recipe.min_accuracy:.2%}. Nothing was published. Train longer (--epochs) or with another --seed; "
            "--limit makes a trial that asks for no accuracy."
        )


def golden_rows(session: onnxruntime.InferenceSession, data: DataSet) -> Golden:
    """Test images spread evenly over the labels, so that every output is seen high once."""
    by_label = np.argsort(data.test_y, kind="stable")
    rows = by_label[np.linspace(0, len(by_label) - 1, GOLDEN_ROWS).astype(int)]
    images = data.test_x[rows]
    logits, probabilities = answer(session, images)
    return Golden(inputs={INPUT: images}, outputs={LOGITS: logits, PROBABILITIES: probabilities})
