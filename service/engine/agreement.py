"""Whether two answers are the same, within a tolerance, for every datatype."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import TensorSpec, Tolerance
from service.batching.arena import as_numbers

Array = npt.NDArray[Any]  # Any: the element type is the tensor's


def agrees(spec: TensorSpec, found: Array, expected: Array, tolerance: Tolerance) -> bool:
    """Equal shapes, and elements within tolerance; strings are equal or not."""
    if found.shape != expected.shape:
        return False
    if spec.datatype == "BYTES":
        return bool((found == expected).all())
    return np.allclose(
        as_numbers(spec.datatype, found),
        as_numbers(spec.datatype, expected),
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        equal_nan=True,
    )


def largest_difference(spec: TensorSpec, found: Array, expected: Array) -> float:
    """Infinite where they cannot be compared."""
    if found.shape != expected.shape or spec.datatype == "BYTES":
        return float("inf")
    numbers = (as_numbers(spec.datatype, array).astype(np.float64) for array in (found, expected))
    return float(np.abs(next(numbers) - next(numbers)).max())
