"""Between rows of differing size and arrays: gathers items of one shape into a batch, and takes a batch apart again.

Rows of fixed size take the shorter way, in `instance.py`. With a batch axis items are stacked; without one, the single
item of the run is the whole tensor. Strings are unpacked to str and packed again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import NUMPY_OF, TensorSpec
from service.batching import strings
from service.batching.arena import ShapedRegion, ShapedRow, item_shape
from service.engine.session import RunFailed

Array = npt.NDArray[Any]  # Any: the element type is the tensor's


class RowTooLarge(RunFailed):
    """An item's output is larger than its row."""


def gather(region: ShapedRegion, spec: TensorSpec, slots: Sequence[int], batch_axis: bool) -> Array:
    """The rows of `slots`, which are of one shape. Raises RunFailed for strings that are not UTF-8."""
    shape = region.shape(slots[0])
    if batch_axis:
        shape = (len(slots), *shape)
    if spec.datatype == "BYTES":
        return _from_strings([element for slot in slots for element in strings.unpack(region.data(slot))], shape)
    array = np.empty(shape, NUMPY_OF[spec.datatype])
    buffer = array.reshape(-1).view(np.uint8).data
    start = 0
    for slot in slots:
        data = region.data(slot)
        buffer[start : start + data.nbytes] = data
        start += data.nbytes
    return array


def split(output: Array, spec: TensorSpec, n: int, batch_axis: bool, max_row_bytes: int) -> list[ShapedRow]:
    """One row for each of `n` items. Raises RunFailed: not one row per item; RowTooLarge."""
    expected = (n, *item_shape(spec, True)) if batch_axis else item_shape(spec, False)
    if not _fits(output.shape, expected):
        raise RunFailed(f"output {spec.name!r} has shape {output.shape}; expected {expected}, -1 for any")
    rows = []
    # An index with `...` gives an array even where items have no axes.
    for item in (output[i, ...] for i in range(n)) if batch_axis else [output]:
        if spec.datatype == "BYTES":
            data = strings.pack(element.encode() for element in item.reshape(-1).tolist())
        else:
            data = item.tobytes()
        if len(data) > max_row_bytes:
            raise RowTooLarge(f"output {spec.name!r} has {len(data)} bytes; its row has room for {max_row_bytes}")
        rows.append(ShapedRow(item.shape, data))
    return rows


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """An empty `expected` is any: onnxruntime does not tell a scalar from a tensor of unknown axes."""
    return not expected or (
        len(shape) == len(expected)
        and all(size == wanted or wanted == -1 for size, wanted in zip(shape, expected, strict=True))
    )


def _from_strings(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise RunFailed(f"a string is not UTF-8: {error}") from error
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)
