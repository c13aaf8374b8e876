"""Items that differ in size: variable axes, and BYTES elements. Each row carries its shape.

BYTES are UTF-8 text, as onnxruntime's Python interface gives and takes strings: JSON strings, or in binary the
protocol's form (`service/batching/strings.py`). A tensor's items in one request may differ in shape only where each is
given on its own: /predict's `instances`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np

from models.manifest import NUMPY_OF, TensorSpec
from service.batching import strings
from service.batching.arena import RowBytes, ShapedRow, item_shape
from service.batching.link import ModelFacts
from service.errors import EngineError, WrongTensor
from service.frontend.http import decode_json
from service.frontend.tensors import Array, check_count, check_truth, elements_from_json, item_fits, shape_text


def shaped_rows_from_json(
    facts: ModelFacts, spec: TensorSpec, data: msgspec.Raw, shape: Sequence[int], n: int
) -> list[ShapedRow]:
    """`n` items of one shape from a tensor's `data`, nested or flat. `shape` is checked. Raises WrongTensor."""
    item = _item_of(facts, shape)
    _check_shape_fits_row(facts, spec, item)
    array = elements_from_json(spec, data, "data")
    check_count(spec, array, shape, "data")
    return [_row(facts, spec, each.reshape(item)) for each in array.reshape(n, prod(item))]


def shaped_rows_from_bytes(
    facts: ModelFacts, spec: TensorSpec, data: RowBytes, shape: Sequence[int], n: int
) -> list[ShapedRow]:
    """`n` items of one shape from a binary tensor. `shape` is checked. Raises WrongTensor."""
    item = _item_of(facts, shape)
    _check_shape_fits_row(facts, spec, item)
    if spec.datatype == "BYTES":
        return _rows_of_strings(facts, spec, data, item, n)
    size = NUMPY_OF[spec.datatype].itemsize * prod(item)
    if len(data) != n * size:
        raise WrongTensor(f"input {spec.name!r} has {len(data)} bytes; expected {n * size} for shape {list(shape)}")
    check_truth(spec, data)
    view = memoryview(data)
    return [_checked(facts, spec, ShapedRow(item, view[i * size : (i + 1) * size])) for i in range(n)]


def shaped_rows_from_instances(
    facts: ModelFacts, spec: TensorSpec, data: msgspec.Raw, field: str = "instances"
) -> list[ShapedRow]:
    """Items from a JSON array of items, each nested as its own shape. Raises WrongTensor."""
    instances: list[msgspec.Raw] = decode_json(data, list[msgspec.Raw], field)
    if not instances:
        raise WrongTensor(f"input {spec.name!r}: {field} is empty; expected at least one item")
    rows = []
    for i, instance in enumerate(instances):
        array = elements_from_json(spec, instance, f"{field}[{i}]", least_depth=0)
        if not item_fits(facts, spec, array.shape):
            raise WrongTensor(
                f"input {spec.name!r}: {field}[{i}] has shape {list(array.shape)}; "
                f"expected {list(item_shape(spec, facts.batch_axis))}, -1 for any length"
            )
        _check_shape_fits_row(facts, spec, array.shape)
        rows.append(_row(facts, spec, array))
    return rows


def raw_string(facts: ModelFacts, spec: TensorSpec, body: bytes) -> list[ShapedRow]:
    """The one element that a raw body is, without its length in front. Raises WrongTensor."""
    item = item_shape(spec, facts.batch_axis)
    if prod(item) != 1 or (not item and not facts.batch_axis):
        raise WrongTensor(
            f"For BYTE datatype raw input {spec.name!r}, the model must have input shape [1]; it has "
            f"{shape_text(facts, spec)}"
        )
    _check_text(spec, 0, body)
    return [_checked(facts, spec, ShapedRow(item, strings.pack([body])))]


def shape_of_raw(facts: ModelFacts, spec: TensorSpec, n_bytes: int) -> list[int]:
    """The only shape that so many bytes can have, of one item. Raises WrongTensor where more than one axis is open."""
    shape = [1, *spec.shape[1:]] if facts.batch_axis else list(spec.shape)
    if shape.count(-1) > 1:
        raise WrongTensor(
            f"The shape of the raw input {spec.name!r} can not be deduced because there are more than one "
            f"variable-sized dimension: {shape_text(facts, spec)}; send a JSON header that gives it"
        )
    if not shape or 0 in shape:
        raise WrongTensor(
            f"the shape of input {spec.name!r} ({spec.datatype} {shape_text(facts, spec)}) does not follow from the "
            "length of a raw body; send a JSON header that gives it"
        )
    step = NUMPY_OF[spec.datatype].itemsize * abs(prod(shape))
    if n_bytes % step:
        raise WrongTensor(
            f"{n_bytes} bytes; expected a multiple of {step} for {spec.datatype} {shape_text(facts, spec)}"
        )
    return [n_bytes // step if size == -1 else size for size in shape]


def joined(facts: ModelFacts, spec: TensorSpec, rows: list[ShapedRow]) -> tuple[list[int], bytes]:
    """An output's shape and bytes. Raises EngineError where its items do not make one tensor.

    Of no rows only where every item has one shape; else WrongTensor, as nothing was run that could tell.
    """
    if not rows:
        return _no_rows(facts, spec), b""
    shape = rows[0].shape
    for row in rows:
        if row.shape != shape:
            raise EngineError(
                f"output {spec.name!r} has items of unequal shapes, {list(shape)} and {list(row.shape)}, which do not "
                "make one tensor; send these items in requests of their own"
            )
    return [len(rows), *shape] if facts.batch_axis else list(shape), b"".join(row.data for row in rows)


def flat_values(spec: TensorSpec, data: RowBytes) -> list[Any]:
    """Elements that JSON can carry. BF16 is refused before anything runs."""
    if spec.datatype == "BYTES":
        return [element.decode() for element in strings.unpack(data)]
    values: list[Any] = np.frombuffer(data, NUMPY_OF[spec.datatype]).tolist()
    return values


def nested_values(spec: TensorSpec, row: ShapedRow) -> Any:
    """As `flat_values`, nested as the item's shape says; an item without axes is a single value."""
    elements = np.empty(prod(row.shape), object)
    elements[:] = flat_values(spec, row.data)
    return elements.reshape(row.shape).tolist()


def _no_rows(facts: ModelFacts, spec: TensorSpec) -> list[int]:
    item = item_shape(spec, facts.batch_axis)
    if -1 in item:
        raise WrongTensor(
            f"inputs have no row, and only a run can tell the shape of output {spec.name!r} {shape_text(facts, spec)}; "
            "expected at least one row, or `outputs` that names none like it"
        )
    return [0, *item]


def _item_of(facts: ModelFacts, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[1:] if facts.batch_axis else shape)


def _check_shape_fits_row(facts: ModelFacts, spec: TensorSpec, item: tuple[int, ...]) -> None:
    """Also where an axis of length 0 leaves no element: the other lengths must stay such as can be computed with."""
    element_bytes = 1 if spec.datatype == "BYTES" else NUMPY_OF[spec.datatype].itemsize
    if (least := element_bytes * prod(size or 1 for size in item)) > facts.max_row_bytes:
        raise _too_large(facts, spec, f"of shape {list(item)} takes at least {least} bytes")


def _row(facts: ModelFacts, spec: TensorSpec, item: Array) -> ShapedRow:
    data = strings.pack(text.encode() for text in item.reshape(-1)) if spec.datatype == "BYTES" else item.tobytes()
    return _checked(facts, spec, ShapedRow(item.shape, data))


def _checked(facts: ModelFacts, spec: TensorSpec, row: ShapedRow) -> ShapedRow:
    if len(row.data) > facts.max_row_bytes:
        raise _too_large(facts, spec, f"has {len(row.data)} bytes")
    return row


def _too_large(facts: ModelFacts, spec: TensorSpec, what: str) -> WrongTensor:
    return WrongTensor(
        f"input {spec.name!r}: an item {what}; at most {facts.max_row_bytes} fit, the setting batching.max_row_bytes"
    )


def _rows_of_strings(
    facts: ModelFacts, spec: TensorSpec, data: RowBytes, item: tuple[int, ...], n: int
) -> list[ShapedRow]:
    try:
        elements = strings.unpack(data)
    except ValueError as error:
        raise WrongTensor(f"input {spec.name!r}: {error}; expected BYTES elements, each behind its length") from error
    size = prod(item)
    if len(elements) != n * size:
        raise WrongTensor(f"input {spec.name!r} has {len(elements)} elements; expected {n * size} for its shape")
    for i, element in enumerate(elements):
        _check_text(spec, i, element)
    packed = (strings.pack(elements[i * size : (i + 1) * size]) for i in range(n))
    return [_checked(facts, spec, ShapedRow(item, row)) for row in packed]


def _check_text(spec: TensorSpec, i: int, element: bytes) -> None:
    try:
        element.decode()
    except UnicodeDecodeError as error:
        raise WrongTensor(
            f"input {spec.name!r}: element {i} is not UTF-8 ({error.reason}); onnxruntime takes text"
        ) from error
