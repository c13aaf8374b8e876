"""Whether dimension 0 of a model's tensors counts items that have nothing to do with each other.

    by name     every input and output has a variable first dimension, and the inputs' has one name, or none
    by trial    two items are answered alone as they are together

Names alone are not enough: the first axis may be a sequence, and a graph may normalise over its batch. Answers would
then depend on who else asked. So what the trial refutes runs item by item; where no trial tells anything (every
invented input makes the run fail, or all are answered alike) the names decide. Reasons: docs/adr/0014.
Checked by tests/integration/test_any_model.py and tests/http/test_any_shape.py.
"""

from typing import Literal

import numpy as np

from models.manifest import Golden, TensorSpec, Tolerance
from service.batching.arena import as_numbers, item_shape
from service.engine.agreement import Array, agrees
from service.engine.golden import golden_feeds, row_count
from service.engine.samples import Kind, axis_lengths, sample_items
from service.engine.session import RunFailed, Session

Verdict = Literal["independent", "dependent", "alike", "failed"]
"""Of items run alone and together; alike: all have the same answer, so a mix-up would not show."""

_KINDS: tuple[Kind, ...] = ("small", "wide", "zeros and ones")
_TOLERANCE = Tolerance(absolute=1e-4, relative=1e-3)
_COARSE = Tolerance(absolute=3e-2, relative=3e-2)  # FP16 and BF16 have 11 and 8 bits, and sums lose some


def try_batch(session: Session, golden: Golden | None, max_row_bytes: int) -> Verdict:
    """For a session with a batch axis by name. Golden rows are better than invented ones where there are two.

    Where outputs have axes of any length, their lengths may come from the values, and the longest of a batch be
    everybody's: then one kind of values is not enough.
    """
    if golden is not None and row_count(golden) > 1:
        return compare(session, golden_feeds(session, golden, slice(0, 2)))
    one_is_enough = not any(-1 in item_shape(spec, True) for spec in session.outputs)
    for length in axis_lengths(session.inputs, True, max_row_bytes):
        verdicts: set[Verdict] = set()
        for kind in _KINDS:
            verdict = compare(session, sample_items(session.inputs, True, length, 2, kind))
            if verdict == "dependent" or (verdict == "independent" and one_is_enough):
                return verdict
            verdicts.add(verdict)
        if told := verdicts - {"failed"}:
            return "independent" if "independent" in told else "alike"
    return "failed"


def compare(session: Session, items: dict[str, Array]) -> Verdict:
    """`items`: [2, *item] for every input."""
    together = _run(session, items)
    alone = [_run(session, {name: rows[i : i + 1] for name, rows in items.items()}) for i in range(2)]
    first, second = alone
    if together is None or first is None or second is None:
        # What fails alone must fail together: otherwise these are not items.
        return "failed" if together is None and None in alone else "dependent"
    alike = True
    for spec, both, *each in zip(session.outputs, together, first, second, strict=True):
        if [len(both), *map(len, each)] != [2, 1, 1]:
            return "dependent"
        tolerance = tolerance_of(spec, both)
        if not all(agrees(spec, both[i : i + 1], row, tolerance) for i, row in enumerate(each)):
            return "dependent"
        alike = alike and agrees(spec, each[0], each[1], tolerance)
    return "alike" if alike else "independent"


def _run(session: Session, feeds: dict[str, Array]) -> list[Array] | None:
    try:
        with session.quietly():
            return session.run(feeds)
    except RunFailed:
        return None


def tolerance_of(spec: TensorSpec, answers: Array) -> Tolerance:
    """Kernels sum in another order at another batch size: an error of the largest values, not of each."""
    if spec.datatype not in ("FP16", "FP32", "FP64", "BF16"):
        return Tolerance(0, 0)
    tolerance = _COARSE if spec.datatype in ("FP16", "BF16") else _TOLERANCE
    numbers = np.abs(as_numbers(spec.datatype, answers))
    largest = float(numbers.max(initial=0.0, where=np.isfinite(numbers)))
    return Tolerance(tolerance.absolute * largest, tolerance.relative)
