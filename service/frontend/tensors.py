"""JSON numbers and bytes to rows and back, every value checked against the model's tensor before it is used.

Each check names the tensor, what came and what was expected. Nothing is cast silently: 3.7 or 300 for a UINT8 is an
error, not 3 or 44. JSON has no NaN or infinity: floats that are not finite are written as null, and null is read as
NaN; clients that need them exactly use binary tensors.
"""

import functools
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec
from service.batching.arena import RowBytes, row_bytes
from service.errors import WrongTensor

Array = npt.NDArray[Any]  # Any: the element type is the tensor's, known only at run time

_MOST_AXES = 16
_HEAD_BYTES = 256  # brackets, and the white space that pretty printing puts between them


def check_shape(spec: TensorSpec, shape: list[int] | tuple[int, ...]) -> int:
    """The number of items. Raises WrongTensor unless `shape` is [n, *item shape] with n >= 1."""
    if len(shape) != len(spec.shape) or list(shape[1:]) != list(spec.shape[1:]) or shape[0] < 1:
        raise WrongTensor(f"input {spec.name!r} has shape {list(shape)}; expected {_shape_text(spec)}")
    return shape[0]


def rows_from_json(spec: TensorSpec, data: msgspec.Raw, n: int | None, field: str) -> tuple[RowBytes, int]:
    """Items from a JSON array, nested or flat in row-major order, and how many they are.

    n        how many are expected; None: as many as the array has entries
    field    what to call the array in an error
    Raises   WrongTensor
    """
    dtype = NUMPY_OF[spec.datatype]
    expected = _ELEMENTS[dtype.kind]
    try:
        values = _decoder(expected.type, _depth(spec, data, field)).decode(data)
        with np.errstate(over="ignore"):  # beyond FP16 or FP32 is infinity, as IEEE 754 rounds
            array = np.array(values, np.float64 if dtype.kind == "f" else dtype).astype(dtype)
    except msgspec.ValidationError as error:
        raise WrongTensor(f"input {spec.name!r}: {field} must hold {expected.text}: {error}") from error
    except OverflowError as error:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        raise WrongTensor(
            f"input {spec.name!r}: {field}: {error}; expected {low} to {high} for {spec.datatype}"
        ) from error
    except ValueError as error:
        raise WrongTensor(f"input {spec.name!r}: {field} is ragged; expected lists of equal lengths") from error
    n = len(values) if n is None else n
    if n == 0:
        raise WrongTensor(f"input {spec.name!r}: {field} is empty; expected at least one item")
    if array.size != n * prod(spec.shape[1:]):
        shape = [n, *spec.shape[1:]]
        raise WrongTensor(
            f"input {spec.name!r}: {field} has {array.size} values; expected {prod(shape)} for shape {shape}"
        )
    return array.tobytes(), n


def check_bytes(spec: TensorSpec, data: RowBytes, n: int) -> RowBytes:
    """`data`, which is `n` items in row-major order, little-endian. Raises WrongTensor."""
    expected = n * row_bytes(spec)
    if len(data) != expected:
        raise WrongTensor(
            f"input {spec.name!r} has {len(data)} bytes; expected {expected} for shape {[n, *spec.shape[1:]]}"
        )
    _check_truth(spec, data)
    return data


def items_in(spec: TensorSpec, data: RowBytes) -> int:
    """How many whole rows the bytes are. Raises WrongTensor."""
    size, n_bytes = row_bytes(spec), len(data)
    if n_bytes == 0 or n_bytes % size:
        raise WrongTensor(f"{n_bytes} bytes; expected a multiple of {size}, the size of one {_item_text(spec)} item")
    _check_truth(spec, data)
    return n_bytes // size


def to_json(array: Array) -> list[Any]:
    """A flat list that JSON can carry; msgspec writes what is not finite as null."""
    return array.ravel().tolist()


def check_datatype(spec: TensorSpec, datatype: str) -> None:
    """Raises WrongTensor."""
    if datatype != spec.datatype:
        raise WrongTensor(f"input {spec.name!r} has datatype {datatype}; expected {spec.datatype}")


def _check_truth(spec: TensorSpec, data: RowBytes) -> None:
    """onnxruntime computes with whatever byte a BOOL is. Raises WrongTensor."""
    if spec.datatype == "BOOL" and (largest := int(np.frombuffer(data, np.uint8).max())) > 1:
        raise WrongTensor(f"input {spec.name!r} has a byte of {largest}; expected 0 or 1 for BOOL")


class _Element(NamedTuple):
    """What JSON must hold for a kind of numpy type, for msgspec and in words. msgspec takes no bool for a number."""

    type: Any
    text: str


_ELEMENTS = {
    "b": _Element(bool, "true or false"),
    "u": _Element(int, "whole numbers"),
    "i": _Element(int, "whole numbers"),
    "f": _Element(float | None, "numbers"),  # null is NaN
}


def _depth(spec: TensorSpec, data: msgspec.Raw, field: str) -> int:
    """How deeply the first element is nested. Raises WrongTensor beyond what any tensor has."""
    head = bytes(memoryview(data)[:_HEAD_BYTES]).translate(None, b" \t\r\n")
    depth = len(head) - len(head.lstrip(b"["))
    if depth > _MOST_AXES:
        raise WrongTensor(f"input {spec.name!r}: {field} is nested {depth} deep; expected at most {_MOST_AXES}")
    return max(1, depth)  # what is no array at all, the decoder says


@functools.cache
def _decoder(element: Any, depth: int) -> msgspec.json.Decoder[list[Any]]:
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _shape_text(spec: TensorSpec) -> str:
    return f"[n, {', '.join(map(str, spec.shape[1:]))}]" if len(spec.shape) > 1 else "[n]"


def _item_text(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape[1:])}"
