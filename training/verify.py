"""Holds the exported file against the trained model and the test set. Only what passes can be published.

    Exported ──► same numbers as torch at several batch sizes
             ──► scored on the whole test set, by the file itself
             ──► learnt weights at the closed-form solution, for linear regression
             ──► golden rows: its own answers to 16 test items, replayed by the service before it serves
             ──► Verified

`publish` takes a `Verified` and nothing else, and only `verify` makes one: its constructor wants a key that this module
keeps. Checked by tests/training/test_verify.py.
"""

from dataclasses import InitVar, dataclass

import numpy as np
import onnxruntime

from models.manifest import Golden, Tolerance, Verification
from training.architectures import Served
from training.closed_form import check_closed_form, coefficients
from training.data import Array, DataSet
from training.errors import VerificationFailed
from training.evaluate import FloatArray, Score, metrics_of, predicted, torch_answers
from training.export import Exported
from training.quantise import Speed, check_quantised
from training.recipes import Recipe
from training.report import Coefficient

BATCH_SIZES = (1, 2, 7, 64)  # one, the traced size, an odd one, a full one
# Both sides are float32 on the CPU and differ in the order of sums: about 1e-5 on logits of about 10 is seen.
MAX_DIFFERENCE = 1e-4
# A tie that rounding decides is no fault; one test item in a thousand would be.
MAX_DISAGREEING = 0.001
GOLDEN_ROWS = 16

# Golden rows are answered by other devices than the one that wrote them. A GPU that multiplies in TF32 rounds every
# factor to 10 bits of mantissa: doing so to mnist/1 on a CPU moved the logits of 1,000 test images, up to 5, by 0.003
# at most, and the probabilities by 0.001 (loadtests/records/2026-11-23_tf32). A wrong graph moves them by whole units.
TOLERANCE = Tolerance(absolute=1e-2, relative=1e-2)
# An int8 graph rounds activations, and where a sum lies between two steps another processor may round it the other way.
QUANTISED_TOLERANCE = Tolerance(absolute=0.2, relative=0.1)
ITEMS_AT_ONCE = 500


class _Key:
    """Held by this module alone."""


_KEY = _Key()


@dataclass(frozen=True)
class Verified:
    """A graph that passed, what was seen, its golden rows, and its answers to the test set by output name.

    Not a Struct: `replace` on one would need no key.
    """

    onnx: bytes
    verification: Verification
    golden: Golden
    answers: dict[str, FloatArray]
    coefficients: tuple[Coefficient, ...]
    tolerance: Tolerance
    key: InitVar[_Key]

    def __post_init__(self, key: _Key) -> None:
        if key is not _KEY:
            raise TypeError("Verified is made by training.verify alone: publish what passed it")


def verify(exported: Exported, model: Served, score: Score, data: DataSet, recipe: Recipe) -> Verified:
    """Compare, measure, and keep the golden rows.

    model    on the CPU, in evaluation mode
    Raises   VerificationFailed naming what differs, or the accuracy that is missing
    """
    session = open_session(exported.onnx)
    difference = largest_difference(session, model, data.test_x)
    answers = answers_of(session, data.test_x)
    disagreements = count_disagreements(answers, score.answers, data)
    metrics = metrics_of(answers, data.source, data.test_y)
    found = coefficients(model, data)
    metrics |= check_closed_form(found, recipe)
    check_good_enough(metrics, recipe)
    verification = Verification(
        batch_sizes=BATCH_SIZES,
        max_abs_difference=difference,
        test_items=len(data.test_x),
        disagreements=disagreements,
        metrics=metrics,
    )
    return Verified(exported.onnx, verification, golden_rows(session, data), answers, found, TOLERANCE, key=_KEY)


def verify_quantised(onnx: bytes, reference: bytes, data: DataSet, speed: Speed) -> Verified:
    """An int8 graph against the float one it was made of, on the whole test set.

    Raises   VerificationFailed where it lost accuracy or gained too little speed
    """
    session, float_session = open_session(onnx), open_session(reference)
    answers, expected = answers_of(session, data.test_x), answers_of(float_session, data.test_x)
    metrics, before = (metrics_of(found, data.source, data.test_y) for found in (answers, expected))
    check_quantised(before["accuracy"], metrics["accuracy"], speed)
    metrics |= {"float_accuracy": before["accuracy"], "speedup": speed.ratio}
    verification = Verification(
        batch_sizes=(min(ITEMS_AT_ONCE, len(data.test_x)),),
        max_abs_difference=max(float(np.abs(answers[name] - expected[name]).max()) for name in answers),
        test_items=len(data.test_x),
        disagreements=int((predicted(answers, data.source) != predicted(expected, data.source)).sum()),
        metrics=metrics,
    )
    return Verified(onnx, verification, golden_rows(session, data), answers, (), QUANTISED_TOLERANCE, key=_KEY)


def open_session(onnx: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])


def answers_of(session: onnxruntime.InferenceSession, items: Array) -> dict[str, FloatArray]:
    """Raw items, as the data set holds them → float32 [n, numbers] by output name."""
    names = [output.name for output in session.get_outputs()]
    (feed,) = [entry.name for entry in session.get_inputs()]
    parts = [
        session.run(names, {feed: items[start : start + ITEMS_AT_ONCE]})
        for start in range(0, len(items), ITEMS_AT_ONCE)
    ]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def largest_difference(session: onnxruntime.InferenceSession, model: Served, items: Array) -> float:
    """Over all outputs, at every batch size. Raises VerificationFailed beyond MAX_DIFFERENCE."""
    largest = 0.0
    for size in BATCH_SIZES:
        batch = items[np.arange(size) % len(items)]
        expected, found = torch_answers(model, batch), answers_of(session, batch)
        for name, theirs in expected.items():
            ours = found[name]
            if ours.shape != theirs.shape:
                raise VerificationFailed(f"{name} is {ours.shape} at batch size {size}; torch gives {theirs.shape}.")
            difference = float(np.abs(ours - theirs).max())
            allowed = MAX_DIFFERENCE * unit(name, theirs)
            if not difference <= allowed:  # also when it is not a number
                raise VerificationFailed(
                    f"The exported graph is not the trained model: {name} differ by {difference:.3g} at batch size "
                    f"{size}, more than {allowed:.3g}. Nothing was published."
                )
            largest = max(largest, difference)
    return largest


def unit(name: str, expected: FloatArray) -> float:
    """What differences are measured in: 1 for probabilities and for usual logits, which stay below 10; for a predicted
    number the largest there is, as it may be a price."""
    usual = {"prediction": 1.0, "logits": 10.0}
    return max(1.0, float(np.abs(expected).max()) / usual[name]) if name in usual else 1.0


def count_disagreements(answers: dict[str, FloatArray], expected: dict[str, FloatArray], data: DataSet) -> int:
    """Test items with another label, or with a number more than MAX_DIFFERENCE away."""
    if data.source.labels:
        differs = predicted(answers, data.source) != predicted(expected, data.source)
    else:
        allowed = MAX_DIFFERENCE * unit("prediction", expected["prediction"])
        differs = (np.abs(answers["prediction"] - expected["prediction"]) > allowed)[:, 0]
    disagreements = int(differs.sum())
    if disagreements > MAX_DISAGREEING * len(differs):
        raise VerificationFailed(
            f"The exported graph and torch disagree on {disagreements} of {len(differs)} test items. "
            "Nothing was published."
        )
    return disagreements


def check_good_enough(metrics: dict[str, float], recipe: Recipe) -> None:
    if recipe.limit is not None:  # a trial
        return
    accuracy, r2 = metrics.get("accuracy"), metrics.get("r2")
    if accuracy is not None and accuracy < recipe.min_accuracy:
        raise VerificationFailed(
            f"The exported file is right on {accuracy:.2%} of the test set, and the recipe {recipe.name} asks for "
            f"{recipe.min_accuracy:.2%}. Nothing was published. Train longer (--epochs) or with another --seed; "
            "--limit makes a trial that asks for no accuracy."
        )
    if r2 is not None and recipe.min_r2 is not None and r2 < recipe.min_r2:
        raise VerificationFailed(
            f"The exported file explains {r2:.2%} of the test set's variance (R²), and the recipe {recipe.name} asks "
            f"for {recipe.min_r2:.2%}. Nothing was published. Train longer (--epochs) or with another --lr."
        )


def golden_rows(session: onnxruntime.InferenceSession, data: DataSet) -> Golden:
    """Test items spread evenly over the sorted targets, so that every output is seen high once."""
    by_target = np.argsort(data.test_y, kind="stable")
    rows = by_target[np.linspace(0, len(by_target) - 1, GOLDEN_ROWS).astype(int)]
    items = data.test_x[rows]
    (feed,) = [entry.name for entry in session.get_inputs()]
    return Golden(inputs={feed: items}, outputs=dict(answers_of(session, items)))
