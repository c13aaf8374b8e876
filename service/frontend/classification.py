"""Outputs as classes: the protocol's classification extension.

An output that is asked for with `parameters.classification: k` comes back as BYTES, the k largest values of each item,
largest first, each as "<value>:<index>" or, where the model has labels, "<value>:<index>:<label>". The extension's text
says STRING; servers and clients have it as BYTES.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import TensorSpec
from service.batching.link import ModelFacts
from service.errors import MalformedRequest, WrongTensor


def classes_wanted(facts: ModelFacts, spec: TensorSpec, parameter: Any) -> int:
    """The k of `parameters.classification`; None and 0: the output as it is. Raises MalformedRequest, WrongTensor."""
    if parameter is None:
        return 0
    if type(parameter) is not int or parameter < 0:
        raise MalformedRequest(
            f"output {spec.name!r}: parameters.classification is {parameter!r}; expected how many classes, from 1"
        )
    if parameter and spec.datatype in ("BYTES", "BF16"):
        raise WrongTensor(f"output {spec.name!r} is {spec.datatype}; classification needs numbers to put in order")
    return parameter


def class_strings(rows: npt.NDArray[Any], k: int, labels: Sequence[str] = ()) -> tuple[list[int], list[bytes]]:
    """Shape [n, min(k, classes)] and the elements in that order.

    rows     [n, classes], of any kind of number; equal values keep their order, NaN comes last
    labels   by class; empty, or shorter than the classes: those without have none
    """
    n, k = len(rows), min(k, rows.shape[1])
    # ~x of a whole number or truth value falls where x rises, also at the ends of the range.
    descending = ~rows if rows.dtype.kind in ("b", "u", "i") else -rows
    best = np.argsort(descending, axis=1, kind="stable")[:, :k]
    elements = [
        _element(value, index, labels)
        for row, order in zip(rows, best, strict=True)
        for value, index in zip(row[order].tolist(), order.tolist(), strict=True)
    ]
    return [n, k], elements


def labels_of(facts: ModelFacts, spec: TensorSpec) -> Sequence[str]:
    """The labels that belong to the output's classes; empty where it has none."""
    classification = facts.classification
    return classification.labels if classification is not None and classification.output == spec.name else ()


def _element(value: Any, index: int, labels: Sequence[str]) -> bytes:
    text = f"{value:f}:{index}" if isinstance(value, float) else f"{int(value)}:{index}"
    return (f"{text}:{labels[index]}" if index < len(labels) else text).encode()
