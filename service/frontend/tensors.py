"""JSON numbers and bytes to rows and back, every value checked against the model's tensor before it is used.

Each check names the tensor, what came and what was expected. Nothing is cast silently: 3.7 or 300 for a UINT8 is an
error, not 3 or 44. JSON has no NaN or infinity: floats that are not finite are written as null, and null is read as
NaN; clients that need them exactly use binary tensors. Items that differ in size: `shaped.py`.
"""

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec
from service.batching.arena import MOST_ITEM_AXES, RowBytes, item_shape, row_bytes
from service.batching.link import ModelFacts
from service.errors import WrongTensor

Array = npt.NDArray[Any]  # Any: the element type is the tensor's, known only at run time

_MOST_AXES = MOST_ITEM_AXES + 1
_HEAD_BYTES = 256  # brackets, and the white space that pretty printing puts between them


def check_shape(facts: ModelFacts, spec: TensorSpec, shape: list[int]) -> int:
    """The number of items. Raises WrongTensor unless `shape` is [n, *item shape] with n >= 0, or the item's alone."""
    if facts.batch_axis:
        n_items, given = (shape[0], shape[1:]) if shape else (-1, [])
    else:
        n_items, given = 1, shape
    usual = tuple(given) == spec.shape[1:] and min(given, default=0) >= 0 and facts.batch_axis
    if n_items < 0 or not (usual or item_fits(facts, spec, given)):
        raise WrongTensor(f"input {spec.name!r} has shape {shape}; expected {shape_text(facts, spec)}")
    if 0 in given and n_items > facts.capacity:  # items without elements, of which no count of values or bytes tells
        raise WrongTensor(f"input {spec.name!r} has shape {shape}; expected at most {facts.capacity} items")
    return n_items


def item_fits(facts: ModelFacts, spec: TensorSpec, given: Sequence[int]) -> bool:
    """Any length where -1 is expected. A tensor without a batch axis or a shape may have any: `has_fixed_rows`."""
    expected = item_shape(spec, facts.batch_axis)
    if not expected and not facts.batch_axis:
        return len(given) <= MOST_ITEM_AXES and min(given, default=0) >= 0
    return len(given) == len(expected) and all(
        size >= 0 and wanted in (size, -1) for size, wanted in zip(given, expected, strict=True)
    )


def rows_from_json(
    facts: ModelFacts, spec: TensorSpec, data: msgspec.Raw, n: int | None, field: str
) -> tuple[RowBytes, int]:
    """Items from a JSON array, nested or flat in row-major order, and how many they are.

    n        how many are expected; None: as many as the array has entries, at least one
    field    what to call the array in an error
    Raises   WrongTensor
    """
    array = elements_from_json(spec, data, field)
    if n is None:
        n = len(array)
        if n == 0:
            raise WrongTensor(f"input {spec.name!r}: {field} is empty; expected at least one item")
    check_count(spec, array, whole_shape(facts, spec, n), field)
    return array.tobytes(), n


def elements_from_json(spec: TensorSpec, data: msgspec.Raw, field: str, least_depth: int = 1) -> Array:
    """The array as it is nested; text in an object array for BYTES. Raises WrongTensor.

    least_depth   0: it may be a single element
    """
    if spec.datatype == "BF16":
        raise WrongTensor(f"input {spec.name!r}: JSON has no form for BF16; send it as a binary tensor")
    dtype: np.dtype[Any] = np.dtype(object) if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype]
    expected = _ELEMENTS[dtype.kind]
    depth = max(least_depth, _depth(spec, data, field))
    try:
        values = _decoder(expected.type, depth).decode(data)
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
        raise _ragged(spec, field) from error
    if array.ndim != depth:  # of text, numpy makes an array of lists
        raise _ragged(spec, field)
    return array


def check_count(spec: TensorSpec, array: Array, shape: Sequence[int], field: str) -> None:
    """Raises WrongTensor unless the array fills the shape."""
    if array.size != prod(shape):
        raise WrongTensor(
            f"input {spec.name!r}: {field} has {array.size} values; expected {prod(shape)} for shape {list(shape)}"
        )


def check_bytes(facts: ModelFacts, spec: TensorSpec, data: RowBytes, n: int) -> RowBytes:
    """`data`, which is `n` items in row-major order, little-endian. Raises WrongTensor."""
    expected = n * row_bytes(spec, facts.batch_axis)
    if len(data) != expected:
        raise WrongTensor(
            f"input {spec.name!r} has {len(data)} bytes; expected {expected} for shape {whole_shape(facts, spec, n)}"
        )
    check_truth(spec, data)
    return data


def items_in(facts: ModelFacts, spec: TensorSpec, data: RowBytes) -> int:
    """How many whole rows the bytes are. Raises WrongTensor."""
    size, n_bytes = row_bytes(spec, facts.batch_axis), len(data)
    if n_bytes == 0 or n_bytes % size:
        item = f"{spec.datatype} {list(item_shape(spec, facts.batch_axis))}"
        raise WrongTensor(f"{n_bytes} bytes; expected a multiple of {size}, the size of one {item} item")
    check_truth(spec, data)
    return n_bytes // size


def to_json(array: Array) -> list[Any]:
    """A flat list that JSON can carry; msgspec writes what is not finite as null."""
    return array.ravel().tolist()


def no_json_for(facts: ModelFacts) -> str:
    """Why the model's outputs cannot all be answered in JSON; "" where they can."""
    for spec in facts.outputs:
        if spec.datatype == "BF16":
            return (
                f"output {spec.name!r} is BF16, which JSON has no form for; "
                f"/v2/models/{facts.name}/infer answers it as a binary tensor"
            )
    return ""


def check_datatype(spec: TensorSpec, datatype: str) -> None:
    """Raises WrongTensor."""
    if datatype != spec.datatype:
        raise WrongTensor(f"input {spec.name!r} has datatype {datatype}; expected {spec.datatype}")


def check_truth(spec: TensorSpec, data: RowBytes) -> None:
    """onnxruntime computes with whatever byte a BOOL is. Raises WrongTensor."""
    if spec.datatype == "BOOL" and (largest := int(np.frombuffer(data, np.uint8).max(initial=0))) > 1:
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
    "O": _Element(str, "strings"),
}


def _depth(spec: TensorSpec, data: msgspec.Raw, field: str) -> int:
    """How deeply the first element is nested. Raises WrongTensor beyond what any tensor has."""
    head = bytes(memoryview(data)[:_HEAD_BYTES]).translate(None, b" \t\r\n")
    depth = len(head) - len(head.lstrip(b"["))
    if depth > _MOST_AXES:
        raise WrongTensor(f"input {spec.name!r}: {field} is nested {depth} deep; expected at most {_MOST_AXES}")
    return depth  # what is no array at all, the decoder says


@functools.cache
def _decoder(element: Any, depth: int) -> msgspec.json.Decoder[list[Any]]:
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _ragged(spec: TensorSpec, field: str) -> WrongTensor:
    return WrongTensor(f"input {spec.name!r}: {field} is ragged; expected lists of equal lengths")


def whole_shape(facts: ModelFacts, spec: TensorSpec, n: int) -> list[int]:
    """Of `n` items of fixed size; without a batch axis one item is all, and several do not make a tensor."""
    item = item_shape(spec, facts.batch_axis)
    return [n, *item] if facts.batch_axis or n > 1 else [*item]


def shape_text(facts: ModelFacts, spec: TensorSpec) -> str:
    """-1 for any length."""
    if facts.batch_axis:
        return f"[n, {', '.join(map(str, spec.shape[1:]))}]" if len(spec.shape) > 1 else "[n]"
    return str(list(spec.shape)) if spec.shape else f"at most {MOST_ITEM_AXES} axes, none negative"
