"""JSON numbers and bytes to rows and back, every value checked against the model's tensor before it is used.

Each check names the tensor, what came and what was expected. Nothing is cast silently: 3.7 or 300 for a UINT8 is an
error, not 3 or 44. JSON has no NaN or infinity: floats that are not finite are written as null, and null is read as
NaN; clients that need them exactly use binary tensors.
"""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, Datatype, TensorSpec
from service.batching.arena import RowBytes, row_bytes
from service.errors import WrongTensor

Array = npt.NDArray[Any]  # Any: the element type is the tensor's, known only at run time

_ACCEPTED_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}
_EXPECTED = {"b": "true or false", "u": "whole numbers", "i": "whole numbers", "f": "numbers"}


def check_shape(spec: TensorSpec, shape: list[int] | tuple[int, ...]) -> int:
    """The number of items. Raises WrongTensor unless `shape` is [n, *item shape] with n >= 1."""
    if len(shape) != len(spec.shape) or list(shape[1:]) != list(spec.shape[1:]) or shape[0] < 1:
        raise WrongTensor(f"input {spec.name!r} has shape {list(shape)}; expected {_shape_text(spec)}")
    return shape[0]


def rows_from_numbers(spec: TensorSpec, values: Any, n: int) -> RowBytes:
    """`n` items from decoded JSON, nested or flat in row-major order. Raises WrongTensor."""
    dtype = NUMPY_OF[spec.datatype]
    try:
        array = np.array(values)
        if array.dtype.kind == "O" and dtype.kind == "f":  # null among numbers: NaN
            array = np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise WrongTensor(f"input {spec.name!r}: data is ragged or not made of {_EXPECTED[dtype.kind]}") from error
    expected = (n, *spec.shape[1:])
    if array.size != prod(expected):
        raise WrongTensor(
            f"input {spec.name!r} has {array.size} values; expected {prod(expected)} for shape {list(expected)}"
        )
    return _cast(spec, array, dtype).tobytes()


def check_bytes(spec: TensorSpec, data: RowBytes, n: int) -> RowBytes:
    """`data`, which is `n` items in row-major order, little-endian. Raises WrongTensor when its length differs."""
    expected = n * row_bytes(spec)
    if len(data) != expected:
        raise WrongTensor(
            f"input {spec.name!r} has {len(data)} bytes; expected {expected} for shape {[n, *spec.shape[1:]]}"
        )
    return data


def items_in(spec: TensorSpec, n_bytes: int) -> int:
    """How many whole rows so many bytes are. Raises WrongTensor."""
    size = row_bytes(spec)
    if n_bytes == 0 or n_bytes % size:
        raise WrongTensor(f"{n_bytes} bytes; expected a multiple of {size}, the size of one {_item_text(spec)} item")
    return n_bytes // size


def to_json(array: Array) -> list[Any]:
    """A flat list that JSON can carry; msgspec writes what is not finite as null."""
    return array.ravel().tolist()


def check_datatype(spec: TensorSpec, datatype: str) -> Datatype:
    if datatype != spec.datatype:
        raise WrongTensor(f"input {spec.name!r} has datatype {datatype}; expected {spec.datatype}")
    return spec.datatype


def _cast(spec: TensorSpec, array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind not in _ACCEPTED_KINDS[dtype.kind] and array.size:
        raise WrongTensor(f"input {spec.name!r}: data holds {_kind_text(array)}; expected {_EXPECTED[dtype.kind]}")
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < bounds.min or high > bounds.max:
            wrong = low if low < bounds.min else high
            raise WrongTensor(
                f"input {spec.name!r}: data holds {wrong}; expected {bounds.min} to {bounds.max} for {spec.datatype}"
            )
    with np.errstate(over="ignore"):  # beyond FP16 or FP32 is infinity, as IEEE 754 rounds
        return array.astype(dtype)


def _kind_text(array: Array) -> str:
    names = {"f": "fractions", "b": "true or false", "U": "text", "O": "null or mixed values"}
    return names.get(array.dtype.kind, str(array.dtype))


def _shape_text(spec: TensorSpec) -> str:
    return f"[n, {', '.join(map(str, spec.shape[1:]))}]" if len(spec.shape) > 1 else "[n]"


def _item_text(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape[1:])}"
