"""Whether two answers are the same, within a tolerance, for every datatype."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import TensorSpec, Tolerance

Array = npt.NDArray[Any]  # Any: the element type is the tensor's


def agrees(spec: TensorSpec, found: Array, expected: Array, tolerance: Tolerance) -> bool:
    """Equal shapes, and elements within tolerance; strings are equal or not."""
    if found.shape != expected.shape:
        return False
    if spec.datatype == "BYTES":
        return bool((found == expected).all())
    return np.allclose(
        as_numbers(spec, found),
        as_numbers(spec, expected),
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        equal_nan=True,
    )


def as_numbers(spec: TensorSpec, array: Array) -> Array:
    """BF16 bits as the FP32 they are the upper half of; other numbers as they are."""
    if spec.datatype != "BF16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def largest_difference(spec: TensorSpec, found: Array, expected: Array) -> float:
    """Infinite where they cannot be compared."""
    if found.shape != expected.shape or spec.datatype == "BYTES":
        return float("inf")
    numbers = (as_numbers(spec, array).astype(np.float64) for array in (found, expected))
    return float(np.abs(next(numbers) - next(numbers)).max())
