"""Invented inputs, to run a model that nobody has sent anything yet: for its warm-up and for what it does with a batch.

Nobody knows what a graph accepts. Kinds go from what most models take (0 and 1 are legal indices, masks and token ids)
to what makes their answers differ; lengths of axes that may have any go from what is quick to what deep stacks of
strided convolutions need.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np

from models.manifest import NUMPY_OF, TensorSpec
from service.batching.arena import item_shape
from service.engine.agreement import Array

Kind = Literal["small", "wide", "zeros and ones"]
"""Values.

small            floats in [0, 1), whole numbers and texts 0 and 1
wide             floats around 0, most within 10, whole numbers below 100, texts of one to three words
zeros and ones   items of zeros and items of ones in turn
"""

AXIS_LENGTHS = (8, 1, 64, 224)
_WORDS = np.array(["a", "b c", "d e f", "g, h", "i"], object)
_DIGITS = np.array(["0", "1"], object)


def axis_lengths(inputs: Sequence[TensorSpec], batch_axis: bool, max_row_bytes: int) -> list[int]:
    """Lengths to try for axes of any length, so that no item is larger than a row; one where there is no such axis."""
    variable = [spec for spec in inputs if -1 in item_shape(spec, batch_axis)]
    fitting = [
        length
        for length in AXIS_LENGTHS
        if all(prod(_lengths(spec, batch_axis, length)) * _element_bytes(spec) <= max_row_bytes for spec in variable)
    ]
    return fitting[: None if variable else 1]


def sample_items(inputs: Sequence[TensorSpec], batch_axis: bool, length: int, n: int, kind: Kind) -> dict[str, Array]:
    """[n, *item] for every input, always the same; `length` stands for axes of any length."""
    generator = np.random.default_rng(0)
    return {spec.name: _elements(spec, (n, *_lengths(spec, batch_axis, length)), kind, generator) for spec in inputs}


def _lengths(spec: TensorSpec, batch_axis: bool, length: int) -> tuple[int, ...]:
    return tuple(length if size == -1 else size for size in item_shape(spec, batch_axis))


def _element_bytes(spec: TensorSpec) -> int:
    return 9 if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype].itemsize  # the longest text, and its length


def _elements(spec: TensorSpec, shape: tuple[int, ...], kind: Kind, generator: np.random.Generator) -> Array:
    alternating = np.broadcast_to(np.arange(shape[0]).reshape(-1, *(1 for _ in shape[1:])) % 2, shape)
    if spec.datatype == "BYTES":
        if kind == "zeros and ones":
            return _DIGITS[alternating]
        return generator.choice(_WORDS if kind == "wide" else _DIGITS, shape)
    dtype = NUMPY_OF[spec.datatype]
    if kind == "zeros and ones":
        numbers: Array = alternating
    elif kind == "wide" and dtype.kind != "b":
        is_float = dtype.kind == "f" or spec.datatype == "BF16"
        numbers = 10 * generator.standard_normal(shape) if is_float else generator.integers(0, 100, shape)
    else:
        numbers = _small(spec, shape, generator)
    if spec.datatype == "BF16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    return numbers.astype(dtype)


def _small(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Of whole numbers, every second item is the other's opposite: with few values, chance would make them equal."""
    if NUMPY_OF[spec.datatype].kind == "f" or spec.datatype == "BF16":
        return generator.random(shape)
    bits: Array = generator.integers(0, 2, shape)
    bits[1::2] = 1 - bits[: len(bits) - len(bits) % 2 : 2]
    return bits
