"""Whether a shadow's answers are those of the version that it repeats, item by item.

Of a model with labels, answers agree where the best class is the same; of any other, where all outputs are within a
tolerance, and strings equal. NaN equals NaN.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec, Tolerance
from service.batching.arena import RowBytes, Rows, ShapedRow, as_numbers
from service.batching.link import ModelFacts

_TOLERANCE = Tolerance()
_FLOATS = ("FP16", "FP32", "FP64", "BF16")

Array = npt.NDArray[Any]  # Any: the element type is the tensor's
Outputs = Mapping[str, Rows]


class Compared(NamedTuple):
    """`differences`: of each item the largest between two floats, infinite where one is none; [] without floats."""

    items: int
    disagreed: int
    differences: list[float]


def comparable(facts: ModelFacts, shadow: ModelFacts) -> bool:
    """The shadow takes the rows as they are, and answers in the same tensors."""
    return (
        (facts.inputs == shadow.inputs or _by_name(facts.inputs) == _by_name(shadow.inputs))
        and (facts.outputs == shadow.outputs or _by_name(facts.outputs) == _by_name(shadow.outputs))
        and facts.batch_axis == shadow.batch_axis
        and facts.max_row_bytes <= shadow.max_row_bytes
    )


def compare(facts: ModelFacts, shadow: ModelFacts, n: int, theirs: Outputs, ours: Outputs) -> Compared:
    """Of two that are comparable. `theirs` and `ours`: every output's rows of the same `n` items."""
    disagrees = np.zeros(n, bool)
    differences = np.zeros(n)
    labelled = facts.classification if facts.classification == shadow.classification else None
    for spec in facts.outputs:
        judged = _judge(spec, n, theirs[spec.name], ours[spec.name])
        if labelled is None:
            disagrees |= judged.differs
        elif spec.name == labelled.output:
            disagrees |= judged.other_class
        if spec.datatype in _FLOATS:
            np.maximum(differences, judged.difference, out=differences)
    has_floats = any(spec.datatype in _FLOATS for spec in facts.outputs)
    return Compared(n, int(disagrees.sum()), differences.tolist() if has_floats else [])


def _by_name(specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


class _Judged(NamedTuple):
    """One output of all items: bool [n], bool [n] and FP64 [n]."""

    differs: Array
    other_class: Array
    difference: Array


_ALIKE, _UNLIKE = (False, False, 0.0), (True, True, np.inf)


def _judge(spec: TensorSpec, n: int, theirs: Rows, ours: Rows) -> _Judged:
    if isinstance(theirs, list) and isinstance(ours, list):
        items = [_judge_item(spec, a, b) for a, b in zip(theirs, ours, strict=True)]
        return _Judged(*(np.array(column) for column in zip(*items, strict=True)))
    assert not isinstance(theirs, list), "bug: versions that are not comparable"
    assert not isinstance(ours, list), "bug: versions that are not comparable"
    return _judge_numbers(spec, n, theirs, ours)


def _judge_item(spec: TensorSpec, theirs: ShapedRow, ours: ShapedRow) -> tuple[bool, bool, float]:
    if theirs == ours:
        return _ALIKE
    if theirs.shape != ours.shape or spec.datatype == "BYTES":
        return _UNLIKE
    judged = _judge_numbers(spec, 1, theirs.data, ours.data)
    return bool(judged.differs[0]), bool(judged.other_class[0]), float(judged.difference[0])


def _judge_numbers(spec: TensorSpec, n: int, theirs: RowBytes, ours: RowBytes) -> _Judged:
    """Equally many elements, at least one of each item."""
    a, b = _numbers(spec, n, theirs), _numbers(spec, n, ours)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.abs(a - b)
    difference[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    difference[np.isnan(difference)] = np.inf
    most = _TOLERANCE.absolute + _TOLERANCE.relative * np.abs(a)
    within = (difference == 0) | (np.isfinite(difference) & (difference <= most))
    other_class: Array = a.argmax(axis=1) != b.argmax(axis=1)
    return _Judged(~within.all(axis=1), other_class, difference.max(axis=1))


def _numbers(spec: TensorSpec, n: int, rows: RowBytes) -> Array:
    """FP64 [n, elements of an item]."""
    array = np.frombuffer(rows, NUMPY_OF[spec.datatype]).reshape(n, -1)
    return as_numbers(spec.datatype, array).astype(np.float64)
